"""Redis breaks in every way it can: what is accepted arrives, or its loss is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import pytest

from tests.broker.proxy import Proxy, proxied
from tests.hardening.rig import (
    ALL_CALLS,
    CALLS,
    ROUNDS,
    Storm,
    numbers,
    rows,
    started,
    storm,
)
from tests.processes import RelayProcess
from tests.redis_server import BINARY, RedisServer, free_port, running, valkey_binary
from tests.redis_shapes import QUICK_MS, Cluster, Watched
from tests.relay_client import Frame, connected

pytestmark = pytest.mark.anyio

SAVING = ("--appendonly", "yes", "--appendfsync", "always")
SEED = 20_261_125


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running(*SAVING) as server:
        yield server


@pytest.fixture(params=["redis", "valkey"])
def binary(request: pytest.FixtureRequest) -> str:
    return BINARY if request.param == "redis" else valkey_binary()


@pytest.fixture
async def proxy(redis: RedisServer) -> AsyncIterator[Proxy]:
    async with proxied(redis) as made:
        yield made


async def restart(server: RedisServer, work: Storm) -> None:
    server.kill()
    await work.refuse(2, ALL_CALLS)
    await work.until_ready(503)
    await anyio.to_thread.run_sync(server.start)
    await work.accept(5, ALL_CALLS)


async def test_killed_and_restarted_with_its_data(binary: str) -> None:
    with running(*SAVING, binary=binary) as server:
        async with storm(server.url, SEED) as work:
            for _ in range(ROUNDS):
                await restart(server, work)
            await work.until_ready(200)
        work.check()


async def test_killed_and_restarted_empty() -> None:
    with running() as server:
        async with storm(server.url, SEED) as work:
            for _ in range(ROUNDS):
                await restart(server, work)
            await work.until_ready(200)
            await work.until(
                lambda: any("the hooks were forgotten" in relay.log for relay in work.relays),
                "the hooks of the file are set again",
            )
            work.owe_from_now()
            await work.accept(5, ALL_CALLS)
        work.check(losses=True)
        check_told(work, ALL_CALLS)


def check_told(work: Storm, cids: Iterable[str]) -> None:
    """Every watcher was told of a loss in each of these calls."""
    for watcher in work.watchers:
        told = {f["call_cid"] for f in watcher.frames if f.get("recovered") is False}
        assert told >= set(cids), "the loss of each call is told"


async def test_read_only_for_a_while(redis: RedisServer) -> None:
    async with storm(redis.url, SEED) as work:
        with redis.client() as client:
            for _ in range(ROUNDS):
                client.replicaof("127.0.0.1", free_port())
                await work.refuse(2, ALL_CALLS)
                client.replicaof("NO", "ONE")
                await work.accept(5, ALL_CALLS)
        await work.until_ready(200)
    work.check()


async def test_out_of_memory_for_a_while(redis: RedisServer) -> None:
    async with storm(redis.url, SEED) as work:
        with redis.client() as client:
            for _ in range(ROUNDS):
                client.config_set("maxmemory", 1)
                await work.refuse(5, ALL_CALLS)
                client.config_set("maxmemory", 0)
                await work.accept(5, ALL_CALLS)
        await work.until_ready(200)
    work.check()


async def test_black_holed(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED) as work:
        for _ in range(ROUNDS):
            proxy.hold()
            await work.refuse(3, ALL_CALLS)
            answer = await work.until_ready(503)
            assert answer["checks"]["publish"] != "ok"
            proxy.release()
            await work.accept(5, ALL_CALLS)
        await work.until_ready(200)
    work.check()


async def test_answers_lost_and_connections_cut(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED) as work:
        for _ in range(6 * ROUNDS):
            work.random.choice((proxy.mute, proxy.deafen, lambda: None))()
            await anyio.sleep(work.random.uniform(0, 0.02))  # some steps run, some do not
            proxy.cut()
            await work.accept(1, ALL_CALLS)
    work.check()


async def test_slow(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED) as work:
        for _ in range(ROUNDS):
            proxy.delay_s = 0.08  # an event asks up to four times, and has one limit for them
            await work.accept(5, ALL_CALLS)
            proxy.delay_s = 0.0
            await work.accept(5, ALL_CALLS)
        await work.until_ready(200)
    work.check()


async def test_the_primary_is_switched() -> None:
    with Watched() as redis:
        async with storm(redis.url, SEED) as work:
            for _ in range(ROUNDS):
                before = {cid: epochs(work, cid) for cid in ALL_CALLS}
                await anyio.to_thread.run_sync(redis.failover)
                for cid, old in before.items():
                    await work.until(
                        lambda cid=cid, old=old: not old & epochs(work, cid),  # type: ignore[misc]
                        f"{cid} goes on at the new primary, though the old one is still there",
                    )
                await work.accept(20, ALL_CALLS)
                await anyio.to_thread.run_sync(redis.until_joined)
            await work.until_ready(200)
        work.check(losses=True)


def epochs(work: Storm, cid: str) -> set[str]:
    """Return the epochs of a call's last events, as the watchers have them."""
    events = [[e for e in watcher.events if e["call_cid"] == cid] for watcher in work.watchers]
    return {each[-1]["epoch"] for each in events}


async def test_the_primary_dies_and_a_replica_takes_over(binary: str) -> None:
    with Watched(binary=binary) as redis:
        async with storm(redis.url, SEED) as work:
            dead = redis.primary
            dead.kill()
            await anyio.to_thread.run_sync(redis.set_down_after, QUICK_MS)
            await work.refuse(1, ALL_CALLS)
            await work.accept(20, ALL_CALLS)
            await work.until_ready(200)
        work.check(losses=True)


