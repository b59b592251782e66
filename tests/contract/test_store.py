"""Users: created once, changed field by field, read back as written, found again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from relay.broker import Store
from relay.errors import BadInput
from relay.filters import USERS, Query, Sort, read_query
from relay.users import Profile, User

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000_000_000


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


async def test_a_user_is_changed_as_it_is_at_that_moment(store: Store) -> None:
    await store.save_user("ann", Profile(name="Ann", custom={}), NOW)

    def with_more(name: str) -> Callable[[User], Profile]:
        return lambda user: Profile(custom={**user.custom, name: True})

    names = [f"n{number}" for number in range(5)]
    changes = [store.change_user("ann", with_more(name), NOW + 1) for name in names]
    changed = await asyncio.gather(*changes)
    user = await store.user("ann")
    assert user is not None
    assert (user.name, user.custom) == ("Ann", dict.fromkeys(names, True))
    assert user in changed
    assert await store.change_user("bob", with_more("x"), NOW) is None
    assert await store.user("bob") is None


def query(filter_conditions: object = None, **more: object) -> Query:
    body = {"filter_conditions": filter_conditions, **more}
    return read_query(body, USERS, default_sort=[Sort("created_at", ascending=False)])


async def found(store: Store, filter_conditions: object = None, **more: object) -> list[str]:
    users = await store.query_users(query(filter_conditions, **more))
    return [user.id for user in users.items]


async def test_users_are_read_by_their_ids(store: Store) -> None:
    ann = await store.save_user("ann", Profile(name="Ann"), NOW)
    bob = await store.save_user("bob", Profile(name="Bob"), NOW)
    assert await store.users(["bob", "nobody", "ann", "bob"]) == {"ann": ann, "bob": bob}
    assert await store.users([]) == {}


async def test_everything_a_server_says_is_kept(store: Store) -> None:
    said = Profile(
        name="Ann", language="de", invisible=True, teams=("red",), revoked_before=NOW, role="admin"
    )
    user = await store.save_user("ann", said, NOW)
    assert (user.language, user.invisible, user.teams) == ("de", True, ("red",))
    assert user.revoked_before == NOW
    assert await store.user("ann") == user


async def test_users_are_found_and_paged(store: Store) -> None:
    for number, name in enumerate(["Ann", "Bob", "Cyd", "Anna"]):
        await store.save_user(name.lower(), Profile(name=name), NOW + number)
    assert await found(store) == ["anna", "cyd", "bob", "ann"]
    assert await found(store, {"name": {"$autocomplete": "an"}}) == ["anna", "ann"]
    assert await found(store, {"id": {"$in": ["bob", "nobody", "ann"]}}) == ["bob", "ann"]
    assert await found(store, {"created_at": {"$gt": NOW + 1}}) == ["anna", "cyd"]
    assert await found(store, sort=[{"field": "id"}]) == ["ann", "anna", "bob", "cyd"]
    first = await store.query_users(query(limit=3))
    assert await found(store, limit=3, next=first.next) == ["ann"]


async def test_a_guest_is_found_by_its_id_until_it_becomes_somebody(store: Store) -> None:
    await store.save_user("ann", Profile(role="guest"), NOW)
    assert await found(store) == []
    assert await found(store, {"id": "ann"}) == ["ann"]
    await store.save_user("ann", Profile(role="user"), NOW + 1)
    assert await found(store) == ["ann"]
    await store.save_user("ann", Profile(role="guest"), NOW + 2)
    assert await found(store) == []
