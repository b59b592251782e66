"""The store on Redis: what others do in between, what a crash leaves, what a query costs there."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import msgspec
import pytest
import redis

from relay import wire
from relay.broker.finding import Queries
from relay.broker.indexes import marks_of_call
from relay.broker.keyspace import Keyspace
from relay.broker.redis import RedisStore
from relay.broker.redis_table import ATTEMPTS
from relay.calls import Call
from relay.errors import BadInput, Unavailable
from relay.filters import Found, Query
from relay.users import Profile
from tests.contract.harness import RedisRig
from tests.filters.records import T0, call, member, query

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000_000_000
CID = "default:001"


def intercept(store: RedisStore, between: Any) -> None:
    """Let something happen whenever a change is about to be written."""
    run = store._redis.run

    async def run_after(*arguments: Any) -> Any:
        await between()
        return await run(*arguments)

    store._redis.run = run_after  # type: ignore[method-assign]


def once(action: Any) -> Any:
    """Return what does something the first time only."""
    actions = [action]

    async def between() -> None:
        if actions:
            await actions.pop()()

    return between


def joined(user_id: str, at: int = T0) -> Any:
    def change(before: Call) -> Call:
        if before.member(user_id):
            return before
        return msgspec.structs.replace(before, members=(*before.members, member(user_id, at)))

    return change


def emptied(before: Call) -> Call:
    return msgspec.structs.replace(before, members=())


def cids(found: Found[Call]) -> list[str]:
    return [each.cid for each in found.items]


def indexes(rig: RedisRig) -> dict[str, list[str]]:
    """Return everything that stands in indexes."""
    with rig.server.client() as client:
        return {
            str(key).removeprefix(f"{rig.prefix}ix:"): client.zrange(key, 0, -1)
            for key in client.keys(f"{rig.prefix}ix:*")
        }


def expected(*calls: Call) -> dict[str, list[str]]:
    """Return what should stand there."""
    found: dict[str, list[str]] = {}
    for each in calls:
        for where, text in marks_of_call(each):
            found.setdefault(where, []).append(text)
    return {where: sorted(texts) for where, texts in found.items()}


# -- others in between --------------------------------------------------------------------------


async def test_a_change_by_another_in_between_is_kept(rig: RedisRig) -> None:
    one, two = RedisStore(await rig.broker()), RedisStore(await rig.broker())
    await one.save_user("ann", Profile(name="Ann"), NOW)
    intercept(one, once(lambda: two.save_user("ann", Profile(image="a.png"), NOW + 1)))
    changed = await one.save_user("ann", Profile(role="admin"), NOW + 2)
    assert (changed.name, changed.image, changed.role) == ("Ann", "a.png", "admin")
    assert await two.user("ann") == changed


async def test_what_never_stays_the_same_is_unavailable(rig: RedisRig) -> None:
    broker = await rig.broker()
    store = RedisStore(broker)
    await store.save_user("ann", Profile(name="Ann"), NOW)
    changes = 0

    async def disturb() -> None:
        nonlocal changes
        changes += 1
        with rig.server.client() as client:
            client.append(broker.keyspace.user("ann"), " ")

    intercept(store, disturb)
    with pytest.raises(Unavailable, match="too many are changing"):
        await store.save_user("ann", Profile(role="admin"), NOW)
    assert changes == ATTEMPTS


async def test_processes_that_change_one_call_at_once_all_do(rig: RedisRig) -> None:
    stores = [RedisStore(await rig.broker()) for _ in range(4)]
    await stores[0].create_call(call(1))
    names = [f"user-{number}" for number in range(80)]
    await asyncio.gather(
        *[stores[n % 4].change_call(CID, joined(name)) for n, name in enumerate(names)]
    )
    kept = await stores[0].call(CID)
    assert kept is not None
    assert {each.user_id for each in kept.members} == set(names)
    assert indexes(rig) == expected(kept)


async def test_a_change_that_waits_for_nobody_reads_once(rig: RedisRig) -> None:
    store = RedisStore(await rig.broker())
    await store.create_call(call(1))
    request = store._redis.request
    sent: list[Any] = []

    async def write_down(*command: Any, **options: Any) -> Any:
        sent.append(command[0])
        return await request(*command, **options)

    store._redis.request = write_down  # type: ignore[method-assign]
    await store.change_call(CID, joined("ann"))
    assert sent == ["GET", "ZADD", "EVALSHA"]


async def test_a_call_that_another_created_meanwhile_leaves_no_marks(rig: RedisRig) -> None:
    one, two = RedisStore(await rig.broker()), RedisStore(await rig.broker())
    theirs = call(1, created_by="bob", created_at=T0 + 5)
    intercept(one, once(lambda: two.create_call(theirs)))
    assert await one.create_call(call(1, members=(member("ann"),))) == (theirs, False)
    assert indexes(rig) == expected(theirs)


async def test_a_call_that_another_deleted_meanwhile_leaves_no_marks(rig: RedisRig) -> None:
    one, two = RedisStore(await rig.broker()), RedisStore(await rig.broker())
    await one.create_call(call(1))
    intercept(one, once(lambda: two.delete_call(CID)))
    assert await one.change_call(CID, joined("ann")) is None
    assert indexes(rig) == {}


async def test_who_is_removed_and_joins_again_meanwhile_stays_found(rig: RedisRig) -> None:
    one, two = RedisStore(await rig.broker()), RedisStore(await rig.broker())
    await one.create_call(call(1, members=(member("ann"),)))
    request = one._redis.request

    async def request_late(*command: Any, **options: Any) -> Any:
        if command[0] == "ZREM":
            await two.change_call(CID, joined("ann", T0 + 1))
        return await request(*command, **options)

    one._redis.request = request_late  # type: ignore[method-assign]
    await one.change_call(CID, emptied)
    assert cids(await two.query_calls(query({"members": "ann"}))) == [CID]


async def test_a_refusal_after_another_came_in_between_leaves_no_marks(rig: RedisRig) -> None:
    one, two = RedisStore(await rig.broker()), RedisStore(await rig.broker())
    await one.create_call(call(1))

    def join_an_empty_call(before: Call) -> Call:
        if before.members:
            raise BadInput("somebody is there")
        return msgspec.structs.replace(before, members=(member("bob"),))

    intercept(one, once(lambda: two.change_call(CID, joined("ann"))))
    with pytest.raises(BadInput, match="somebody is there"):
        await one.change_call(CID, join_an_empty_call)
    kept = await two.call(CID)
    assert kept is not None
    assert indexes(rig) == expected(kept)


# -- what a crash leaves ------------------------------------------------------------------------


async def test_marks_whose_record_was_never_written_are_not_believed(rig: RedisRig) -> None:
    broker = await rig.broker()
    store = RedisStore(broker)
    await store.create_call(call(1))
    lost = [call(2), call(1, created_at=T0 + 9, created_by="bob", members=(member("bob"),))]
    with rig.server.client() as client:
        for where, text in {mark for each in lost for mark in marks_of_call(each)}:
            client.zadd(broker.keyspace.index(where), {text: 0})
    assert cids(await store.query_calls(query())) == [CID]
    assert cids(await store.query_calls(query({"created_by_user_id": "bob"}))) == []
    assert cids(await store.query_calls(query({"members": "bob"}))) == []
    by_id = query({"type": "default"}, sort=[{"field": "id"}])
    assert cids(await store.query_calls(by_id)) == [CID]


async def test_a_change_whose_outcome_is_unknown_keeps_its_marks(rig: RedisRig) -> None:
    store = RedisStore(await rig.broker())
    await store.create_call(call(1))
    run = store._redis.run

    async def lose_the_answer(*arguments: Any) -> Any:
        await run(*arguments)
        raise Unavailable("the connection to Redis was lost")

    store._redis.run = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await store.change_call(CID, joined("ann"))
    assert cids(await store.query_calls(query({"members": "ann"}))) == [CID]


async def test_a_change_is_answered_though_its_old_marks_stay(rig: RedisRig) -> None:
    store = RedisStore(await rig.broker())
    await store.create_call(call(1, members=(member("ann"),)))
    request = store._redis.request

    async def refuse_to_remove(*command: Any, **options: Any) -> Any:
        if command[0] == "ZREM":
            raise Unavailable("Redis is silent")
        return await request(*command, **options)

    store._redis.request = refuse_to_remove  # type: ignore[method-assign]
    changed = await store.change_call(CID, emptied)
    assert changed is not None
    assert changed.after.members == ()
    assert cids(await store.query_calls(query({"members": "ann"}))) == []


# -- what expires -------------------------------------------------------------------------------


async def test_a_guest_is_forgotten_after_two_days_away(rig: RedisRig) -> None:
    broker = await rig.broker()
    store = RedisStore(broker)
    await store.save_user("ann", Profile(role="guest"), NOW)
    await store.save_user("bob", Profile(role="user"), NOW)
    with rig.server.client() as client:
        ann, bob = broker.keyspace.user("ann"), broker.keyspace.user("bob")
        assert client.ttl(ann) == pytest.approx(48 * 3600, abs=5)
        assert client.ttl(bob) == -1
        client.expire(ann, 100)
        await store.save_user("ann", Profile(), NOW + 1)  # back, with nothing new to say
        assert client.ttl(ann) == pytest.approx(48 * 3600, abs=5)
        await store.save_user("ann", Profile(role="user"), NOW + 2)
        assert client.ttl(ann) == -1


async def test_a_guest_that_another_made_a_user_meanwhile_stays(rig: RedisRig) -> None:
    broker = await rig.broker()
    one, two = RedisStore(broker), RedisStore(await rig.broker())
    await one.save_user("ann", Profile(role="guest"), NOW)
    request = one._redis.request

    async def request_late(*command: Any, **options: Any) -> Any:
        if command[0] == "EXPIRE":
            await two.save_user("ann", Profile(role="user"), NOW + 1)
        return await request(*command, **options)

    one._redis.request = request_late  # type: ignore[method-assign]
    await one.save_user("ann", Profile(), NOW + 2)
    with rig.server.client() as client:
        assert client.ttl(broker.keyspace.user("ann")) == -1


async def test_a_window_expires_by_itself(rig: RedisRig) -> None:
    broker = await rig.broker()
    store = RedisStore(broker)
    for _ in range(2):
        await store.spend("ann", 60, NOW)
    with rig.server.client() as client:
        key = broker.keyspace.spent("ann", 60, NOW // 10**9 // 60)
        assert client.get(key) == "2"
        assert client.ttl(key) == pytest.approx(120, abs=5)


# -- what a query costs with 100 000 calls ------------------------------------------------------

MANY = 100_000
TYPES = ("default", "livestream", "audio_room")


def load(client: redis.Redis, keyspace: Keyspace, seed: int) -> list[Call]:
    """Write calls as the store does, but in large portions; return every thousandth."""
    chance = random.Random(seed)
    samples: list[Call] = []
    marks: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for begin in range(0, MANY, 5000):
        texts = {}
        for number in range(begin, begin + 5000):
            made = call(
                number,
                cid=f"{TYPES[number % 3]}:{number:06d}",
                created_by=f"user-{chance.randrange(2000)}",
                custom={"n": number, "color": chance.choice(("red", "blue"))},
                members=tuple(member(f"user-{chance.randrange(20_000)}") for _ in range(2)),
            )
            texts[keyspace.call(made.cid)] = wire.encode(made)
            for where, text in marks_of_call(made):
                marks[where][text] = 0
            if number % 1000 == 7:
                samples.append(made)
        client.mset(texts)
    pipe = client.pipeline(transaction=False)
    for where, found in marks.items():
        pipe.zadd(keyspace.index(where), found)
    pipe.execute()
    return samples


class Costs:
    """Counts the commands that Redis runs for a query."""

    OTHERS = (
        "cmdstat_config|get", "cmdstat_config|resetstat", "cmdstat_evalsha", "cmdstat_info",
        "cmdstat_ping", "cmdstat_set", "cmdstat_spublish", "cmdstat_ssubscribe",
    )  # fmt: skip
    """What the relay does beside it: canaries, a look at how Redis is set."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def counted(self) -> dict[str, int]:
        stats: Any = self._client.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): facts["calls"]
            for name, facts in stats.items()
            if name not in self.OTHERS
        }

    async def of(self, store: RedisStore, asked: Query) -> tuple[list[Call], dict[str, int]]:
        self._client.config_resetstat()
        found = await store.query_calls(asked)
        return list(found.items), self.counted()

    async def of_refused(self, store: RedisStore, asked: Query, why: str) -> dict[str, int]:
        self._client.config_resetstat()
        with pytest.raises(BadInput, match=why):
            await store.query_calls(asked)
        return self.counted()


