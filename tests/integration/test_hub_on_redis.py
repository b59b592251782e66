"""The hub on a real Redis whose publications get lost, late and trimmed on the way.

Whatever happens between history and live, and whichever primary takes over, with all that was
written or without the last of it: every watcher has the row of events that its position stands for,
or is told where the row breaks.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from random import Random
from typing import NamedTuple

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
FAILOVERS = 5
LAG = (0, 0, 1, 3, 10)
"""How many of the last writes the primary that takes over has not seen; drawn from these."""


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


class Truth:
    """What happened: the row of events, and which beginning of a row each position stands for.

    One row for each time that a primary served; an epoch belongs to the one in which it began.
    """

    def __init__(self) -> None:
        self.row: list[int] = []
        self._rows: dict[str, list[int]] = {}

    def happened(self, n: int, position: Position) -> None:
        """Note an accepted event."""
        self.row.append(n)
        self.named(position.epoch)
        assert position.offset == len(self.row)

    def named(self, epoch: str) -> None:
        """Note what the epoch is called in which the present primary serves."""
        self._rows[epoch] = self.row

    def taken_over(self, row: list[int]) -> None:
        """Note that another primary serves, which knows these events."""
        self.row = row

    def upto(self, epoch: str, offset: int) -> list[int]:
        """Return the events that who stands at a position has."""
        return self._rows[epoch][:offset]


class State(NamedTuple):
    """A call's order as it was when these events had happened."""

    row: list[int]
    meta: bytes
    history: bytes | None


class Failovers:
    """Has other primaries take over at moments drawn from the seed, some of them behind.

    Where two moments are close, the second one may have missed the first, and what came after it.
    """

    def __init__(self, seed: int, redis: RedisServer, keys: tuple[str, str], truth: Truth) -> None:
        drawn = Random(seed)
        moments = drawn.sample(range(max(LAG) + 1, EVENTS - 1), FAILOVERS)
        self.lags = {moment: drawn.choice(LAG) for moment in moments}
        self.lags[moments[0]] = max(LAG)
        self._client = redis.client(decode_responses=False)
        self._meta, self._history = keys
        self._truth = truth
        self._states: deque[State] = deque(maxlen=1 + max(LAG))

    def happen(self, moment: int) -> bool:
        """Keep the present state; where it is due, have a primary take over that has an older one.

        Return whether one has.
        """
        with self._client.pipeline() as pipe:
            meta, history = pipe.dump(self._meta).dump(self._history).execute()
        self._states.append(State(list(self._truth.row), meta, history))
        if (lag := self.lags.get(moment)) is None:
            return False
        self._take_over(self._states[-1 - lag], f"primary {moment}")
        return True

    def _take_over(self, state: State, replid: str) -> None:
        """Put a state back, as it reads on a server with another replication id."""
        with self._client.pipeline() as pipe:
            pipe.hmget(self._meta, "replid", "epochs")
            pipe.restore(self._meta, 0, state.meta, replace=True).delete(self._history)
            if state.history is not None:
                pipe.restore(self._history, 0, state.history)
            pipe.hset(self._meta, "replid", replid)
            [(before, epochs), *_] = pipe.execute()
        if not before.startswith(b"primary"):  # else nobody has asked since the last one took over
            self._truth.named(epochs.rpartition(b",")[2].partition(b":")[0].decode())
        self._truth.taken_over(list(state.row))

    def close(self) -> None:
        self._client.close()


