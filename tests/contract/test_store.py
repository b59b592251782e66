"""Calls and users: created once, changed field by field, read back as written."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Store
from relay.calls import Call
from relay.errors import BadInput
from relay.users import Profile, User
from tests.contract.harness import Rig

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000_000_000
CALL = Call(
    cid="default:demo", created_by="ann", created_at=NOW, updated_at=NOW, custom={"a": [{}, [], 1]}
)


@pytest.fixture
async def store(rig: Rig) -> Store:
    return rig.store(await rig.broker())


async def test_an_unknown_user_is_none(store: Store) -> None:
    assert await store.user("ann") is None


async def test_a_user_is_created_with_what_it_says(store: Store) -> None:
    saved = await store.save_user("ann", Profile(name="Ann", custom={"x": {"y": []}}), NOW)
    assert saved == User(
        id="ann", created_at=NOW, updated_at=NOW, name="Ann", custom={"x": {"y": []}}
    )
    assert await store.user("ann") == saved


async def test_what_is_not_said_stays(store: Store) -> None:
    await store.save_user("ann", Profile(name="Ann", image="a.png", role="admin"), NOW)
    changed = await store.save_user("ann", Profile(name="Anna"), NOW + 1)
    assert changed == User(
        id="ann", created_at=NOW, updated_at=NOW + 1, name="Anna", image="a.png", role="admin"
    )
    assert await store.user("ann") == changed


async def test_saying_nothing_new_changes_nothing(store: Store) -> None:
    saved = await store.save_user("ann", Profile(name="Ann"), NOW)
    assert await store.save_user("ann", Profile(name="Ann"), NOW + 1) == saved
    assert await store.save_user("ann", Profile(), NOW + 2) == saved


@pytest.mark.parametrize("user_id", ["ü", "a:b", "{p1}", "!anon", "x" * 255, "💈"])
async def test_an_id_may_be_any_text(store: Store, user_id: str) -> None:
    saved = await store.save_user(user_id, Profile(name="Odd"), NOW)
    assert saved.id == user_id
    assert await store.user(user_id) == saved


async def test_an_id_that_is_none_is_refused(store: Store) -> None:
    with pytest.raises(BadInput):
        await store.save_user("a b", Profile(), NOW)


async def test_changes_at_once_are_all_kept(store: Store) -> None:
    changes = [Profile(name="Ann"), Profile(image="a.png"), Profile(role="admin"), Profile()]
    await asyncio.gather(*[store.save_user("ann", change, NOW) for change in changes])
    user = await store.user("ann")
    assert user is not None
    assert (user.name, user.image, user.role) == ("Ann", "a.png", "admin")


async def test_a_call_is_created_once(store: Store) -> None:
    assert await store.call(CALL.cid) is None
    assert await store.create_call(CALL) == (CALL, True)
    second = Call(cid=CALL.cid, created_by="bob", created_at=NOW, updated_at=NOW)
    assert await store.create_call(second) == (CALL, False)
    assert await store.call(CALL.cid) == CALL


async def test_of_those_who_create_a_call_at_once_one_does(store: Store) -> None:
    calls = [
        Call(cid=CALL.cid, created_by=f"user-{n}", created_at=NOW, updated_at=NOW)
        for n in range(10)
    ]
    answers = await asyncio.gather(*[store.create_call(call) for call in calls])
    assert sum(created for _, created in answers) == 1
    assert len({call.created_by for call, _ in answers}) == 1
