"""The hub on a real Redis whose publications get lost, late and trimmed on the way.

Whatever happens between history and live, every watcher gets a contiguous row of offsets, or is
told where the row breaks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from random import Random

import pytest

from relay import events
from relay.broker import History, Limits, Listener
from relay.broker.redis import RedisBroker
from relay.errors import Unavailable
from relay.events import Position
from relay.gateway.hub import Hub
from tests.gateway.fakes import FakeWatcher
from tests.redis_server import RedisServer
from tests.redis_shapes import Cluster

pytestmark = pytest.mark.anyio

SOAK = int(os.environ.get("SOAK", "1"))
CID = "default:faults"
EVENTS = 200
STAYS_S = 0.08


class Faults:
    """What may happen, drawn from one seed. ``off`` ends it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.are_on = True

    def strikes(self, probability: float) -> bool:
        return self.are_on and self.random.random() < probability

    async def delay(self, longest_s: float) -> None:
        if self.are_on:
            await asyncio.sleep(self.random.uniform(0.0, longest_s))


class FaultyListener:
    """Stands between the broker and the hub: loses publications and delivers others late."""

    def __init__(self, hub: Listener, faults: Faults) -> None:
        self._hub = hub
        self._faults = faults

    def on_publication(self, cid: str, position: Position | None, body: bytes) -> None:
        if self._faults.strikes(0.1):
            return
        if self._faults.strikes(0.2):
            late_s = self._faults.random.uniform(0.0, 0.03)
            loop = asyncio.get_running_loop()
            loop.call_later(late_s, self._hub.on_publication, cid, position, body)
            return
        self._hub.on_publication(cid, position, body)

    def on_roster(self, cid: str) -> None:
        self._hub.on_roster(cid)

    def on_interrupted(self, cids: Collection[str]) -> None:
        self._hub.on_interrupted(cids)


class FaultyBroker(RedisBroker):
    """A Redis broker whose history is trimmed before a read, read late, or not to be had."""

    def __init__(self, url: str, prefix: str, faults: Faults) -> None:
        super().__init__(url, prefix, Limits(), "node")
        self._faults = faults

    async def start(self, listener: Listener, live: Callable[[bytes], None]) -> None:
        await super().start(FaultyListener(listener, self._faults), live)

    async def history(self, cid: str, after: int) -> History:
        if self._faults.strikes(0.1):
            raise Unavailable("not now")
        if self._faults.strikes(0.15):
            await self._trim(cid, keep=self._faults.random.randrange(0, 8))
        await self._faults.delay(0.02)
        page = await super().history(cid, after)
        await self._faults.delay(0.02)
        return page

    async def _trim(self, cid: str, keep: int) -> None:
        _, history = self.keyspace.of_order(cid)
        await self.commands.request("XTRIM", history, "MAXLEN", keep)


class Stay:
    """One watch: from where its row begins, and what came."""

    def __init__(self, watcher: FakeWatcher, begins_after: int) -> None:
        self.watcher = watcher
        self._begins_after = begins_after

    def last(self) -> int:
        """Return the offset up to which it knows everything; fails on a gap it was not told of."""
        last = self._begins_after
        for item in self.watcher.offsets:
            if isinstance(item, str):
                last = int(item.removeprefix("lost "))
            else:
                assert item == last + 1, self.watcher.offsets
                last = item
        return last

    def position(self) -> Position | None:
        """Return the position of the last event it got."""
        kept = [frame for frame in self.watcher.frames if frame["type"] == "custom"]
        return Position(kept[-1]["epoch"], kept[-1]["offset"]) if kept else None


@asynccontextmanager
async def running(redis: RedisServer | Cluster, prefix: str, faults: Faults) -> AsyncIterator[Rig]:
    broker = FaultyBroker(redis.url, prefix, faults)
    hub = Rig(broker, faults)
    await broker.start(hub.hub, lambda _: None)
    await hub.hub.start()
    try:
        yield hub
    finally:
        await hub.hub.aclose()
        await broker.aclose()


