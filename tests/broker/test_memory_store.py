"""The bounds of the embedded store: what it forgets, and when."""

from __future__ import annotations

import pytest

from relay.broker.memory_store import MemoryStore
from relay.users import Profile
from tests.filters.records import T0, call, member

pytestmark = pytest.mark.anyio

HOUR = 3600 * 10**9
GUEST = Profile(role="guest")


async def test_a_guest_is_forgotten_after_two_days_away() -> None:
    store = MemoryStore()
    await store.save_user("ann", GUEST, T0)
    await store.save_user("bob", GUEST, T0)
    await store.save_user("bob", Profile(), T0 + 40 * HOUR)
    await store.save_user("cyd", Profile(), T0 + 48 * HOUR)
    assert await store.user("ann") is not None
    await store.save_user("cyd", Profile(), T0 + 48 * HOUR + 1)
    assert await store.user("ann") is None
    assert set(await store.users(["ann", "bob", "cyd"])) == {"bob", "cyd"}


async def test_who_is_no_guest_any_more_is_remembered() -> None:
    store = MemoryStore()
    await store.save_user("ann", GUEST, T0)
    await store.save_user("ann", Profile(role="user"), T0 + HOUR)
    await store.save_user("bob", Profile(), T0 + 99 * HOUR)
    assert await store.user("ann") is not None


async def test_more_guests_are_forgotten_than_come() -> None:
    store = MemoryStore()
    for number in range(100):
        await store.save_user(f"early-{number}", GUEST, T0 + number)
    for number in range(30):
        await store.save_user(f"late-{number}", GUEST, T0 + 49 * HOUR + number)
    assert set(store._users.records) == {f"late-{number}" for number in range(30)}


async def test_calls_that_were_deleted_elsewhere_are_forgotten_after_a_day() -> None:
    store = MemoryStore()
    for number in range(100):
        await store.note_gone(f"default:early-{number}", T0, T0 + number)
    assert await store.gone("default:early-0", T0 + 24 * HOUR - 1) == T0
    assert await store.gone("default:early-0", T0 + 24 * HOUR) is None
    for number in range(30):
        await store.note_gone(f"default:late-{number}", T0, T0 + 25 * HOUR)
    assert set(store._gone) == {f"default:late-{number}" for number in range(30)}


async def test_windows_that_ended_are_dropped() -> None:
    store = MemoryStore()
    await store.spend("ann", 3600, T0)
    for number in range(100):
        await store.spend(f"user-{number}", 60, T0)
    assert len(store._spent[60]) == 100
    for number in range(30):
        await store.spend(f"user-{number}", 60, T0 + HOUR)
    assert len(store._spent[60]) == 30
    assert await store.spend("user-0", 60, T0 + HOUR) == 2


async def test_nothing_is_left_of_a_deleted_call() -> None:
    store = MemoryStore()
    await store.create_call(call(1, members=(member("ann"),)))
    await store.delete_call("default:001")
    assert store._calls.records == {}
    assert store._calls._indexes == {}
