"""The doors of Redis, for backends: ``PUBLISH relay:live <JSON>``, ``XADD relay:ingest * event …``.

What comes on the live channel is handed to this process's hub and kept nowhere; what comes on the
ingest stream is published like any event. Who can write to Redis is trusted to send events, not to
set positions or to describe users. What is wrong is counted, logged without its content, dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, NamedTuple
from uuid import uuid4

from relay import events, logs, metrics, users, wire
from relay.broker import Inbox, InboxEntry
from relay.doors import Door
from relay.errors import BadInput, Refused, TooLarge
from relay.events import Event
from relay.http import Clock
from relay.ingress.patience import Patience
from relay.tasks import Tasks
from relay.users import User

log: Final = logs.get(__name__)

DEFAULT_USER: Final = "backend"

_CRASH_PAUSE_S: Final = 2.0
_WAITING: Final = "ingest waits for redis"


class Bounds(NamedTuple):
    """What a backend's event may take in bytes: its ``custom`` (0 = no limit) and all of it."""

    custom: int = events.CUSTOM_LIMIT
    event: int = 1_048_576


USUAL: Final = Bounds()


def backend_event(
    text: bytes,
    now_ns: int,
    bounds: Bounds,
    *,
    event_id: str,
    sender: str,
    volatile: bool = False,
) -> Event:
    """Build the event that a backend wrote as JSON: ``call_cid``, and what it likes of the rest.

    ``type`` is ``custom`` and ``created_at`` is now unless given; the user is ``user_id`` (or
    ``user.id``) and nothing more. ``event_id`` is used when the text brings none. Raises
    ``BadInput`` or ``TooLarge``.
    """
    if len(text) > bounds.event:
        raise TooLarge(f"the event has more than {bounds.event} bytes", reason="body_too_large")
    body = wire.decode_object(text, "the event")
    if (given := body.get("event_id")) is not None:
        event_id = events.check_event_id(given)
    kind = events.check_event_type(body.get("type", "custom"))
    if kind == "custom":
        events.check_custom(body.get("custom"), bounds.custom)
    created_ns = wire.parse_time(body["created_at"]) if "created_at" in body else now_ns
    user = User(id=_user_id(body), created_at=created_ns, updated_at=created_ns)
    shown = {
        **{key: value for key, value in body.items() if key != "user_id"},
        "type": kind,
        "created_at": wire.rfc3339(created_ns),
        "user": users.response(user),
    }
    return events.given_event(
        shown,
        event_id=event_id,
        sender=sender,
        identity=None if volatile else event_id,
        fingerprint=events.fingerprint(wire.canonical({**body, "created_at": None})),
        volatile=volatile,
    )


def _user_id(body: dict[str, Any]) -> str:
    user = body.get("user")
    if user is not None and not isinstance(user, dict):
        raise BadInput("user must be a JSON object", reason="bad_user")
    inner = (user or {}).get("id")
    outer = body.get("user_id")
    if inner is not None and outer is not None and inner != outer:
        raise BadInput("user_id and user.id differ", reason="bad_user_id")
    given = inner if outer is None else outer
    return DEFAULT_USER if given is None else events.check_user_id(given)


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