class Stay:
    """One watch: the events it knew of as it began, and what came."""

    def __init__(self, watcher: FakeWatcher, position: Position, truth: Truth) -> None:
        self.watcher = watcher
        self._began_at = position
        self._truth = truth

    def known(self) -> list[int]:
        """Return the events it has, or was told that it goes without.

        Fails where one is not what its position stands for: a gap, a repeat, or another event than
        those before it led to.
        """
        known = self._truth.upto(*self._began_at)
        for frame in self.watcher.frames:
            if frame["type"] not in ("custom", "call.position"):
                continue
            there = self._truth.upto(frame["epoch"], frame["offset"])
            if frame["type"] == "custom":
                known.append(frame["custom"]["n"])
                assert known == there, (frame, self.watcher.offsets)
            known = there
        return known

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
        self.truth = Truth()
        self.stays: list[Stay] = []
        self._faults = faults

    async def publish(self, n: int) -> None:
        event = events.custom_event(
            cid=CID,
            custom=b'{"n":%d}' % n,
            user=b'{"id":"jane"}',
            event_id=f"event-{n}",
            now_ns=n,
            sender="user:jane",
            minted=False,
        )
        publication = await self.broker.publish(event)
        assert publication.position is not None
        self.truth.happened(n, publication.position)

    async def watch(self, since: Position | None, cid: str = CID) -> Stay:
        watcher = FakeWatcher()
        while True:
            try:
                watching = await self.hub.watch(watcher, cid, since)
                break
            except Unavailable:
                await asyncio.sleep(0.01)
        recovers = watching.recovered and since is not None
        stay = Stay(watcher, since if recovers else watching.position, self.truth)
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

    async def until_all_know(self, stays: Collection[Stay]) -> None:
        async with asyncio.timeout(10):
            while any(stay.known() != self.truth.row for stay in stays):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(1, 1 + 6 * SOAK))
async def test_whatever_is_lost_late_or_trimmed_is_contiguous_or_reported(
    seed: int, redis_server: RedisServer
) -> None:
    faults = Faults(seed)
    async with running(redis_server, f"faults-{seed}:", faults) as rig:
        await disturbed(rig, faults, lambda moment: False)


@pytest.mark.parametrize("seed", range(1, 1 + 6 * SOAK))
async def test_no_failover_passes_other_events_off_under_old_offsets(
    seed: int, redis_server: RedisServer
) -> None:
    faults = Faults(seed)
    async with running(redis_server, f"failovers-{seed}:", faults) as rig:
        keys = rig.broker.keyspace.of_order(CID)
        failovers = Failovers(seed, redis_server, keys, rig.truth)
        print(f"seed {seed}: {failovers.lags} (the last writes lost, by moment)")
        try:
            await disturbed(rig, faults, failovers.happen)
        finally:
            failovers.close()
        assert len(rig.truth.row) < EVENTS


async def disturbed(rig: Rig, faults: Faults, taken_over: Callable[[int], bool]) -> None:
    """Publish while watchers come, go and come back; fail unless each knows what happened.

    ``taken_over`` is asked before each event, and says whether another primary serves now.
    """
    stays = [await rig.watch(None)]
    restless = asyncio.create_task(rig.come_and_go())
    for n in range(1, EVENTS):
        if taken_over(n) and not faults.strikes(0.5):  # else the next event reveals it
            rig.hub.on_interrupted([CID])
        await rig.publish(n)
        await faults.delay(0.008)
    restless.cancel()
    await asyncio.gather(restless, return_exceptions=True)
    stays.append(await rig.watch(Position("unknown", 3)))
    stays.append(await rig.watch(rig.stays[0].position()))
    faults.are_on = False
    await rig.publish(EVENTS)
    await rig.until_all_know(stays)
    assert len(rig.stays) > 5
    for stay in rig.stays:
        stay.known()


async def test_a_lost_last_publication_is_found_when_positions_are_compared(
    redis_server: RedisServer,
) -> None:
    faults = Faults(0)
    faults.are_on = False
    async with running(redis_server, "tail:", faults) as rig:
        stay = await rig.watch(None)
        await rig.publish(1)
        await rig.until_all_know([stay])
        await rig.broker.unsubscribe(CID)
        await rig.publish(2)
        await rig.broker.subscribe(CID)
        rig.hub.on_interrupted([CID])
        await rig.until_all_know([stay])
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
            await rig.publish(1)
            await rig.until_all_know([stay])
            await rig.broker.unsubscribe(CID)
            await rig.publish(2)
            await rig.broker.subscribe(CID)
            frozen.freeze()
            try:
                rig.hub.on_interrupted([CID, *others])
                await rig.until_all_know([stay])
            finally:
                frozen.thaw()
            assert stay.watcher.offsets == [1, 2]