async def test_a_replica_takes_over_without_the_last_events() -> None:
    """Those who had them are told; who comes back from before them gets what is there now."""
    with Watched() as redis:
        async with storm(redis.url, SEED) as work:
            lost = await lose(redis, redis.part, ALL_CALLS, work)
            kept = await history(work, ALL_CALLS)
            await work.until_ready(200)
        work.check(losses=True)
        check_lost(work, kept, lost)


async def test_a_shard_s_replica_takes_over_without_the_last_events() -> None:
    with Cluster(replicas=1) as redis:
        async with storm(redis.url, SEED) as work:
            key = await anyio.to_thread.run_sync(meta_key, redis, CALLS[0])
            theirs = await anyio.to_thread.run_sync(calls_of, redis, redis.owner(key))
            lost = await lose(redis, partial(redis.part, key), theirs, work)
            kept = await history(work, theirs)
            await work.until_ready(200)
        work.check(losses=True)
        check_lost(work, kept, lost)
        for watcher in work.watchers:
            for cid in set(ALL_CALLS) - set(theirs):
                assert len(rows(watcher, cid)) == 1, "the others' calls lost nothing"


def meta_key(redis: Cluster, cid: str) -> str:
    """Return a key of the slot in which a call is."""
    [key] = redis.keys(f"storm:*:m:{cid}")
    return key


def calls_of(redis: Cluster, primary: RedisServer) -> list[str]:
    return [cid for cid in ALL_CALLS if redis.owner(meta_key(redis, cid)) is primary]


async def lose(
    redis: Watched | Cluster,
    part: Callable[[], tuple[RedisServer, RedisServer]],
    cids: Collection[str],
    work: Storm,
) -> dict[str, range]:
    """Have events accepted that only a primary has, and let its replica take over.

    Return the numbers that may be lost, of each call; ten, but for what the ends are off by.
    """
    before = work.accepted()
    primary, replica = await anyio.to_thread.run_sync(part)
    await work.accept(10, cids)
    primary.kill()
    after = work.accepted()
    replica.thaw()
    await anyio.to_thread.run_sync(redis.set_down_after, QUICK_MS)
    await work.accept(20, ALL_CALLS)
    return {cid: range(before[cid] + 1, after[cid] + 2) for cid in cids}


async def history(work: Storm, cids: Iterable[str]) -> dict[str, list[int]]:
    """Return what those get, by a process of its own, who watched from the calls' beginning on."""
    upto = work.accepted()
    async with one_more(work) as relay, connected(relay, "late") as late:
        for cid in cids:
            start = next(f for f in work.watchers[0].events if f["call_cid"] == cid)
            assert (await late.watch(cid, since={**start, "offset": 0}))["recovered"] is True
            await late.until(
                lambda f, cid=cid: f.get("call_cid") == cid and at(f) >= upto[cid]  # type: ignore[misc]
            )
        return {cid: numbers(late, cid) for cid in cids}


def at(frame: Frame) -> int:
    """Return the number of an event, 0 for what is none."""
    return int(frame["custom"]["n"]) if "event_id" in frame else 0


@asynccontextmanager
async def one_more(work: Storm) -> AsyncIterator[RelayProcess]:
    """Run one more relay beside those of a storm."""
    async with AsyncExitStack() as stack:
        relay = stack.push(await started(work.settings))
        yield relay
        await anyio.to_thread.run_sync(relay.stop)


def check_lost(work: Storm, kept: dict[str, list[int]], lost: dict[str, range]) -> None:
    """What history has is all but what was lost, in order; whoever had had that was told."""
    check_told(work, lost)
    for cid, there in kept.items():
        assert there == sorted(set(there))
        missing = set(range(1, there[-1])) - set(there)
        assert len(missing) >= 5, "or this shows nothing"
        assert missing <= set(lost[cid])


async def test_a_slot_is_migrated() -> None:
    with Cluster() as redis:
        async with storm(redis.url, SEED) as work:
            for _ in range(3 * ROUNDS):
                for key in await anyio.to_thread.run_sync(redis.keys, "storm:*:m:*"):
                    await anyio.to_thread.run_sync(redis.migrate, key)
                    await work.accept(2, ALL_CALLS)
            await work.until_ready(200)
        work.check()


async def test_a_shard_s_primary_dies() -> None:
    with Cluster(replicas=1) as redis:
        async with storm(redis.url, SEED) as work:
            key = await anyio.to_thread.run_sync(meta_key, redis, CALLS[0])
            redis.owner(key).kill()
            await anyio.to_thread.run_sync(redis.set_down_after, QUICK_MS)
            await work.refuse(1, [CALLS[0]])
            await work.accept(20, ALL_CALLS)
            await work.until_ready(200)
        work.check(losses=True)


async def test_a_shard_hands_over_to_its_replica() -> None:
    """It waits until the replica has everything: a new epoch, and nothing to tell anybody."""
    with Cluster(replicas=1) as redis:
        async with storm(redis.url, SEED) as work:
            for _ in range(ROUNDS):
                key = await anyio.to_thread.run_sync(meta_key, redis, CALLS[0])
                await anyio.to_thread.run_sync(redis.failover, key)
                await work.accept(20, ALL_CALLS)
                await anyio.to_thread.run_sync(redis.until_joined)
            await work.until_ready(200)
        work.check()
