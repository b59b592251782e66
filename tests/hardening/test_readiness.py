"""/readyz turns red within five seconds of events not flowing, names the hop, and means it.

Real relays with the settings of production, a real Redis, real time. What is held against the five
seconds is what the test measured, less what the machine let it wait beyond what it asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Final

import anyio
import httpx
import pytest

from relay.broker import Limits
from relay.broker.keyspace import Keyspace
from tests import ledger
from tests.broker.proxy import Proxy, behind_proxies, proxied
from tests.hardening.rig import CALLS, DRAIN_S, ROUNDS, Storm, numbers, storm
from tests.integration.doors import event_path
from tests.processes import API_KEY, RelayProcess
from tests.redis_server import RedisServer, running
from tests.redis_shapes import QUICK_MS, Cluster
from tests.relay_client import Client, Frame, connected

pytestmark = pytest.mark.anyio

SEED = 20_261_127
PRODUCTION_S: Final = Limits().publish_timeout_s
RED_WITHIN_S: Final = 5.0
HEALED_WITHIN_S: Final = 15.0
"""Less than a call has to be silent for to be looked at: what is missing then, healing found."""
SERVED_AGAIN_WITHIN_S: Final = 2.0
ARRIVED_WITHIN_S: Final = 10.0
LOST_TAIL_S: Final = 30.0
POLL_S: Final = 0.05
GIVEN_UP: Final = "redis connection lost"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
async def proxy(redis: RedisServer) -> AsyncIterator[Proxy]:
    async with proxied(redis) as made:
        yield made


class Clock:
    """Times a wait. ``late_s`` is what the machine added to the pauses that were asked for."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.late_s = 0.0

    async def pause(self) -> None:
        before = time.monotonic()
        await asyncio.sleep(POLL_S)
        self.late_s += time.monotonic() - before - POLL_S

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._began - self.late_s


async def red(work: Storm, *hops: str) -> None:
    """Return once /readyz names these hops and no other one: within five seconds from now."""
    await red_at(work.relays[0], *hops)


async def red_at(
    relay: RelayProcess, *hops: str, why: str = "", beside: Collection[str] = ()
) -> None:
    """Return once /readyz names these hops, and why; others may be red only ``beside`` them."""
    clock = Clock()
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=30) as client:
        while True:
            answer = await client.get("/readyz")
            said: Frame = answer.json()
            bad = {hop for hop, problem in said["checks"].items() if problem != "ok"}
            assert bad <= {*hops, *beside}, said
            assert clock.passed_s < RED_WITHIN_S, said
            if bad >= set(hops) and why in said.get("message", ""):
                break
            await clock.pause()
    print(f"{hops}: red after {clock.passed_s:.2f} s, {clock.late_s:.2f} s of waiting left out")
    assert answer.status_code == 503
    assert all(f"{hop}: " in said["message"] for hop in hops)


async def complete(work: Storm) -> None:
    """Return once every watcher has everything, though nothing more is sent."""
    async with asyncio.timeout(HEALED_WITHIN_S):
        for watcher in work.watchers:
            for sender in work.senders:
                while numbers(watcher, sender.cid)[-1:] != sender.accepted[-1:]:
                    await asyncio.sleep(POLL_S)


async def test_a_subscription_that_is_a_black_hole(proxy: Proxy) -> None:
    async with storm(proxy.url, SEED, relays=1, timeout_s=PRODUCTION_S) as work:
        for _ in range(ROUNDS):
            given_up = work.relays[0].log.count(GIVEN_UP)
            proxy.hold("subscribe")
            await red(work, "subscription")
            await work.until(
                lambda n=given_up: work.relays[0].log.count(GIVEN_UP) > n,  # type: ignore[misc]
                "the connection is given up, with all that it holds",
            )
            await work.fall_silent()  # so that no later event tells of those that are missing
            proxy.release()
            await complete(work)
            await work.until_ready(200)
            work.start()
    work.check()


@pytest.mark.parametrize(
    ("held", "hops", "timeout_s"),
    [
        pytest.param(("publish",), ("publish",), PRODUCTION_S, id="publish"),
        pytest.param(("command",), ("broker",), PRODUCTION_S, id="command"),
        pytest.param((), ("broker", "publish"), 4 * RED_WITHIN_S, id="all, and a patient relay"),
    ],
)
async def test_connections_that_are_black_holes(
    proxy: Proxy, held: tuple[str, ...], hops: tuple[str, ...], timeout_s: float
) -> None:
    async with storm(proxy.url, SEED, relays=1, timeout_s=timeout_s) as work:
        for _ in range(ROUNDS):
            proxy.hold(*held)
            await red(work, *hops)
            proxy.release()
            await work.until_ready(200)
    work.check()


