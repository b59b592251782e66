"""Tell what the relay itself did: a call was created, a participant left, a user changed.

``announce`` publishes an event of a call, as a door does, and gives the same bytes to the call's
members who do not watch it. ``tell`` is for what concerns users and no call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from relay import events, logs, wire
from relay.broker import Broker
from relay.doors import Door
from relay.errors import Unavailable
from relay.events import Publication

log = logs.get(__name__)

SENDER: Final = "relay"
REPEATS_S: Final = 7200.0
"""The usual ``dedupe_window``. Brokers remember given ids a minute longer: clocks differ."""
REMEMBERED: Final = 10_000
"""Announcements, of those that may have to be made again, that a process knows it has made."""


def is_recent(at_ns: int, now_ns: int, within_s: float) -> bool:
    """Tell whether a request for what was done at ``at_ns`` may repeat one that was cut off.

    Then it announces again what the first one perhaps could not. ``within_s`` is the broker's
    ``dedupe_window``: what was announced since is found a duplicate.
    """
    return now_ns - at_ns < within_s * 1e9


class Announcer:
    """Announces through the door ``relay``; ``new_id`` mints ids of events."""

    def __init__(
        self, broker: Broker, *, clock: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        self._broker = broker
        self._door = Door("relay", broker)
        self._clock = clock
        self._new_id = new_id
        self._announced: dict[tuple[str, str], None] = {}

    async def announce(
        self,
        cid: str,
        kind: str,
        fields: Mapping[str, Any],
        *,
        members: Collection[str] = (),
        event_id: str | None = None,
    ) -> Publication:
        """Publish ``{type, created_at, call_cid, **fields}``, then tell the ``members`` as well.

        Times in ``fields`` are nanoseconds. Whoever may have to announce the same thing again gives
        it an ``event_id``: what was published under it is found and answered as a duplicate.
        Raises ``Unavailable``.
        """
        identity = event_id or self._new_id()
        event = events.given_event(
            {"type": kind, "created_at": self._clock(), "call_cid": cid, **fields},
            event_id=identity,
            sender=SENDER,
            identity=identity,
            fingerprint=events.fingerprint(kind.encode()),
            minted=event_id is None,
        )
        publication = await self._door.publish(event)
        if event_id is not None:
            self._remember(cid, event_id)
        if members and publication.position is not None and not publication.duplicate:
            await self._tell(members, cid, events.placed(event.body, publication.position))
        return publication

    def has_announced(self, cid: str, event_id: str) -> bool:
        """Tell whether this process knows that it is announced; it cannot of all that is."""
        return (cid, event_id) in self._announced

    def _remember(self, cid: str, event_id: str) -> None:
        self._announced[cid, event_id] = None
        if len(self._announced) > REMEMBERED:
            del self._announced[next(iter(self._announced))]

    async def tell(self, user_ids: Collection[str], kind: str, fields: Mapping[str, Any]) -> None:
        """Give ``{type, created_at, **fields}`` to the sockets of users, live and at most once."""
        body = wire.with_rfc3339({"type": kind, "created_at": self._clock(), **fields})
        await self._tell(user_ids, None, wire.encode(body))

    async def _tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        try:
            await self._broker.tell(user_ids, cid, body)
        except Unavailable as error:
            # It is promised at most once, and what it is about has happened.
            log.warning("users were not told", cid=cid, reason=error.message)