class Rig:
    """A hub, what was published through its broker, and everyone who watched."""

    def __init__(self, broker: FaultyBroker, faults: Faults) -> None:
        self.hub = Hub(broker, Random(0))
        self.broker = broker
        self.published: dict[int, int] = {}
        self.stays: list[Stay] = []
        self._faults = faults

    async def publish(self, n: int, cid: str = CID) -> int:
        event = events.custom_event(
            cid=cid,
            custom=b'{"n":%d}' % n,
            user=b'{"id":"jane"}',
            event_id=f"event-{n}",
            now_ns=n,
            sender="user:jane",
            minted=False,
        )
        publication = await self.broker.publish(event)
        assert publication.position is not None
        self.published[publication.position.offset] = n
        return publication.position.offset

    async def watch(self, since: Position | None, cid: str = CID) -> Stay:
        watcher = FakeWatcher()
        while True:
            try:
                watching = await self.hub.watch(watcher, cid, since)
                break
            except Unavailable:
                await asyncio.sleep(0.01)
        begins_after = watching.position.offset
        if watching.recovered and since is not None:
            begins_after = since.offset
        stay = Stay(watcher, begins_after)
        self.stays.append(stay)
        return stay

    async def come_and_go(self) -> None:
        """Watch for a moment, leave for a moment, and come back from the last position."""
        since: Position | None = None
        while True:
            stay = await self.watch(since)
            await asyncio.sleep(self._faults.random.uniform(0.0, STAYS_S))
            self.hub.unwatch(stay.watcher, CID)
            since = stay.position() or since
            await asyncio.sleep(self._faults.random.uniform(0.0, STAYS_S))

    async def until_all_know(self, top: int, stays: Collection[Stay]) -> None:
        async with asyncio.timeout(10):
            while any(stay.last() < top for stay in stays):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(1, 1 + 6 * SOAK))
async def test_whatever_is_lost_late_or_trimmed_is_contiguous_or_reported(
    seed: int, redis_server: RedisServer
) -> None:
    faults = Faults(seed)
    async with running(redis_server, f"faults-{seed}:", faults) as rig:
        stays = [await rig.watch(None)]
        restless = asyncio.create_task(rig.come_and_go())
        for n in range(1, EVENTS):
            await rig.publish(n)
            await faults.delay(0.008)
        restless.cancel()
        await asyncio.gather(restless, return_exceptions=True)
        stays.append(await rig.watch(Position("unknown", 3)))
        stays.append(await rig.watch(rig.stays[0].position()))
        faults.are_on = False
        top = await rig.publish(EVENTS)
        await rig.until_all_know(top, stays)
        assert len(rig.stays) > 5
        for stay in rig.stays:
            stay.last()
            for frame in stay.watcher.frames:
                if frame["type"] == "custom":
                    assert frame["custom"]["n"] == rig.published[frame["offset"]]


async def test_a_lost_last_publication_is_found_when_positions_are_compared(
    redis_server: RedisServer,
) -> None:
    faults = Faults(0)
    faults.are_on = False
    async with running(redis_server, "tail:", faults) as rig:
        stay = await rig.watch(None)
        await rig.until_all_know(await rig.publish(1), [stay])
        await rig.broker.unsubscribe(CID)
        top = await rig.publish(2)
        await rig.broker.subscribe(CID)
        rig.hub.on_interrupted([CID])
        await rig.until_all_know(top, [stay])
        assert stay.watcher.offsets == [1, 2]


async def test_a_shard_that_is_silent_hides_no_lost_tail_of_another() -> None:
    faults = Faults(0)
    faults.are_on = False
    with Cluster("--cluster-require-full-coverage", "no") as cluster:
        async with running(cluster, "shards:", faults) as rig:
            stay = await rig.watch(None)
            keyspace = rig.broker.keyspace
            home = cluster.owner(keyspace.channel(CID))
            others = [f"default:{number}" for number in range(40)]
            for cid in others:
                await rig.watch(None, cid)
            away = {cid: cluster.owner(keyspace.channel(cid)) for cid in others}
            frozen = next(server for server in away.values() if server is not home)
            await rig.until_all_know(await rig.publish(1), [stay])
            await rig.broker.unsubscribe(CID)
            top = await rig.publish(2)
            await rig.broker.subscribe(CID)
            frozen.freeze()
            try:
                rig.hub.on_interrupted([CID, *others])
                await rig.until_all_know(top, [stay])
            finally:
                frozen.thaw()
            assert stay.watcher.offsets == [1, 2]
