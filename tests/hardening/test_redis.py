"""Redis breaks in every way it can: what is accepted arrives, or its loss is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from tests.broker.proxy import Proxy, proxied
from tests.hardening.rig import CALLS, ROUNDS, Storm, storm
from tests.redis_server import RedisServer, free_port, running
from tests.redis_shapes import Cluster, Watched

pytestmark = pytest.mark.anyio

SAVING = ("--appendonly", "yes", "--appendfsync", "always")
SEED = 20_261_125


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running(*SAVING) as server:
        yield server


@pytest.fixture
async def proxy(redis: RedisServer) -> AsyncIterator[Proxy]:
    async with proxied(redis) as made:
        yield made


async def restart(server: RedisServer, work: Storm) -> None:
    server.kill()
    await work.refuse(2)
    await work.until_ready(503)
    await anyio.to_thread.run_sync(server.start)
    await work.accept(5)


async def test_killed_and_restarted_with_its_data(redis: RedisServer) -> None:
    async with storm(redis.url, SEED) as work:
        for _ in range(ROUNDS):
            await restart(redis, work)
        await work.until_ready(200)
    work.check()


async def test_killed_and_restarted_empty() -> None:
    with running() as server:
        async with storm(server.url, SEED) as work:
            for _ in range(ROUNDS):
                await restart(server, work)
            await work.until_ready(200)
        work.check(losses=True)
        for watcher in work.watchers:
            told = [f["call_cid"] for f in watcher.frames if f.get("recovered") is False]
            assert sorted(set(told)) == sorted(CALLS), "the loss of each call is told"


async def test_read_only_for_a_while(redis: RedisServer) -> None:
    async with storm(redis.url, SEED) as work:
        with redis.client() as client:
            for _ in range(ROUNDS):
                client.replicaof("127.0.0.1", free_port())
                await work.refuse(2)
                client.replicaof("NO", "ONE")
                await work.accept(5)
        await work.until_ready(200)
    work.check()


async def test_out_of_memory_for_a_while(redis: RedisServer) -> None:
    async with storm(redis.url, SEED) as work:
        with redis.client() as client:
            for _ in range(ROUNDS):
                client.config_set("maxmemory", 1)
                await work.refuse(5)
                client.config_set("maxmemory", 0)
                await work.accept(5)
        await work.until_ready(200)
    work.check()


async def test_black_holed(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED) as work:
        for _ in range(ROUNDS):
            proxy.hold()
            await work.refuse(3)
            answer = await work.until_ready(503)
            assert answer["checks"]["publish"] != "ok"
            proxy.release()
            await work.accept(5)
        await work.until_ready(200)
    work.check()


async def test_answers_lost_and_connections_cut(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED) as work:
        for _ in range(6 * ROUNDS):
            work.random.choice((proxy.mute, proxy.deafen, lambda: None))()
            await anyio.sleep(work.random.uniform(0, 0.02))  # some steps run, some do not
            proxy.cut()
            await work.accept(1)
    work.check()


async def test_slow(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED) as work:
        for _ in range(ROUNDS):
            proxy.delay_s = 0.15
            await work.accept(5)
            proxy.delay_s = 0.0
            await work.accept(5)
        await work.until_ready(200)
    work.check()


async def test_the_primary_is_switched() -> None:
    with Watched() as redis:
        async with storm(redis.url, SEED) as work:
            for _ in range(ROUNDS):
                await anyio.to_thread.run_sync(redis.failover)
                await work.accept(20)
            await work.until_ready(200)
        work.check(losses=True)


async def test_the_primary_dies_and_a_replica_takes_over() -> None:
    with Watched() as redis:
        async with storm(redis.url, SEED) as work:
            dead = redis.primary
            dead.kill()
            await work.refuse(1)
            await work.accept(20)
            await work.until_ready(200)
        work.check(losses=True)


async def test_a_slot_is_migrated() -> None:
    with Cluster() as redis:
        async with storm(redis.url, SEED) as work:
            for _ in range(3 * ROUNDS):
                for key in await anyio.to_thread.run_sync(redis.keys, "storm:*:m:*"):
                    await anyio.to_thread.run_sync(redis.migrate, key)
                    await work.accept(2)
            await work.until_ready(200)
        work.check()


async def test_a_shard_s_primary_dies() -> None:
    with Cluster(replicas=1) as redis:
        async with storm(redis.url, SEED) as work:
            [key, *_] = await anyio.to_thread.run_sync(redis.keys, "storm:*:m:*")
            redis.owner(key).kill()
            await work.accept(20)
            await work.until_ready(200)
        work.check(losses=True)