async def test_a_redis_that_is_killed(redis: RedisServer) -> None:
    async with storm(redis.url, SEED, relays=1, timeout_s=PRODUCTION_S) as work:
        for _ in range(ROUNDS):
            redis.kill()
            await red(work, "broker", "publish")
            await anyio.to_thread.run_sync(redis.start)
            await work.until_ready(200)
    work.check()


async def test_a_user_who_may_publish_and_no_longer_subscribe(redis: RedisServer) -> None:
    """Every door goes on answering 201 and nothing arrives: the silence that others complain of."""
    with redis.client() as client:
        rights = ["+@all", "~*", "&*", ">secret", "on"]
        client.execute_command("ACL", "SETUSER", "relay", *rights)
        url = redis.url.replace("redis://", "redis://relay:secret@")
        async with storm(url, SEED, relays=1, timeout_s=PRODUCTION_S) as work:
            for _ in range(ROUNDS):
                refused = work.refusals(CALLS)
                client.execute_command("ACL", "SETUSER", "relay", "-ssubscribe")
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await red(work, "subscription")
                await work.fall_silent()
                assert work.refusals(CALLS) == refused
                client.execute_command("ACL", "SETUSER", "relay", "+ssubscribe")
                await complete(work)
                await work.until_ready(200)
                work.start()
        work.check()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[RedisServer]:
    """Return a server that another one may become a replica of."""
    with running() as server:
        yield server


