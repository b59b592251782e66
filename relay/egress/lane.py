"""One hook on this process: which of its deliveries are begun, and how each goes on.

A lane takes from the partitions only what it is about to deliver; the rest stays in the outbox.
Deliveries go out side by side. With ``ordered`` those of one call go one after another: the next
begins when the one before is over, one way or another, and other calls go on meanwhile. A delivery
that waits for its next attempt holds nothing up but, when ordered, its call.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import suppress
from functools import partial
from random import Random
from typing import Final, NamedTuple, Protocol

from relay import logs, metrics
from relay.broker import LeaseLost, Reason, Unavailable
from relay.egress.breaker import Allowance, Breaker, Slots
from relay.egress.jobs import MOST_LOST, Job, is_delivered
from relay.egress.partition import Partition
from relay.egress.sinks import Result, Sink
from relay.egress.timers import Timers
from relay.hooks import Hook
from relay.retry import Outcome
from relay.tasks import Tasks

log = logs.get(__name__)

FEWEST_HELD: Final = 16
"""Deliveries that a lane may hold however few it may have under way."""
ORDERED_HELD: Final = 1024
"""The same when ordered: many of them may be of one call that is stuck."""


class Bounds(NamedTuple):
    """What a process may have in hand.

    ``attempts``: under way, over all hooks. ``parked``: deliveries of one hook that wait for their
    next attempt by the table. ``held_bytes``: bodies, over all hooks; each may always hold one.
    ``look``: due deliveries of a partition that one look at what waits goes through.
    """

    attempts: int = 2000
    parked: int = 1024
    held_bytes: int = 134_217_728
    look: int = 16_384


class Load(Protocol):
    """What the lanes of a process share."""

    bounds: Bounds
    slots: Slots
    held_bytes: int

    def wait_for_slot(self, lane: Lane) -> None:
        """Pump this lane when an attempt has ended."""

    def slot_is_free(self) -> None:
        """Pump the lanes that wait for it."""


class Lane:
    """The deliveries of one hook."""

    def __init__(self, hook: Hook, sink: Sink, timers: Timers, rng: Random, load: Load) -> None:
        self.hook = hook
        self.is_closed = False
        self.breaker = Breaker(rng)
        self.behind: OrderedDict[Partition, None] = OrderedDict()
        self._sink = sink
        self._timers = timers
        self._rng = rng
        self._load = load
        self._allowance = Allowance()
        self._ready: deque[Job] = deque()
        self._again: deque[Job] = deque()
        self._queues: dict[str, deque[Job]] = {}
        self._held = 0
        self._parked = 0
        self._under_way = 0
        self._is_catching_up = False
        self._tasks = Tasks(f"hook {hook.id}")
        self._delivered = metrics.DELIVERED.labels(hook.id)
        self._open_gauge = metrics.HOOK_OPEN.labels(hook.id)

    @property
    def under_way(self) -> int:
        """How many attempts are under way."""
        return self._under_way

    @property
    def taken(self) -> int:
        """How many deliveries it has taken that are not over."""
        return self._held + self._parked

    async def aclose(self) -> None:
        """End what is under way: it will be repeated."""
        self.close()
        await self._tasks.aclose()

    def close(self) -> None:
        """Begin nothing any more."""
        self.is_closed = True
        self._open_gauge.set(0)
        metrics.PENDING.labels(self.hook.id).set(0)

    def change(self, hook: Hook) -> None:
        """Go on with what the hook is now; it gets a new chance when it was left alone."""
        self.hook = hook
        self._closed_again()
        self.pump()

    # -- what it takes --------------------------------------------------------------------------

    def room(self) -> int:
        """Return how many more deliveries it can take now."""
        if self.is_closed:
            return 0
        if self.breaker.is_open:
            return int(not self._held and self._may_begin())
        if self._held and self._load.held_bytes > self._load.bounds.held_bytes:
            return 0
        if self._parked >= self._load.bounds.parked:
            return 0
        if self.hook.ordered:
            return max(0, ORDERED_HELD - self._held)
        return max(0, FEWEST_HELD + 4 * self._allowance.earned - self._held)

    def take(self, job: Job) -> None:
        """Take a delivery."""
        self._held += 1
        self._load.held_bytes += len(job.body)
        if self.hook.ordered and job.waiting is None:
            job.is_queued = True
            if (queue := self._queues.get(job.cid)) is not None:
                queue.append(job)
                return
            self._queues[job.cid] = deque()
        self._ready.append(job)
        self.pump()

    def _may_begin(self) -> bool:
        """Tell whether a delivery that was not tried yet may be."""
        return self.breaker.admits(self._under_way + self._parked)

    def stays_behind(self, partition: Partition) -> None:
        """Note that entries of this partition are left to be read when there is room."""
        self.behind[partition] = None

    def catches_up(self, partition: Partition) -> None:
        """Note that none are left."""
        self.behind.pop(partition, None)

    def pump(self) -> None:
        """Begin what may be begun, and read what was left when there is room."""
        while (job := self._next()) is not None:
            if not self._load.slots.admits(self._under_way, self._allowance.earned):
                (self._again if job.tried.attempts else self._ready).appendleft(job)
                if self._under_way < self._allowance.earned:
                    self._load.wait_for_slot(self)
                break
            self._under_way += 1
            self._load.slots.taken += 1
            self._tasks.spawn(self._attempt(job))
        if self.behind and not self._is_catching_up and self.room():
            self._is_catching_up = True
            self._tasks.spawn(self._catch_up())

    def _next(self) -> Job | None:
        """Return the next delivery to try: those that were tried first."""
        while self._again or (self._ready and self._may_begin()):
            job = (self._again or self._ready).popleft()
            if not (self.is_closed or job.partition.is_closing):
                return job
            self._over(job)
        return None

    async def _catch_up(self) -> None:
        try:
            while self.behind and self.room():
                partition = next(iter(self.behind))
                self.behind.move_to_end(partition)
                await partition.catch_up(self)
        except Unavailable:
            self._timers.call_later(1.0, self.pump)
        finally:
            self._is_catching_up = False

    # -- one attempt ----------------------------------------------------------------------------

    async def _attempt(self, job: Job) -> None:
        delay_s = None
        try:
            with suppress(LeaseLost):  # whoever has the partition now repeats it
                delay_s = await self._try(job)
        except Exception:
            log.exception("delivery stopped by a fault", hook=self.hook.id, delivery=job.id)
            job.partition.give_up()
        finally:
            self._under_way -= 1
            self._load.slots.taken -= 1
            if delay_s is None:
                self._over(job)
            else:
                self._park(job, delay_s)
            self._load.slot_is_free()
            self.pump()

    async def _try(self, job: Job) -> float | None:
        """Make an attempt, when there may be one; return the seconds until the next one.

        None: the delivery is over, for this lane.
        """
        if job.tried.lost >= MOST_LOST:
            self._bury(job, Reason.POISON)
            return None
        limit_s = job.limit_s(self.hook, self._timers.now_ms())
        if limit_s <= 0:
            self._exhausted(job, None)
            return None
        await job.partition.begin(job)
        metrics.IN_FLIGHT.inc()
        try:
            return self._go_on(job, await self._send(job, limit_s))
        finally:
            metrics.IN_FLIGHT.dec()
            job.partition.ended()

    async def _send(self, job: Job, limit_s: float) -> Result:
        """Send; a fault of ours counts as a failed attempt, or the call's row would stand still."""
        try:
            return await self._sink.send(self.hook, job.delivery, limit_s)
        except Exception:
            log.exception("attempt failed", hook=self.hook.id, delivery=job.id)
            return Result(outcome=Outcome.NETWORK, latency_s=0.0, answer=b"internal error")

    def _go_on(self, job: Job, result: Result) -> float | None:
        """Decide how a delivery goes on; return the seconds until its next attempt.

        None: it is over.
        """
        if self.is_closed:
            return None  # the hook was removed meanwhile
        now_ms = self._timers.now_ms()
        metrics.ATTEMPTS.labels(self.hook.id, result.outcome.value).inc()
        job.ended(result, now_ms)
        self._allowance.ended(result.latency_s)
        if is_delivered(result):
            self._closed_again()
            self._delivered.inc()
            job.partition.finish(job)
            return None
        self._note_failure(result)
        delay_s = job.retry_delay(result, now_ms, self._rng)
        if delay_s is None:
            self._exhausted(job, result.retry_after_s)
        else:
            job.partition.note(job)
        return delay_s

    def _exhausted(self, job: Job, retry_after_s: float | None) -> None:
        """Let a delivery wait for the longer schedule, or give it up."""
        waiting = job.postponed(self.hook, self._timers.now_ms(), self._rng, retry_after_s)
        if waiting is None:
            self._bury(job, Reason.EXHAUSTED)
        elif not job.partition.postpone(job, waiting):
            self._bury(job, Reason.WAITING_BOUND)

    def _bury(self, job: Job, reason: Reason) -> None:
        job.partition.bury(job, reason)
        log.warning(
            "delivery given up", hook=self.hook.id, delivery=job.id, reason=reason.value,
            attempts=job.tried.number,
        )  # fmt: skip

    def _park(self, job: Job, delay_s: float) -> None:
        """Let a delivery wait for its next attempt by the table."""
        self._held -= 1
        self._parked += 1
        self._timers.call_later(delay_s, partial(self._try_again, job))

    def _try_again(self, job: Job) -> None:
        self._parked -= 1
        self._held += 1
        self._again.append(job)
        self.pump()

    def _over(self, job: Job) -> None:
        """Let go of a delivery, and let the next one of its call begin."""
        self._held -= 1
        self._load.held_bytes -= len(job.body)
        if not job.is_queued:
            return
        if queue := self._queues[job.cid]:
            self._ready.append(queue.popleft())
        else:
            del self._queues[job.cid]

    # -- the breaker ----------------------------------------------------------------------------

    def _note_failure(self, result: Result) -> None:
        pause_s = self.breaker.failed()
        if pause_s is None:
            return
        self._open_gauge.set(1)
        log.warning(
            "hook keeps failing: left alone for a while",
            hook=self.hook.id,
            outcome=result.outcome.value,
            status=result.status,
            pause_s=round(pause_s, 1),
        )
        self._timers.call_later(pause_s, self._probe)

    def _probe(self) -> None:
        self.breaker.pause_is_over()
        self.pump()

    def _closed_again(self) -> None:
        if self.breaker.is_open:
            log.info("hook answers again", hook=self.hook.id)
            self._open_gauge.set(0)
        self.breaker.succeeded()