async def test_a_query_among_100_000_calls_costs_a_bounded_number_of_commands(
    own_rig: RedisRig,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed: {seed}")
    with own_rig.server.client(socket_timeout=60) as client:
        samples = load(client, Keyspace(own_rig.prefix), seed)
        store = RedisStore(await own_rig.broker(heartbeat_s=3600), Queries(query_s=60))
        costs = Costs(client)
        await by_cid(store, costs, samples)
        await by_index(store, costs, samples[50])
        await by_members(store, costs, samples)
        await by_what_has_no_index(store, costs, samples[50])


async def by_cid(store: RedisStore, costs: Costs, samples: list[Call]) -> None:
    found, counts = await costs.of(store, query({"cid": samples[50].cid}))
    assert (found, counts) == ([samples[50]], {"get": 1})
    cids = [each.cid for each in samples]
    found, counts = await costs.of(store, query({"cid": {"$in": cids}}))
    assert (found, counts) == (samples[::-1], {"get": 100})


async def by_index(store: RedisStore, costs: Costs, sample: Call) -> None:
    for conditions in (None, {"type": sample.type}):
        found, counts = await costs.of(store, query(conditions))
        assert len(found) == 25
        assert counts == {"zlexcount": 1 if conditions is None else 2, "zrange": 1, "get": 26}
    first = await store.query_calls(query({"type": sample.type}))
    found, counts = await costs.of(store, query({"type": sample.type}, next=first.next))
    assert {each.type for each in found} == {sample.type}
    assert counts == {"zlexcount": 2, "zrange": 1, "get": 26}
    found, counts = await costs.of(store, query({"created_by_user_id": sample.created_by}))
    assert {each.created_by for each in found} == {sample.created_by}
    assert counts == {"zlexcount": 2, "zrange": 1, "get": 26}


async def by_members(store: RedisStore, costs: Costs, samples: list[Call]) -> None:
    users = {each.members[0].user_id for each in samples[:50]}
    found, counts = await costs.of(store, query({"members": {"$in": sorted(users)}}))
    assert len(found) == 25
    assert all(users & {each.user_id for each in one.members} for one in found)
    assert counts == {"zlexcount": len(users) + 1, "zrange": len(users), "get": 26}


async def by_what_has_no_index(store: RedisStore, costs: Costs, sample: Call) -> None:
    about = {"created_at": {"$gte": sample.created_at, "$lt": sample.created_at + 500}}
    by_number = query({**about, "custom.color": "red"}, sort=[{"field": "custom.n"}])
    found, counts = await costs.of(store, by_number)
    assert [each.custom["n"] for each in found] == sorted(each.custom["n"] for each in found)
    assert counts == {"zlexcount": 1, "zrange": 5, "get": 500}
    counts = await costs.of_refused(
        store, query({"custom.color": "green"}), "10000 calls: narrow it by cid, type, created_by"
    )
    assert counts["get"] == 10_000
    assert counts["zrange"] < 60
    by_id = query({"type": "default"}, sort=[{"field": "id"}])
    counts = await costs.of_refused(store, by_id, "or sort by created_at alone")
    assert counts == {"zlexcount": 2}