@pytest.mark.parametrize(
    ("broken", "mended", "why", "beside"),
    [
        pytest.param(
            "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "out of memory", (), id="full"
        ),
        pytest.param(
            "CONFIG SET min-replicas-to-write 1",
            "CONFIG SET min-replicas-to-write 0",
            "too few replicas",
            (),
            id="alone",
        ),
        # Reading a position begins an epoch, so the other connection meets it as well.
        pytest.param(
            "REPLICAOF 127.0.0.1 {port}",
            "REPLICAOF NO ONE",
            "read-only",
            ("broker",),
            id="read-only",
        ),
    ],
)
async def test_a_redis_that_answers_and_refuses_every_event(
    redis: RedisServer,
    elsewhere: RedisServer,
    broken: str,
    mended: str,
    why: str,
    beside: Collection[str],
) -> None:
    with (
        redis.client() as server,
        RelayProcess(redis_url=redis.url, drain_timeout=DRAIN_S) as relay,
    ):
        headers = {"authorization": relay.token(), "stream-auth-type": "jwt"}
        async with httpx.AsyncClient(
            base_url=relay.base_url, headers=headers, timeout=30
        ) as client:
            await send(client, CALLS[0], 1)
            server.execute_command(*broken.format(port=elsewhere.port).split())
            await red_at(relay, "publish", why=why, beside=beside)
            assert (await post(client, CALLS[0], 2)).status_code == 503
            server.execute_command(*mended.split())
            async with asyncio.timeout(RED_WITHIN_S):
                while (await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(POLL_S)
            await send(client, CALLS[0], 3)
        relay.terminate()  # errors stand in its log, as they should
        assert relay.wait() == 0


@pytest.mark.parametrize(
    ("coverage", "first", "why"),
    [
        pytest.param("yes", 0, "no node of the cluster serves anything", id="nothing"),
        pytest.param("no", 8192, "no server of the Cluster serves the slot", id="a half"),
    ],
)
async def test_a_cluster_that_serves_not_all_calls(coverage: str, first: int, why: str) -> None:
    """As after the restart of a node that has forgotten what it served."""
    keys = Keyspace("relay:")
    cid = next(
        cid
        for cid in (f"default:{n}" for n in range(100))
        if keys.slot(keys.partition(cid)) >= first
    )
    with (
        Cluster("--cluster-require-full-coverage", coverage, primaries=1) as cluster,
        RelayProcess(redis_url=cluster.url, drain_timeout=DRAIN_S) as relay,
    ):
        [server] = cluster.servers
        headers = {"authorization": relay.token(), "stream-auth-type": "jwt"}
        async with httpx.AsyncClient(
            base_url=relay.base_url, headers=headers, timeout=30
        ) as client:
            await send(client, cid, 1)
            # A server that served nothing waits for a part of it before it serves again.
            cluster.set_down_after(QUICK_MS)
            cluster.run(server, "CLUSTER", "DELSLOTSRANGE", first, 16383)
            refused = asyncio.create_task(post(client, cid, 2))
            await red_at(relay, "broker", "publish", why=why)
            assert (await refused).status_code == 503
            cluster.run(server, "CLUSTER", "ADDSLOTSRANGE", first, 16383)
            async with asyncio.timeout(SERVED_AGAIN_WITHIN_S):
                while (await post(client, cid, 3)).status_code != 201:
                    await asyncio.sleep(POLL_S)
            async with asyncio.timeout(RED_WITHIN_S):
                while (await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(POLL_S)
        relay.terminate()
        assert relay.wait() == 0


@pytest.mark.parametrize(
    ("connection", "hop"),
    [("subscribe", "subscription"), ("publish", "publish"), ("command", "broker")],
)
async def test_one_connection_to_one_shard(connection: str, hop: str) -> None:
    redis = Cluster(fronted=True)
    async with (
        behind_proxies(redis) as proxies,
        storm(redis.url, SEED, relays=1, timeout_s=PRODUCTION_S) as work,
    ):
        for _ in range(ROUNDS):
            proxy = proxies[redis.servers[-1]]  # not the one that is asked where any would do
            proxy.hold(connection)
            await red(work, hop)
            proxy.release()
            await work.until_ready(200)
    work.check()


# -- what no canary tells -------------------------------------------------------------------------


@pytest.fixture
async def relay(proxy: Proxy) -> AsyncIterator[RelayProcess]:
    """Return a relay as it is in production; the proxy that it needs runs on the tests' loop."""
    process = RelayProcess(redis_url=proxy.url, drain_timeout=DRAIN_S)
    await anyio.to_thread.run_sync(process.start)
    yield process
    await anyio.to_thread.run_sync(process.stop)


async def send(client: httpx.AsyncClient, cid: str, n: int) -> None:
    answer = await post(client, cid, n)
    assert answer.status_code == 201, answer.text


async def post(client: httpx.AsyncClient, cid: str, n: int) -> httpx.Response:
    body = {"custom": {"n": n}, "user_id": "jane"}
    return await client.post(event_path(cid), params={"api_key": API_KEY}, json=body)


async def within(limit_s: float, condition: Callable[[], bool], what: str) -> float:
    """Return after how many seconds ``condition`` holds; fails after ``limit_s``."""
    clock = Clock()
    while not condition():
        assert clock.passed_s < limit_s, f"in vain: {what}"
        await clock.pause()
    return clock.passed_s


async def until_seen(watcher: Client, cid: str, n: int, limit_s: float) -> float:
    """Return after how many seconds a watcher has an event; fails after ``limit_s``."""
    return await within(limit_s, lambda: n in numbers(watcher, cid), f"event {n} of {cid}")


async def lose_the_last(
    proxy: Proxy, client: httpx.AsyncClient, watcher: Client, cid: str, n: int
) -> None:
    """Send one event that arrives, and one that is lost between Redis and the relay."""
    await send(client, cid, n)
    await until_seen(watcher, cid, n, ARRIVED_WITHIN_S)
    lost = proxy.lost
    proxy.lose(b'"n":%d}' % (n + 1))
    await send(client, cid, n + 1)
    await within(ARRIVED_WITHIN_S, lambda: proxy.lost > lost, "it is lost")
    assert n + 1 not in numbers(watcher, cid)


async def test_a_lost_last_event_of_an_idle_call_arrives_within_thirty_seconds(
    proxy: Proxy, relay: RelayProcess
) -> None:
    """All is green meanwhile: the canaries on the same connection come back."""
    headers = {"authorization": relay.token(), "stream-auth-type": "jwt"}
    async with (
        httpx.AsyncClient(base_url=relay.base_url, headers=headers, timeout=30) as client,
        connected(relay, "ann") as watcher,
    ):
        for cid in CALLS:
            await watcher.watch(cid)
        for n in range(1, 1 + 2 * ROUNDS, 2):
            for cid in CALLS:
                await lose_the_last(proxy, client, watcher, cid, n)
            took = await asyncio.gather(
                *[until_seen(watcher, cid, n + 1, LOST_TAIL_S) for cid in CALLS]
            )
            print("found after", [f"{each:.1f} s" for each in took])
            assert (await client.get("/readyz")).status_code == 200
        for cid in CALLS:
            assert numbers(watcher, cid) == list(range(1, 1 + 2 * ROUNDS))
    books = await ledger.read(relay)
    books.check()
    repairs = books.total("relay_repairs_total", outcome="filled")
    assert repairs == len(CALLS) * ROUNDS == proxy.lost
