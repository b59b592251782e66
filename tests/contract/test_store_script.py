"""Any script of changes and queries has the same outcome in memory and on Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.broker import Store
from relay.calls import Call
from relay.errors import BadInput
from relay.filters import USERS, Sort, read_query
from relay.users import Profile
from tests.contract.harness import MemoryRig, RedisRig, closing
from tests.filters.records import T0, conditions, customs, facts, member, query, sorts
from tests.redis_server import RedisServer

ids = st.sampled_from(("000", "001", "002", "003", "004", "005"))
names = st.sampled_from(("ann", "bob", "cyd"))
changes = st.sampled_from(("custom", "join", "leave", "end", "nothing", "refuse"))
profiles = st.builds(
    Profile,
    name=st.none() | st.sampled_from(("Ann", "Bob")),
    role=st.none() | st.sampled_from(("user", "guest", "admin")),
    teams=st.none() | st.sampled_from(((), ("red",))),
)
user_conditions = st.sampled_from(
    (None, {"role": "admin"}, {"id": {"$in": ["ann", "cyd"]}}, {"teams": {"$contains": "red"}},
     {"created_at": {"$gt": T0 + 3}}, {"name": {"$autocomplete": "a"}})
)  # fmt: skip
steps = st.one_of(
    st.tuples(st.just("create"), st.tuples(ids, facts)),
    st.tuples(st.just("create"), st.tuples(ids, facts)),
    st.tuples(st.just("change"), st.tuples(ids, changes, names, customs)),
    st.tuples(st.just("delete"), ids),
    st.tuples(st.just("read"), st.lists(ids, max_size=3)),
    st.tuples(st.just("query"), st.tuples(st.none() | conditions, sorts, st.integers(1, 4))),
    st.tuples(st.just("query"), st.tuples(st.none() | conditions, st.just([]), st.integers(1, 4))),
    st.tuples(st.just("save"), st.tuples(names, profiles)),
    st.tuples(st.just("users"), st.tuples(user_conditions, st.integers(1, 3))),
    st.tuples(st.just("spend"), st.tuples(names, st.sampled_from((1, 60)))),
)


def changed(call: Call, what: str, name: str, custom: dict[str, Any], now: int) -> Call:
    if what == "refuse":
        raise BadInput("no")
    others = tuple(each for each in call.members if each.user_id != name)
    news: dict[str, Any] = {
        "custom": {"custom": custom},
        "join": {"members": (*others, member(name, now))},
        "leave": {"members": others},
        "end": {"ended_at": now},
        "nothing": {},
    }[what]
    return msgspec.structs.replace(call, **news)


async def walk(store: Store, filter_conditions: Any, sort: Any, limit: int) -> list[Any]:
    """Return all pages of a query there, and the last one's way back."""
    pages: list[Any] = []
    body: dict[str, Any] = {"sort": sort, "limit": limit}
    cursor: dict[str, Any] = {}
    while len(pages) < 20:
        found = await store.query_calls(query(filter_conditions, **body, **cursor))
        pages.append(found)
        if found.next is None:
            break
        cursor = {"next": found.next}
    while pages[-1].prev is not None and len(pages) < 40:
        pages.append(await store.query_calls(query(filter_conditions, **body, prev=pages[-1].prev)))
    return pages


async def play(store: Store, script: list[tuple[str, Any]]) -> list[Any]:
    outcomes: list[Any] = []
    for now, step in enumerate(script, T0):
        try:
            outcomes.append(await act(store, step, now))
        except BadInput as refusal:
            outcomes.append(refusal.message)
    return outcomes


async def act(store: Store, step: tuple[str, Any], now: int) -> Any:
    match step:
        case "create", (call_id, fact):
            return await store.create_call(Call(**{**fact, "cid": f"{fact['cid']}:{call_id}"}))
        case "change", (call_id, what, name, custom):
            return await store.change_call(
                f"default:{call_id}", lambda call: changed(call, what, name, custom, now)
            )
        case "delete", call_id:
            return await store.delete_call(f"default:{call_id}")
        case "read", call_ids:
            return await store.calls([f"default:{call_id}" for call_id in call_ids])
        case "query", (filter_conditions, sort, limit):
            return await walk(store, filter_conditions, sort, limit)
        case "save", (name, profile):
            return await store.save_user(name, profile, now)
        case "users", (filter_conditions, limit):
            body = {"filter_conditions": filter_conditions, "limit": limit}
            return await store.query_users(read_query(body, USERS, default_sort=[Sort("id")]))
        case "spend", (name, window_s):
            return await store.spend(name, window_s, now)
    raise AssertionError(step)


@settings(
    max_examples=150,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=st.lists(steps, max_size=25))
def test_memory_and_redis_keep_and_find_the_same(
    redis_server: RedisServer, script: list[tuple[str, Any]]
) -> None:
    async def outcome(rig: MemoryRig | RedisRig) -> list[Any]:
        async with closing(rig):
            return await play(rig.store(await rig.broker()), script)

    in_memory = asyncio.run(outcome(MemoryRig()))
    assert asyncio.run(outcome(RedisRig(redis_server))) == in_memory
