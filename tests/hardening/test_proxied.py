"""The way to a primary breaks while the primary lives: behind Sentinel, and of one shard.

The relays, the replicas and the sentinels reach the data nodes through proxies alone. What was on
its way when the way broke arrives late, after the relays have given it up.
"""

from __future__ import annotations

import anyio
import pytest

from tests.broker.proxy import Proxy, behind_proxies
from tests.hardening.rig import CALLS, ROUNDS, TIMEOUT_S, Storm, storm
from tests.redis_server import RedisServer
from tests.redis_shapes import PATIENT_MS, QUICK_MS, Cluster, Watched

pytestmark = pytest.mark.anyio

SEED = 20_261_126
OF_RELAYS = ("publish", "command", "subscribe", "wake", "ingest", "map")
"""The names of relays' connections: not those of replicas and sentinels."""


async def primary_of(redis: Watched) -> RedisServer:
    return await anyio.to_thread.run_sync(lambda: redis.primary)


async def shards(redis: Cluster) -> dict[RedisServer, list[str]]:
    """Return the calls of each primary that has any."""
    keys = await anyio.to_thread.run_sync(redis.keys, "storm:*:m:*")
    found: dict[RedisServer, list[str]] = {}
    for cid in CALLS:
        key = next(key for key in keys if key.endswith(f":m:{cid}"))
        owner = await anyio.to_thread.run_sync(redis.owner, key)
        found.setdefault(owner, []).append(cid)
    return found


async def test_a_primary_that_its_sentinels_still_reach_is_a_black_hole() -> None:
    redis = Watched(fronted=True)
    async with behind_proxies(redis) as proxies, storm(redis.url, SEED) as work:
        proxy = proxies[await primary_of(redis)]
        for _ in range(ROUNDS):
            proxy.hold(*OF_RELAYS)
            await work.refuse(3)
            answer = await work.until_ready(503)
            assert answer["checks"]["publish"] != "ok"
            proxy.release()
            await work.accept(5)
        await work.until_ready(200)
    work.check()


async def test_a_primary_that_nobody_reaches_is_replaced_and_comes_back_late() -> None:
    """What the old primary gets to read when the network is whole again counts for nothing."""
    redis = Watched(fronted=True)
    async with behind_proxies(redis) as proxies, storm(redis.url, SEED) as work:
        for _ in range(ROUNDS):
            old = await primary_of(redis)
            proxies[old].hold()
            await anyio.to_thread.run_sync(redis.set_down_after, QUICK_MS)
            await work.refuse(1)
            await work.accept(20)  # by the other one, while this one still says nothing
            await anyio.to_thread.run_sync(redis.until_replaced, old)
            await anyio.to_thread.run_sync(redis.set_down_after, PATIENT_MS)
            proxies[old].release()
            await work.accept(20)
            await until_left(old, work)
            assert await primary_of(redis) is not old
            await anyio.to_thread.run_sync(redis.until_joined)
        await work.until_ready(200)
    work.check(losses=True)


async def until_left(server: RedisServer, work: Storm) -> None:
    """Return once no relay has a connection to a server."""
    with server.client() as client:
        await work.until(
            lambda: not any(each["name"].startswith("relay:") for each in client.client_list()),
            "the old primary is left alone",
        )


async def go_slow(proxy: Proxy, work: Storm) -> None:
    """Be slow, though in time, and then quick again; events are accepted in both."""
    proxy.delay_s = work.random.uniform(0.05, 0.15)
    await work.accept(5)
    proxy.delay_s = 0.0
    await work.accept(5)


async def test_a_slow_primary_behind_sentinel() -> None:
    redis = Watched(fronted=True)
    async with behind_proxies(redis) as proxies, storm(redis.url, SEED) as work:
        proxy = proxies[await primary_of(redis)]
        for _ in range(ROUNDS):
            await go_slow(proxy, work)
        await work.until_ready(200)
    work.check()


async def test_a_shard_is_a_black_hole_for_its_own_calls_alone() -> None:
    """The others' are not refused, in a time which a busy machine does not use up by itself."""
    redis = Cluster(fronted=True)
    async with (
        behind_proxies(redis) as proxies,
        storm(redis.url, SEED, timeout_s=4 * TIMEOUT_S) as work,
    ):
        for _ in range(ROUNDS):
            by_shard = await shards(redis)
            dark = work.random.choice(list(by_shard))
            theirs, others = by_shard[dark], set(CALLS) - set(by_shard[dark])
            before = work.refusals(others)
            proxies[dark].hold()
            await work.refuse(3, theirs)
            await work.until_ready(503, red="publish")
            await work.accept(5, others)
            assert work.refusals(others) == before
            proxies[dark].release()
            await work.accept(5)
        await work.until_ready(200)
    work.check()


async def test_a_shard_that_is_a_black_hole_is_taken_over_and_comes_back_late() -> None:
    redis = Cluster(replicas=1, fronted=True)
    async with behind_proxies(redis) as proxies, storm(redis.url, SEED) as work:
        for _ in range(ROUNDS):
            by_shard = await shards(redis)
            dark = work.random.choice(list(by_shard))
            proxies[dark].hold()
            await work.refuse(1, by_shard[dark])
            [key, *_] = await anyio.to_thread.run_sync(redis.keys, f"storm:*:m:{by_shard[dark][0]}")
            await anyio.to_thread.run_sync(redis.failover, key, "FORCE")
            await work.accept(10)
            proxies[dark].release()
            await work.accept(10)
            await anyio.to_thread.run_sync(redis.until_joined)
        await work.until_ready(200)
    work.check(losses=True)


async def test_a_slow_shard() -> None:
    redis = Cluster(fronted=True)
    async with behind_proxies(redis) as proxies, storm(redis.url, SEED) as work:
        for _ in range(ROUNDS):
            by_shard = await shards(redis)
            slow = work.random.choice(list(by_shard))
            await go_slow(proxies[slow], work)
        await work.until_ready(200)
    work.check()


async def test_a_shard_that_answers_too_late() -> None:
    """Each step runs, and each answer comes after its sender was told to repeat it."""
    redis = Cluster(fronted=True)
    async with behind_proxies(redis) as proxies, storm(redis.url, SEED) as work:
        for _ in range(ROUNDS):
            by_shard = await shards(redis)
            slow = work.random.choice(list(by_shard))
            proxies[slow].delay_s = 0.6
            await work.refuse(2, by_shard[slow])
            proxies[slow].delay_s = 0.0
            await work.accept(5)
        await work.until_ready(200)
    work.check()
