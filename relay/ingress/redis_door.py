"""The doors of Redis, for backends: ``PUBLISH relay:live <JSON>``, ``XADD relay:ingest * event …``.

What comes on the live channel is handed to this process's hub and kept nowhere; what comes on the
ingest stream is published like any event. Who can write to Redis is trusted to send events, not to
set positions or to describe users. What is wrong is counted, logged without its content, dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final
from uuid import uuid4

from relay import logs, metrics
from relay.backends import USUAL, Bounds, backend_event
from relay.broker import Inbox, InboxEntry
from relay.doors import Door
from relay.errors import Refused
from relay.http import Clock
from relay.ingress.patience import Patience
from relay.tasks import Tasks

log: Final = logs.get(__name__)

_CRASH_PAUSE_S: Final = 2.0
_WAITING: Final = "ingest waits for redis"


class LiveDoor:
    """Takes what outsiders publish on the live channel and hands it to the hub, volatile."""

    def __init__(
        self,
        deliver: Callable[[str, bytes], None],
        clock: Clock,
        bounds: Bounds = USUAL,
    ) -> None:
        self._deliver = deliver
        self._clock = clock
        self._bounds = bounds
        self._accepted = metrics.Tally(metrics.ACCEPTED.labels("live"))
        self._published = metrics.Tally(metrics.PUBLISHED.labels("live", "volatile"))

    def receive(self, raw: bytes) -> None:
        """Take one message of the channel, as the broker's ``live`` callback. Raises nothing."""
        try:
            event = backend_event(
                raw,
                self._clock(),
                self._bounds,
                event_id=uuid4().hex,
                sender="live",
                volatile=True,
            )
        except Refused as error:
            metrics.REFUSED.labels("live", error.reason).inc()
            log.warning("live event dropped", reason=error.reason, problem=error.message)
            return
        self._accepted.inc()
        self._deliver(event.cid, event.body)
        self._published.inc()


class IngestDoor:
    """Publishes the entries of the ingest stream, one after another, in their order.

    An entry leaves the stream after its event was published. While Redis is away the same entry is
    tried again: its id makes a second time harmless. Sequential on purpose: two at once could
    overtake each other when the first one fails.
    """

    def __init__(
        self,
        door: Door,
        inbox: Inbox,
        clock: Clock,
        bounds: Bounds = USUAL,
        *,
        rng: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._door = door
        self._inbox = inbox
        self._clock = clock
        self._bounds = bounds
        self._sleep = sleep
        self._patience = Patience(rng, sleep)
        self._tasks = Tasks("ingest")

    def start(self) -> None:
        """Begin to read the stream."""
        self._tasks.spawn(self._run())

    async def aclose(self) -> None:
        """Stop reading and give the lease back. An entry in between is read again by the next."""
        await self._tasks.aclose()
        await self._inbox.aclose()

    async def _run(self) -> None:
        while True:
            try:
                await self._take_and_settle()
            except Exception:
                # The entries are still in the stream: nothing is lost, but somebody must look.
                log.exception("ingest failed")
                await self._sleep(_CRASH_PAUSE_S)

    async def _take_and_settle(self) -> None:
        entries = await self._patience.insist(self._inbox.take, _WAITING)
        for entry in entries:
            await self._carry(entry)
        if entries:
            ids = [entry.id for entry in entries]
            await self._patience.insist(lambda: self._inbox.settle(ids), _WAITING)

    async def _carry(self, entry: InboxEntry) -> None:
        """Publish one entry, or drop it: when it is no event, or when the broker refuses it."""
        try:
            event = backend_event(
                entry.text,
                self._clock(),
                self._bounds,
                event_id=f"ingest:{entry.id}",
                sender="ingest",
            )
        except Refused as error:
            self._door.refused(error)
            _log_dropped(entry, error)
            return
        try:
            await self._patience.insist(lambda: self._door.publish(event), _WAITING)
        except Refused as error:  # for good, and counted: again it would hold up all that follow
            _log_dropped(entry, error)


def _log_dropped(entry: InboxEntry, error: Refused) -> None:
    log.warning("ingest entry dropped", entry=entry.id, reason=error.reason, problem=error.message)
