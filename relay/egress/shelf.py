"""What waits outside a partition's row: for its next attempt by the longer schedule, or replayed.

A look goes through what is due, which is known without its body, and hands on what has a hook with
room for it; the rest is left where it is. When to look again is told by a timer, and by each
renewal of the lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from relay import metrics
from relay.broker import LeaseLost, Mark, Unavailable, Waiting
from relay.broker.rules import waiting_size
from relay.egress.jobs import Job
from relay.egress.ledger import Ledger
from relay.egress.timers import Handle
from relay.tasks import Tasks

if TYPE_CHECKING:
    from relay.egress.partition import Partition, Surroundings

MARKS_AT_ONCE: Final = 1024
BODIES_AT_ONCE: Final = 64
EVER_MS: Final = 2**53
"""By then everything is due; Redis and Lua still count in ones there."""
LOOK_GAP_S: Final = 0.25
"""Looks of timers are no closer: where much is overdue one takes up to some 20 ms."""


class Shelf:
    """The waiting deliveries of a partition.

    ``taken`` has those in the hands of this process, ``room`` is how many bytes more may wait, as
    the last renewal of the lease told; what has gone since comes on top at the next one.
    """

    def __init__(
        self, partition: Partition, around: Surroundings, ledger: Ledger, tasks: Tasks
    ) -> None:
        self.taken: dict[str, Job] = {}
        self.room = partition.lease.waiting_room
        self._partition = partition
        self._around = around
        self._ledger = ledger
        self._tasks = tasks
        self._next_due: Handle | None = None
        self._next_due_ms = 0
        self._is_looking = False
        self._looked_at = 0
        self._ended: set[str] = set()

    def close(self) -> None:
        """Look for nothing any more."""
        if self._next_due is not None:
            self._next_due.cancel()

    def look(self) -> None:
        """Look for what is due."""
        if not (self._partition.is_closing or self._is_looking):
            self._is_looking = True
            self._tasks.spawn(self._look())

    async def _look(self) -> None:
        """Look; while Redis is away the next renewal of the lease does it again.

        The answer may have what has ended already. What ended before is therefore recorded first;
        what ends from now on is passed over, since an answer and a record can cross.
        """
        self._ended.clear()
        try:
            with suppress(LeaseLost, Unavailable), self._partition.or_given_up():
                await asyncio.shield(self._ledger.commit())
                await self._look_at_due(self._around.timers.now_ms())
        finally:
            self._is_looking = False

    async def _look_at_due(self, now_ms: int) -> None:
        """Hand on what is due and has a hook with room for it.

        What waits for a hook without room hides nothing that comes after it: where this look has
        to stop, the next one begins.
        """
        left = self._around.bounds.look
        while left:
            count = min(MARKS_AT_ONCE, left)
            due = await self._around.outbox.due(
                self._partition.lease, now_ms, count, self._looked_at
            )
            await self._know_hooks_of(due.marks)
            if self._partition.is_closing:
                return
            if due.next_ms is not None:
                self._await_due(due.next_ms)
            await self._take(self._wanted(due.marks))
            if len(due.marks) < count:
                self._looked_at = 0
                return
            self._looked_at += count
            left -= count

    async def _know_hooks_of(self, marks: Sequence[Mark]) -> None:
        """Read the hooks anew when one is not known: a replay may have known of it earlier."""
        receivers = self._around.receivers
        if any(mark.hook_id not in receivers for mark in marks):
            await self._around.refresh()

    def _wanted(self, marks: Sequence[Mark]) -> list[str]:
        """Return which of them can be taken now, by id; those of removed hooks are dropped."""
        wanted: list[str] = []
        room: dict[str, int] = {}
        for mark in marks:
            if mark.id in self.taken or mark.id in self._ended:
                continue
            if mark.hook_id not in room:
                receiver = self._around.receivers.get(mark.hook_id)
                room[mark.hook_id] = -1 if receiver is None else receiver.room()
            if room[mark.hook_id] > 0:
                room[mark.hook_id] -= 1
                wanted.append(mark.id)
            elif room[mark.hook_id] < 0:
                self._drop(mark)
                self._ledger.commit()
        return wanted

    async def _take(self, ids: Sequence[str]) -> None:
        """Hand waiting deliveries to their hooks, as far as these have room for them by then."""
        for start in range(0, len(ids), BODIES_AT_ONCE):
            some = ids[start : start + BODIES_AT_ONCE]
            for each in await self._around.outbox.waiting(self._partition.lease, some):
                receiver = self._around.receivers.get(each.hook_id)
                if receiver is not None and receiver.room():
                    job = Job(self._partition, each.hook_id, each, each.tried)
                    self.taken[each.id] = job
                    receiver.take(job)

    def _await_due(self, due_ms: int) -> None:
        """Look again when the next one is due, or soon after; only the earliest of these counts."""
        timers = self._around.timers
        due_ms = max(due_ms, timers.now_ms() + int(LOOK_GAP_S * 1000))
        if self._next_due is not None:
            if timers.now_ms() < self._next_due_ms <= due_ms:
                return
            self._next_due.cancel()
        delay_s = (due_ms - timers.now_ms()) / 1000
        self._next_due_ms = due_ms
        self._next_due = timers.call_later(delay_s, self.look)

    def sweep(self) -> None:
        """Let go of what waits for hooks that are no more, due or not: it takes up room."""
        self._tasks.spawn(self._sweep())

    async def _sweep(self) -> None:
        """Sweep; what is left of it while Redis is away goes when it is due."""
        with suppress(LeaseLost, Unavailable), self._partition.or_given_up():
            skip, count = 0, MARKS_AT_ONCE
            while count == MARKS_AT_ONCE and not self._partition.is_closing:
                due = await self._around.outbox.due(
                    self._partition.lease, EVER_MS, MARKS_AT_ONCE, skip
                )
                await self._know_hooks_of(due.marks)
                kept = [mark for mark in due.marks if mark.hook_id in self._around.receivers]
                for mark in set(due.marks).difference(kept):
                    self._drop(mark)
                await asyncio.shield(self._ledger.commit())
                count, skip = len(due.marks), skip + len(kept)

    def _drop(self, mark: Mark) -> None:
        metrics.UNOWED.labels(mark.hook_id).inc()
        self._end(mark)

    # -- what becomes of them -------------------------------------------------------------------

    def admits(self, waiting: Waiting) -> bool:
        """Give a delivery room to wait, if there is enough."""
        size = waiting_size(waiting)
        if size > self.room:
            return False
        self.room -= size
        return True

    def add(self, waiting: Waiting) -> None:
        """Record that a delivery waits, and look when it is due."""
        self._ledger.wait(waiting)
        self._await_due(waiting.due_ms)

    def finish(self, job: Job) -> None:
        """Record that one is over."""
        self.taken.pop(job.id, None)
        self._end(Mark(job.id, job.hook_id))

    def _end(self, mark: Mark) -> None:
        self._ended.add(mark.id)
        self._ledger.end(mark)
