"""What is to be recorded of a partition, gathered while the record before is on its way.

So one request carries what many deliveries have to say. While Redis is away it is tried again; when
the lease is lost, or recording fails for a reason that nobody foresaw, whoever waits is told
``LeaseLost``: nothing is recorded under this lease any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from relay import logs
from relay.broker import (
    Changes,
    DeadLetter,
    Key,
    Lease,
    LeaseLost,
    Mark,
    Outbox,
    Tried,
    Unavailable,
    Waiting,
)
from relay.retry import backoff
from relay.tasks import Tasks

log = logs.get(__name__)

T = TypeVar("T")


class Ledger:
    """Records changes under a lease. ``lost`` is called when that turns out to be another's.

    ``failed`` is called when recording has failed for a reason that nobody foresaw. ``complete``
    adds to the changes, right before they go, what can be said only then.
    """

    def __init__(
        self,
        outbox: Outbox,
        lease: Lease,
        rng: Random,
        *,
        complete: Callable[[Changes], None],
        lost: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.changes = Changes()
        self._outbox = outbox
        self._lease = lease
        self._rng = rng
        self._complete = complete
        self._lost = lost
        self._failed = failed
        self._is_closed = False
        self._next: asyncio.Future[None] | None = None
        self._present: asyncio.Future[None] | None = None
        self._tasks = Tasks(f"ledger of partition {lease.partition}")

    def close(self) -> None:
        """Record nothing any more."""
        self._is_closed = True
        for future in (self._next, self._present):
            if future is not None and not future.done():
                future.set_exception(LeaseLost())
                future.exception()  # perhaps nobody waits for it

    async def aclose(self, limit_s: float) -> bool:
        """Record what there is, for a limited time, and close; tell whether all was recorded."""
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(self.commit())
        except (TimeoutError, LeaseLost):
            return False
        finally:
            self.close()
            await self._tasks.aclose()
        return True

    # -- what there is to record ----------------------------------------------------------------

    def put(self, key: Key, tried: Tried | None) -> None:
        """Record what was tried; None: that the delivery is done."""
        self.changes.tried[key] = tried

    def forget(self, key: Key) -> None:
        """Record nothing of a delivery any more."""
        self.changes.tried.pop(key, None)
        self.changes.forget.add(key)

    def wait(self, waiting: Waiting) -> None:
        """Record that a delivery waits, or what was tried of it."""
        self.changes.ended.discard(waiting.mark)
        self.changes.waiting[waiting.id] = waiting

    def end(self, mark: Mark) -> None:
        """Record that a waiting delivery is over."""
        self.changes.ended.add(mark)

    def bury(self, letter: DeadLetter) -> None:
        """Record a dead letter."""
        self.changes.dead[letter.id] = letter

    # -- recording ------------------------------------------------------------------------------

    def commit(self) -> asyncio.Future[None]:
        """Return what is done when everything up to now has been recorded.

        It ends with ``LeaseLost`` when it cannot be.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if self._is_closed:
                self.close()
            elif self._present is None:
                self._tasks.spawn(self._record())
        return self._next

    async def _record(self) -> None:
        """Record batch after batch, until there is nothing more to record."""
        while not self._is_closed and (recorded := self._next) is not None:
            self._present, self._next = recorded, None
            try:
                await self._record_all()
            except LeaseLost:
                self.close()
                self._lost()
                return
            except Exception:
                log.exception("recording failed", partition=self._lease.partition)
                self.close()
                self._failed()
                return
            self._present = None
            if not recorded.done():
                recorded.set_result(None)

    async def _record_all(self) -> None:
        self._complete(self.changes)
        changes, self.changes = self.changes, Changes()
        if changes:
            await self.persistently(lambda: self._outbox.record(self._lease, changes))

    async def persistently(self, action: Callable[[], Awaitable[T]]) -> T:
        """Return what ``action`` returns, trying again with pauses while Redis is away."""
        failures = 0
        while True:
            try:
                return await action()
            except Unavailable:
                if self._is_closed:
                    raise LeaseLost from None
                failures += 1
                await asyncio.sleep(backoff(failures, self._rng))
