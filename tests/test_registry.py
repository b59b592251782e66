"""What is learnt from Stream's own webhooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from relay import calls, users
from relay.broker.memory import MemoryStore
from relay.broker.rules import CALL_BYTES, GONE_S
from relay.calls import Call, Member, MemberChange, Permissions
from relay.registry import Registry
from relay.users import User

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000_000_000
CID = "default:demo"
JOHN = User(id="john", created_at=NOW, updated_at=NOW, name="John")
JANE = User(id="jane", created_at=NOW, updated_at=NOW, name="Jane")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def registry(store: MemoryStore) -> Registry:
    return Registry(store)


def body(kind: str = "call.created", updated_at: int = NOW, **more: Any) -> dict[str, Any]:
    call = Call(
        cid=CID, created_by="john", created_at=NOW, updated_at=updated_at, custom={"at": updated_at}
    )
    shown = calls.response(call, {"john": JOHN})
    return {"type": kind, "call_cid": CID, "created_at": NOW, "call": shown, **more}


def member(user: User) -> dict[str, Any]:
    known = Member(user_id=user.id, created_at=NOW, updated_at=NOW, role="host")
    return calls.member_response(known, {user.id: user})


async def test_a_call_is_registered_with_its_members_and_users(
    store: MemoryStore, registry: Registry
) -> None:
    await registry.learn(body(members=[member(JANE)], user=users.response(JOHN)), NOW)
    call = await store.call(CID)
    assert call is not None
    assert (call.created_by, call.custom) == ("john", {"at": NOW})
    assert [(m.user_id, m.role) for m in call.members] == [("jane", "host")]
    known = await store.users(["john", "jane"])
    assert {user.name for user in known.values()} == {"John", "Jane"}


async def test_a_newer_webhook_refreshes_and_an_older_one_does_not(
    store: MemoryStore, registry: Registry
) -> None:
    for updated_at in (NOW, NOW + 2, NOW + 1):
        await registry.learn(body("call.updated", updated_at), NOW)
    call = await store.call(CID)
    assert call is not None
    assert call.custom == {"at": NOW + 2}


async def test_a_webhook_leaves_what_it_does_not_tell_of(
    store: MemoryStore, registry: Registry
) -> None:
    await registry.learn(body(), NOW)
    own = {
        "permissions": {"jane": Permissions(granted=("update-call",))},
        "member_changes": (MemberChange(id="m1", at=NOW, added=("jane",)),),
    }
    await store.change_call(CID, lambda call: msgspec.structs.replace(call, **own))
    await registry.learn(body("call.updated", NOW + 1), NOW)
    call = await store.call(CID)
    assert call is not None
    assert call.custom == {"at": NOW + 1}
    assert {name: getattr(call, name) for name in own} == own


async def test_members_come_and_go(store: MemoryStore, registry: Registry) -> None:
    await registry.learn(body(members=[member(JANE)]), NOW)
    await registry.learn(body("call.member_added", members=[member(JOHN)]), NOW)
    await registry.learn(body("call.member_removed", NOW + 1, members=["jane"]), NOW)
    call = await store.call(CID)
    assert call is not None
    assert [m.user_id for m in call.members] == ["john"]


async def test_a_deleted_call_is_forgotten(store: MemoryStore, registry: Registry) -> None:
    await registry.learn(body(), NOW)
    await registry.learn(body("call.deleted"), NOW)
    assert await store.call(CID) is None


@pytest.mark.parametrize("kind", ["call.created", "call.session_ended"])
async def test_late_news_of_a_deleted_call_do_not_bring_it_back(
    store: MemoryStore, registry: Registry, kind: str
) -> None:
    await registry.learn(body(), NOW)
    await registry.learn(body("call.deleted"), NOW)
    await registry.learn(body(kind), NOW + GONE_S * 10**9 - 1)
    assert await store.call(CID) is None


async def test_a_call_that_is_created_again_after_it_was_deleted_is_registered(
    store: MemoryStore, registry: Registry
) -> None:
    await registry.learn(body("call.deleted"), NOW)
    again = body()
    again["call"]["created_at"] = NOW + 1
    await registry.learn(again, NOW)
    assert await store.call(CID) is not None


async def test_a_repeated_deletion_does_not_take_the_next_call(
    store: MemoryStore, registry: Registry
) -> None:
    first, second = body(), body()
    second["call"]["created_at"] = NOW + 5
    deleted = body("call.deleted")
    for said in (first, deleted, second, deleted):
        await registry.learn(said, NOW)
    assert await store.call(CID) is not None
    deleted_too = body("call.deleted")
    deleted_too["call"]["created_at"] = NOW + 5
    for said in (deleted_too, deleted, second):
        await registry.learn(said, NOW)
    assert await store.call(CID) is None


async def test_a_call_that_was_created_here_later_than_there_is_deleted_too(
    store: MemoryStore, registry: Registry
) -> None:
    await store.create_call(Call(cid=CID, created_by="jo", created_at=NOW + 9, updated_at=NOW + 9))
    await registry.learn(body("call.deleted"), NOW)
    assert await store.call(CID) is None


async def test_of_two_who_register_a_call_at_once_the_newer_one_is_right(
    store: MemoryStore, registry: Registry
) -> None:
    create = store.create_call

    async def create_second(call: Call) -> tuple[Call, bool]:
        store.create_call = create  # type: ignore[method-assign]
        await registry.learn(body("call.created", NOW), NOW)
        return await create(call)

    store.create_call = create_second  # type: ignore[method-assign]
    await registry.learn(body("call.updated", NOW + 1), NOW)
    call = await store.call(CID)
    assert call is not None
    assert call.custom == {"at": NOW + 1}


async def test_a_call_is_deleted_whatever_is_said_of_when_it_began(
    store: MemoryStore, registry: Registry
) -> None:
    await registry.learn(body(), NOW)
    deleted = body("call.deleted")
    deleted["call"]["created_at"] = "soon"
    await registry.learn(deleted, NOW)
    await registry.learn(body(), NOW)
    assert await store.call(CID) is None


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda said: said["call"].pop(name)


def _with(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda said: said["call"].update({name: value})


@pytest.mark.parametrize(
    "spoil",
    [
        _without("created_by"),
        _with("created_at", "soon"),
        _with("settings", {"audio": 7}),
        _with("blocked_user_ids", [7]),
        lambda said: said.update(call="no object"),
        lambda said: said.update(members=[{"user_id": "a b"}]),
        _with("custom", {"notes": "x" * CALL_BYTES}),
    ],
)
async def test_what_cannot_be_read_is_left_out(
    store: MemoryStore, registry: Registry, spoil: Callable[[dict[str, Any]], None]
) -> None:
    said = body()
    spoil(said)
    await registry.learn(said, NOW)
    assert await store.call(CID) is None


async def test_a_call_that_would_become_too_large_stays_as_it_is(
    store: MemoryStore, registry: Registry
) -> None:
    await registry.learn(body(), NOW)
    said = body("call.updated", NOW + 1)
    said["call"]["custom"] = {"notes": "x" * CALL_BYTES}
    await registry.learn(said, NOW)
    call = await store.call(CID)
    assert call is not None
    assert call.custom == {"at": NOW}


async def test_an_event_without_a_call_teaches_nothing(
    store: MemoryStore, registry: Registry
) -> None:
    await registry.learn({"type": "custom", "call_cid": CID, "custom": {}}, NOW)
    assert await store.call(CID) is None
