"""Calls: created once, changed as one, deleted whole, and found by what they are."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from relay.broker import Change, Store
from relay.calls import Call, Permissions
from relay.errors import BadInput, NotAllowed, TooLarge
from tests.filters.records import T0, call, member, query

pytestmark = pytest.mark.anyio

CALL = call(
    1,
    custom={"a": [{}, [], 1], "big": 2**60},
    members=(member("ann"), member("bob")),
    permissions={"bob": Permissions(revoked=("send-audio",))},
    settings={"audio": {"mic_default_on": False}},
    starts_at=T0 + 5,
)


async def found(store: Store, filter_conditions: object = None, **more: Any) -> list[str]:
    calls = await store.query_calls(query(filter_conditions, **more))
    return [call.id for call in calls.items]


def joined(*user_ids: str) -> Any:
    """Return a change by which users become members."""

    def change(before: Call) -> Call:
        new = tuple(member(user_id, T0 + 9) for user_id in user_ids if not before.member(user_id))
        return msgspec.structs.replace(before, members=before.members + new)

    return change


def without(user_id: str) -> Any:
    """Return a change by which a member ceases to be one."""

    def change(before: Call) -> Call:
        left = tuple(member for member in before.members if member.user_id != user_id)
        return msgspec.structs.replace(before, members=left)

    return change


async def test_a_call_is_created_once(store: Store) -> None:
    assert await store.call(CALL.cid) is None
    assert await store.create_call(CALL) == (CALL, True)
    second = call(1, created_by="bob", created_at=T0 + 7)
    assert await store.create_call(second) == (CALL, False)
    assert await store.call(CALL.cid) == CALL
    assert await found(store, {"created_by_user_id": "bob"}) == []
    assert await found(store) == ["001"]


async def test_of_those_who_create_a_call_at_once_one_does(store: Store) -> None:
    calls = [call(1, created_by=f"user-{number}") for number in range(10)]
    answers = await asyncio.gather(*[store.create_call(each) for each in calls])
    assert sum(created for _, created in answers) == 1
    [creator] = {kept.created_by for kept, _ in answers}
    assert await found(store, {"created_by_user_id": creator}) == ["001"]


async def test_calls_are_read_by_their_cids(store: Store) -> None:
    for number in range(3):
        await store.create_call(call(number))
    cids = ["default:002", "default:none", "default:000", "default:002"]
    assert await store.calls(cids) == {"default:002": call(2), "default:000": call(0)}


async def test_a_call_is_changed(store: Store) -> None:
    await store.create_call(CALL)
    changed = await store.change_call(CALL.cid, joined("cyd"))
    assert changed is not None
    assert changed.before == CALL
    assert [member.user_id for member in changed.after.members] == ["ann", "bob", "cyd"]
    assert await store.call(CALL.cid) == changed.after


async def test_a_change_that_changes_nothing_says_so(store: Store) -> None:
    await store.create_call(CALL)
    same = await store.change_call(CALL.cid, lambda before: msgspec.structs.replace(before))
    assert same == Change(CALL, CALL)
    assert same.before is same.after


async def test_what_a_change_raises_changes_nothing(store: Store) -> None:
    def refuse(before: Call) -> Call:
        raise NotAllowed("not so")

    await store.create_call(CALL)
    with pytest.raises(NotAllowed, match="not so"):
        await store.change_call(CALL.cid, refuse)
    assert await store.call(CALL.cid) == CALL


async def test_there_is_nothing_to_change_or_to_delete_in_an_unknown_call(store: Store) -> None:
    assert await store.change_call(CALL.cid, joined("cyd")) is None
    assert await store.delete_call(CALL.cid) is None
    assert await found(store, {"members": "cyd"}) == []


async def test_changes_at_once_all_happen(store: Store) -> None:
    await store.create_call(call(1))
    names = [f"user-{number}" for number in range(30)]
    changes = await asyncio.gather(*[store.change_call("default:001", joined(n)) for n in names])
    kept = await store.call("default:001")
    assert kept is not None
    assert {member.user_id for member in kept.members} == set(names)
    sizes = sorted(len(change.after.members) for change in changes if change)
    assert sizes == list(range(1, 31))


async def test_a_deleted_call_is_gone_and_can_be_created_anew(store: Store) -> None:
    await store.create_call(CALL)
    deleted = await asyncio.gather(store.delete_call(CALL.cid), store.delete_call(CALL.cid))
    assert sorted(deleted, key=bool) == [None, CALL]
    assert await store.call(CALL.cid) is None
    assert await found(store) == await found(store, {"members": "ann"}) == []
    assert await store.create_call(CALL) == (CALL, True)
    assert await found(store) == await found(store, {"members": "ann"}) == ["001"]


async def test_a_call_that_was_deleted_elsewhere_is_remembered_and_can_be_created(
    store: Store,
) -> None:
    assert await store.gone(CALL.cid, T0) is None
    await store.note_gone(CALL.cid, T0 - 1, T0)
    await store.note_gone(CALL.cid, T0, T0)
    await store.note_gone("default:002", T0 + 2, T0)
    assert await store.gone(CALL.cid, T0 + 1) == T0
    assert await store.gone("default:002", T0 + 1) == T0 + 2
    assert await store.create_call(CALL) == (CALL, True)


async def test_members_are_found_while_they_are_members(store: Store) -> None:
    await store.create_call(CALL)
    assert await found(store, {"members": {"$in": ["bob", "cyd"]}}) == ["001"]
    await store.change_call(CALL.cid, joined("cyd"))
    await store.change_call(CALL.cid, without("bob"))
    assert await found(store, {"members": "cyd"}) == ["001"]
    assert await found(store, {"members": "bob"}) == []
    await store.change_call(CALL.cid, joined("bob"))
    assert await found(store, {"members": "bob"}) == ["001"]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"members": tuple(member(f"user-{n}") for n in range(1001))}, BadInput),
        ({"custom": {"x": "x" * 600_000}}, TooLarge),
    ],
)
async def test_a_call_that_grows_too_large_stays_as_it_was(
    store: Store, change: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        await store.create_call(call(2, **change))
    assert await store.call("default:002") is None
    await store.create_call(CALL)
    with pytest.raises(refusal):
        await store.change_call(CALL.cid, lambda before: msgspec.structs.replace(before, **change))
    assert await store.call(CALL.cid) == CALL


async def test_a_thousand_members_are_possible(store: Store) -> None:
    full = call(1, members=tuple(member(f"user-{n}") for n in range(1000)))
    assert await store.create_call(full) == (full, True)
    assert await found(store, {"members": "user-999"}) == ["001"]


async def test_calls_are_found_by_what_they_are(store: Store) -> None:
    await store.create_call(call(0))
    await store.create_call(call(1, cid="livestream:001", created_by="bob"))
    await store.create_call(call(2, team="red", custom={"color": "red"}, backstage=True))
    await store.create_call(call(3, members=(member("bob"),), starts_at=T0 + 99))
    assert await found(store) == ["003", "002", "001", "000"]
    assert await found(store, {"type": "default"}) == ["003", "002", "000"]
    assert await found(store, {"created_by_user_id": "bob"}) == ["001"]
    either = {"$or": [{"created_by_user_id": "bob"}, {"members": {"$in": ["bob"]}}]}
    assert await found(store, either) == ["003", "001"]
    assert await found(store, {"custom.color": "red", "backstage": True}) == ["002"]
    assert await found(store, {"cid": {"$in": ["default:003", "livestream:001"]}}) == ["003", "001"]
    assert await found(store, {"type": "livestream", "id": "001"}) == ["001"]
    assert await found(store, {"type": {"$in": ["livestream"]}, "id": {"$in": ["000"]}}) == []
    assert await found(store, {"created_at": {"$gte": T0 + 1, "$lt": T0 + 3}}) == ["002", "001"]
    assert await found(store, {"created_at": {"$in": [T0, T0 + 2]}}) == ["002", "000"]
    assert await found(store, {"$nor": [{"type": "default"}]}) == ["001"]
    assert await found(store, {"members": {"$in": []}}) == []
    by_start = [{"field": "starts_at", "direction": 1}]
    assert (await found(store, sort=by_start))[0] == "003"


async def test_calls_of_one_moment_are_paged_by_their_cid(store: Store) -> None:
    for number in range(7):
        await store.create_call(call(number, created_at=T0))
    first = await store.query_calls(query(limit=3))
    assert [each.id for each in first.items] == ["006", "005", "004"]
    second = await store.query_calls(query(limit=3, next=first.next))
    assert [each.id for each in second.items] == ["003", "002", "001"]
    third = await store.query_calls(query(limit=3, next=second.next))
    assert ([each.id for each in third.items], third.next) == (["000"], None)
    assert await found(store, limit=3, prev=third.prev) == ["003", "002", "001"]
    assert await found(store, limit=3, prev=second.prev) == ["006", "005", "004"]


async def test_a_long_list_of_cids_is_answered_whole(store: Store) -> None:
    await asyncio.gather(*[store.create_call(call(number)) for number in range(300)])
    cids = [f"default:{number:03d}" for number in range(1500)]
    assert len(await found(store, {"cid": {"$in": cids}})) == 300


async def test_uses_are_counted_by_window(store: Store) -> None:
    minute = T0 - T0 % (60 * 10**9)
    assert [await store.spend("a", 60, minute + n) for n in range(3)] == [1, 2, 3]
    assert await store.spend("b", 60, minute) == 1
    assert await store.spend("a", 30, minute) == 1
    assert await store.spend("a", 60, minute + 60 * 10**9 - 1) == 4
    assert await store.spend("a", 60, minute + 60 * 10**9) == 1
    assert await asyncio.gather(*[store.spend("c", 60, minute) for _ in range(5)]) == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip
