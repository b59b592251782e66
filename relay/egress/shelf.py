"""What waits outside a partition's row: for its next attempt by the longer schedule, or replayed.

A look reads what is due, page by page, and hands on what has a hook with room for it; the rest is
left where it is. When to look again is told by a timer, and by each renewal of the lease.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from relay import metrics
from relay.broker import LeaseLost, Unavailable, Waiting
from relay.egress.jobs import Job
from relay.egress.ledger import Ledger
from relay.egress.timers import Handle
from relay.tasks import Tasks

if TYPE_CHECKING:
    from relay.egress.partition import Partition, Surroundings

DUE_AT_ONCE: Final = 64
DUE_PAGES: Final = 32
"""Pages of what is due that one look reads."""


class Shelf:
    """The waiting deliveries of a partition; ``taken`` has those in the hands of this process."""

    def __init__(
        self, partition: Partition, around: Surroundings, ledger: Ledger, tasks: Tasks
    ) -> None:
        self.taken: dict[str, Job] = {}
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

        What waits for a hook without room hides nothing that comes after it: page follows page,
        and where this look has to stop, the next one begins.
        """
        for _ in range(DUE_PAGES):
            due = await self._around.outbox.due(
                self._partition.lease, now_ms, DUE_AT_ONCE, self._looked_at
            )
            if self._partition.is_closing:
                return
            for each in due.waiting:
                if each.id not in self.taken and each.id not in self._ended:
                    self._take(each)
            if due.next_ms is not None:
                self._await_due(due.next_ms)
            if len(due.waiting) < DUE_AT_ONCE:
                self._looked_at = 0
                return
            self._looked_at += DUE_AT_ONCE

    def _take(self, waiting: Waiting) -> None:
        receiver = self._around.receivers.get(waiting.hook_id)
        if receiver is None:
            metrics.UNOWED.labels(waiting.hook_id).inc()
            self._end(waiting.id)
            self._ledger.commit()
        elif receiver.room():
            job = Job(self._partition, waiting.hook_id, waiting, waiting.tried)
            self.taken[waiting.id] = job
            receiver.take(job)

    def _await_due(self, due_ms: int) -> None:
        """Look again when the next one is due; only the earliest of these counts."""
        timers = self._around.timers
        if self._next_due is not None:
            if timers.now_ms() < self._next_due_ms <= due_ms:
                return
            self._next_due.cancel()
        delay_s = (due_ms - timers.now_ms()) / 1000
        self._next_due_ms = due_ms
        self._next_due = timers.call_later(delay_s, self.look)

    # -- what becomes of them -------------------------------------------------------------------

    def add(self, waiting: Waiting) -> None:
        """Record that a delivery waits, and look when it is due."""
        self._ledger.wait(waiting)
        self._await_due(waiting.due_ms)

    def finish(self, job: Job) -> None:
        """Record that one is over."""
        self.taken.pop(job.id, None)
        self._end(job.id)

    def _end(self, waiting_id: str) -> None:
        self._ended.add(waiting_id)
        self._ledger.end(waiting_id)
