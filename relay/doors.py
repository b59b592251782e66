"""A door: one of the ways an event comes in. It publishes, and keeps the door's ledger.

For every door ``accepted = published + duplicate + failed``. What was refused, before it became an
event or after, is counted by its reason as well. Used by every edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from relay import logs, metrics
from relay.broker import Broker
from relay.errors import RelayError, Unavailable
from relay.events import Event, Origin, Publication

log = logs.get(__name__)

BEYOND: Final = 2**53 - 2
"""An offset that no call reaches: asked for what comes after it, history tells its epochs alone."""


class Door:
    """Publishes the events of one door (``webhook``, ``sqs``, ``api``, ``socket``, …).

    ``timeout_s`` is how long a sender may have to wait for all that one event asks of Redis.
    """

    def __init__(self, name: str, broker: Broker, timeout_s: float = 3.0) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._broker = broker
        self._accepted = metrics.Tally(metrics.ACCEPTED.labels(name))
        self._failed = metrics.FAILED.labels(name)
        self._kept = metrics.Tally(metrics.PUBLISHED.labels(name, "kept"))
        self._volatile = metrics.Tally(metrics.PUBLISHED.labels(name, "volatile"))
        self._duplicates = metrics.DUPLICATES.labels(name)
        self._reused = metrics.REUSED_IDS.labels(name)

    async def publish(self, event: Event, origins: Sequence[Origin] = ()) -> Publication:
        """Publish an event and count what became of it; raises ``Unavailable``.

        ``origins``: where it was published before. What this relay itself has delivered to a hook
        that leads back here is a duplicate, or it would go round for ever.
        """
        self._accepted.inc()
        try:
            publication = await self._returned(origins) or await self._broker.publish(event)
        except BaseException as error:
            self._failed.inc()  # also when whoever waited for it has gone
            if isinstance(error, RelayError):
                self.refused(error)
            raise
        self._count(event, publication)
        return publication

    def publish_now(self, event: Event) -> Publication | None:
        """Publish as ``publish`` does, without waiting; None where the broker has to be waited for.

        Nothing is done or counted then. See ``Broker.publish_now``.
        """
        try:
            publication = self._broker.publish_now(event)
        except RelayError as error:
            self._accepted.inc()
            self._failed.inc()
            self.refused(error)
            raise
        if publication is not None:
            self._accepted.inc()
            self._count(event, publication)
        return publication

    @asynccontextmanager
    async def in_time(self, began: float | None = None) -> AsyncIterator[asyncio.Timeout]:
        """Bound all that a sender waits for since ``began`` (loop time; None: from now on).

        Each question to Redis has its own limit, but one event asks several. Raises
        ``Unavailable`` and counts it; what was being published may have happened, and is repeated
        under the same id. Gives the timeout, so that what is not Redis' can be taken out of it.
        """
        since = asyncio.get_running_loop().time() if began is None else began
        try:
            async with asyncio.timeout_at(since + self._timeout_s) as limit:
                yield limit
        except TimeoutError:
            if not limit.expired():
                raise
            error = Unavailable(f"Redis did not answer within {self._timeout_s:g} s")
            self.refused(error)
            raise error from None

    def _count(self, event: Event, publication: Publication) -> None:
        if publication.reused:
            self._reused.inc()
            log.warning("event id reused", door=self.name, cid=event.cid, sender=event.sender)
        if publication.duplicate:
            self._duplicates.inc()
        else:
            (self._volatile if event.volatile else self._kept).inc()

    async def _returned(self, origins: Sequence[Origin]) -> Publication | None:
        """Return the first time something was published here, if it was.

        The name of an epoch is random: a call that knows it has given out the position.
        """
        for cid, event_id, position in origins:
            history = await self._broker.history(cid, BEYOND)
            if position.epoch in [epoch.name for epoch in history.epochs]:
                log.info("a delivery came back", door=self.name, cid=cid)
                return Publication(cid=cid, event_id=event_id, position=position, duplicate=True)
        return None

    def refused(self, error: RelayError) -> None:
        """Count something that this door did not let in."""
        metrics.REFUSED.labels(self.name, error.reason).inc()
