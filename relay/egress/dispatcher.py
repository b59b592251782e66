"""The dispatcher: this process's share of the outbox, delivered to the hooks.

Partitions are shared out by rendezvous hashing over the processes that deliver, so everybody agrees
without talking and little moves when one comes or goes. A process takes its own partitions
as they become free: at once when they were given back, when the lease has run out otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Final

from relay import logs, metrics
from relay.broker import HookList, Lease, LeaseLost, Outbox, Store, Unavailable
from relay.egress.breaker import Rests, Slots
from relay.egress.lane import Bounds, Lane
from relay.egress.partition import Partition, Receiver
from relay.egress.sinks import Sink
from relay.egress.timers import LoopTimers, Timers
from relay.hooks import Hook
from relay.tasks import Tasks, together

__all__ = ["Dispatcher", "shares"]

log = logs.get(__name__)

ROUNDS_PER_LEASE: Final = 4
"""How often a lease is renewed before it would run out, so that some renewals may fail."""

_DEFAULTS: Final = Bounds()


class Dispatcher:
    """Delivers what is owed, this process's share of it.

    ``restore`` is called when Redis has forgotten the hooks: those of the operator's file return.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        store: Store,
        sink: Sink,
        rng: Random,
        timers: Timers | None = None,
        bounds: Bounds = _DEFAULTS,
        restore: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.outbox = outbox
        self.timers: Timers = timers or LoopTimers()
        self.rng = rng
        self.hooks = HookList()
        self.bounds = bounds
        self.slots = Slots(bounds.attempts)
        self.held_bytes = 0
        self._store = store
        self._sink = sink
        self._restore = restore
        self._lanes: dict[str, Lane] = {}
        self._retired: set[Lane] = set()
        self._hungry: dict[Lane, None] = {}
        self._partitions: dict[int, Partition] = {}
        self._leaving: dict[int, Partition] = {}
        self._rests = Rests(rng)
        self._handing_over: set[asyncio.Task[None]] = set()
        self._refreshing = asyncio.Lock()
        self._reads = 0
        self._is_fresh = False
        self._is_closing = False
        self._has_left = False
        self._tasks = Tasks("dispatcher")

    # -- coming and going -----------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to deliver; raises ``Unavailable``."""
        await self.outbox.start(self._woken)
        await self.refresh()
        self._tasks.spawn(self._round())

    async def drain(self, limit_s: float) -> None:
        """Begin nothing more, finish what is under way, and give the partitions back, in time."""
        self._is_closing = True
        goodbye = self._tasks.spawn(self._say_goodbye())
        self._leave(list(self._partitions.values()))
        log.info("deliveries are handed over", partitions=len(self._handing_over))
        await asyncio.wait([goodbye, *self._handing_over], timeout=limit_s)

    async def aclose(self) -> None:
        """End everything at once. What was under way will be repeated, under the same id."""
        self._is_closing = True
        await self._tasks.aclose()
        await self._say_goodbye()
        for lane in (*self._lanes.values(), *self._retired):
            await lane.aclose()
        partitions = (*self._partitions.values(), *self._leaving.values())
        await asyncio.gather(*map(self._end, partitions))
        await self._sink.aclose()
        await self.outbox.aclose()

    async def _say_goodbye(self) -> None:
        """Let the others share out anew, at their next look around; once is enough."""
        if self._has_left:
            return
        self._has_left = True
        try:
            await self.outbox.leave()
        except Unavailable as error:
            log.info("left without a goodbye", reason=error.message)

    def troubles(self) -> Mapping[str, str]:
        """Return what an operator should look at, by the hook's id."""
        return {
            hook_id: f"keeps failing and is left alone; {self._pending(lane)} deliveries wait"
            for hook_id, lane in self._lanes.items()
            if lane.breaker.is_open
        }

    # -- hooks ----------------------------------------------------------------------------------

    @property
    def receivers(self) -> Mapping[str, Receiver]:
        """The lanes of the enabled hooks, by id."""
        return self._lanes

    async def refresh(self) -> None:
        """Read the hooks anew; the lanes are then those of the new list."""
        async with self._refreshing:
            await self._refresh()

    async def know(self, version: int) -> None:
        """Read the hooks anew unless those of this version are known, or later ones."""
        if version <= self.hooks.version:
            return
        reads = self._reads
        async with self._refreshing:
            if self._reads == reads:
                await self._refresh()
            elif not self._is_fresh:  # many partitions ask at once: one waits for Redis, not each
                raise Unavailable("the hooks cannot be read")

    async def _refresh(self) -> None:
        self._reads += 1
        self._is_fresh = False
        hooks = await self._store.hooks()
        if hooks.version < self.hooks.version and self._restore is not None:
            log.error("the hooks were forgotten: those of the file are set again")
            await self._restore()
            hooks = await self._store.hooks()
        if hooks.version != self.hooks.version:
            self._adopt(hooks)
        self._is_fresh = True

    def _adopt(self, hooks: HookList) -> None:
        enabled = {hook.id: hook for hook in hooks.hooks.hooks if hook.enabled}
        known = self.hooks.since
        # One that was away in between begins anew: what it was owed before is dropped.
        removed = [id_ for id_ in self._lanes if hooks.since.get(id_) != known.get(id_)]
        self.hooks = hooks
        for hook_id in removed:
            lane = self._lanes.pop(hook_id)
            self._hungry.pop(lane, None)
            self._retired.add(lane)
            lane.close()
        for hook in enabled.values():
            self._set_lane(hook)
        for partition in self._partitions.values():
            partition.hooks_changed(removed)
        log.info("hooks", version=hooks.version, enabled=len(enabled), removed=len(removed))

    def _set_lane(self, hook: Hook) -> None:
        lane = self._lanes.get(hook.id)
        if lane is None:
            self._lanes[hook.id] = Lane(hook, self._sink, self.timers, self.rng, self)
        elif lane.hook != hook:
            lane.change(hook)

    # -- slots ----------------------------------------------------------------------------------

    def wait_for_slot(self, lane: Lane) -> None:
        """Pump this lane when an attempt has ended."""
        self._hungry[lane] = None

    def slot_is_free(self) -> None:
        """Pump the lane that has waited longest for it."""
        if self._hungry:
            lane = next(iter(self._hungry))
            del self._hungry[lane]
            lane.pump()

    # -- partitions -----------------------------------------------------------------------------

    def _woken(self, number: int) -> None:
        if (partition := self._partitions.get(number)) is not None:
            partition.wake()

    async def _round(self) -> None:
        """Renew, take and hand over partitions; again and again."""
        try:
            await self._look_around()
        except Unavailable as error:
            log.warning("deliveries wait for redis", reason=error.message)
        except Exception:
            log.exception("looking after the outbox failed")
        finally:
            pause_s = self.outbox.lease_s / ROUNDS_PER_LEASE
            self.timers.call_later(pause_s, self._next_round)

    def _next_round(self) -> None:
        if not self._is_closing:
            self._tasks.spawn(self._round())

    async def _look_around(self) -> None:
        mine = shares(await self.outbox.join(), self.outbox.partitions)[self.outbox.node]
        self._leave([each for number, each in self._partitions.items() if number not in mine])
        # While one server of a Cluster is away, what lies on the others is looked after all the
        # same, and at the same time: a round that waits for each in turn outlasts the leases.
        renewing = map(self._renew, [*self._partitions.values()])
        try:
            await together([*renewing, self._take_free(mine)])
        finally:
            await self._report()

    async def _take_free(self, mine: set[int]) -> None:
        await self.refresh()
        if not self.hooks.version:
            return  # there never was a hook: there is nothing to deliver
        free = mine - self._partitions.keys() - self._leaving.keys()
        now_ms = self.timers.now_ms()
        await together(self._take(n) for n in free if self._rests.admits(n, now_ms))

    async def _renew(self, partition: Partition) -> None:
        lease = await self.outbox.lease(partition.number, partition.lease.token)
        if self._partitions.get(partition.number) is not partition:
            return
        if lease is not None and lease.token == partition.lease.token:
            await partition.renewed(lease)
            await self._inform(lease)
            return
        log.warning("partition lost", partition=partition.number)
        self.lost(partition)
        if lease is not None:
            self._begin(lease)

    async def _take(self, number: int) -> None:
        lease = await self.outbox.lease(number)
        if lease is None or self._is_closing or number in self._partitions:
            return
        self._begin(lease)
        await self._inform(lease)

    def _begin(self, lease: Lease) -> None:
        partition = self._partitions[lease.partition] = Partition(lease, self)
        partition.open()

    async def _inform(self, lease: Lease) -> None:
        """Tell a partition of hooks that it should know: a save was cut off, or Redis forgot."""
        if lease.hooks_version < self.hooks.version:
            await self.outbox.inform(lease, self.hooks)

    def lost(self, partition: Partition) -> None:
        """Forget a partition whose lease is gone."""
        partition.close()
        for partitions in (self._partitions, self._leaving):
            if partitions.get(partition.number) is partition:
                del partitions[partition.number]

    def failed(self, partition: Partition) -> None:
        """Hand a partition over that a fault has stopped, and read it anew after a pause."""
        if self._partitions.get(partition.number) is partition and not self._is_closing:
            self._rests.failed(partition.number, self.timers.now_ms())
            self._leave([partition])

    def _leave(self, partitions: Collection[Partition]) -> None:
        """Begin nothing more in some partitions, and hand them over."""
        for partition in partitions:
            del self._partitions[partition.number]
            self._leaving[partition.number] = partition
            partition.is_closing = True
            task = self._tasks.spawn(self._hand_over(partition))
            self._handing_over.add(task)
            task.add_done_callback(self._handing_over.discard)
        if partitions:
            for lane in self._lanes.values():
                lane.pump()  # lets go of what it holds of them

    async def _hand_over(self, partition: Partition) -> None:
        """Let another process have a partition, once no attempt of it is under way."""
        try:
            await partition.is_idle()
            await self._end(partition)
        finally:
            self._leaving.pop(partition.number, None)

    async def _end(self, partition: Partition) -> None:
        """Record what is to be recorded in a partition, and give its lease back."""
        await partition.aclose()
        try:
            await self.outbox.give_back(partition.lease)
        except Unavailable:
            log.info("a lease runs out by itself", partition=partition.number)

    # -- bounds and reports ---------------------------------------------------------------------

    def _pending(self, lane: Lane) -> int:
        """Return how many entries there may be that a hook has not got."""
        behind = sum(partition.left(lane.hook.id) for partition in lane.behind)
        return lane.taken + behind

    async def _report(self) -> None:
        """Tell how much waits, and let the oldest go of hooks for which more waits than may."""
        metrics.PARTITIONS.set(len(self._partitions))
        metrics.OUTBOX_ENTRIES.set(sum(each.lease.length for each in self._partitions.values()))
        self._retired = {lane for lane in self._retired if lane.under_way}
        for lane in list(self._lanes.values()):
            pending = self._pending(lane)
            metrics.PENDING.labels(lane.hook.id).set(pending)
            if pending > lane.hook.pending_limit:
                await self._shed(lane, pending)
            await asyncio.sleep(0)  # with a thousand hooks this takes a while

    async def _shed(self, lane: Lane, pending: int) -> None:
        while (over := pending - lane.hook.pending_limit) > 0 and lane.behind:
            fullest = max(lane.behind, key=partial(_left, lane.hook.id))
            try:
                await fullest.shed(lane, over)
            except LeaseLost:
                return
            pending = self._pending(lane)


def _left(hook_id: str, partition: Partition) -> int:
    return partition.left(hook_id)


def shares(nodes: Collection[str], partitions: int) -> dict[str, set[int]]:
    """Return which partitions each process delivers: the highest digest of both names has it."""
    found: dict[str, set[int]] = {node: set() for node in nodes}
    for number in range(partitions):
        found[max(nodes, key=partial(_weight, number))].add(number)
    return found


def _weight(number: int, node: str) -> bytes:
    return blake2b(b"%d:%b" % (number, node.encode()), digest_size=8).digest()
