"""Publish events from a Python backend, through Redis: no HTTP, no token.

``Publisher`` blocks, ``AsyncPublisher`` is for asyncio; both do exactly what these two commands
do, which any language can send (docs/publishing.md):

    XADD relay:ingest * event '{"type":"custom","call_cid":"default:demo","custom":{…}}'
    PUBLISH relay:live '{"type":"custom","call_cid":"default:demo","custom":{…}}'
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Final

from relay import wire
from relay.backends import EVENT_LIMIT, Bounds, backend_event
from relay.broker import clients
from relay.errors import BadInput
from relay.events import (
    CUSTOM_LIMIT,
    check_cid,
    check_custom,
    check_event_id,
    check_event_type,
    check_user_id,
)

__all__ = ["AsyncPublisher", "Publisher", "command"]

FOLLOW_S: Final = 1.0
"""How often a publisher asks its sentinels, if it has any, who the primary is."""

_RELAYS_OWN: Final = ("call_cid", "epoch", "offset")


def command(
    prefix: str,
    cid: str,
    *,
    event_id: str,
    now_ns: int,
    custom: dict[str, Any] | None = None,
    type: str = "custom",  # noqa: A002 - the event's own word
    user_id: str | None = None,
    volatile: bool = False,
    custom_limit: int = CUSTOM_LIMIT,
    event_limit: int = EVENT_LIMIT,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Return the Redis command that publishes the event; the arguments are those of ``publish``.

    Raises ``BadInput`` or ``TooLarge`` for what a relay would refuse.
    """
    event: dict[str, Any] = {
        "type": check_event_type(type),
        "call_cid": check_cid(cid, "cid"),
        "created_at": wire.rfc3339(now_ns),
        "event_id": check_event_id(event_id),
    }
    if custom is not None or type == "custom":
        _encoded(custom)
        check_custom(custom, custom_limit)
        event["custom"] = custom
    if user_id is not None:
        if "user" in fields:
            raise BadInput("user_id and user both say who the event comes from: give one of them")
        event["user"] = {"id": check_user_id(user_id)}
    for name in _RELAYS_OWN:
        if name in fields:
            raise BadInput(f"{name} is set by the relay, an event cannot bring its own")
    text = _encoded({**event, **fields})
    bounds = Bounds(custom_limit, event_limit)
    backend_event(text, now_ns, bounds, event_id=event_id, sender="", volatile=volatile)
    if volatile:
        return ("PUBLISH", f"{prefix}live", text.decode())
    return ("XADD", f"{prefix}ingest", "*", "event", text.decode())


def _encoded(value: Any) -> bytes:
    try:
        return wire.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadInput(f"the event cannot be written as JSON: {error}", reason="not_json") from None


def _arguments(event_id: str | None) -> dict[str, Any]:
    """Return what ``command`` needs besides the event: an id and the time."""
    return {"event_id": event_id or secrets.token_urlsafe(12), "now_ns": time.time_ns()}


class Publisher:
    """Publishes events to the relays that share a Redis. Safe to use from several threads.

        with relay.Publisher("redis://localhost:6379/0") as publisher:
            publisher.publish("default:demo", custom={"render-animation": "balloons"})

    ``url`` is the relays' ``RELAY_REDIS_URL`` (Sentinel and Cluster included), ``prefix`` their
    ``RELAY_REDIS_PREFIX``, ``custom_limit`` and ``event_limit`` their ``RELAY_CUSTOM_MAX_BYTES``
    and ``RELAY_WEBHOOK_MAX_BYTES``. Raises ``SettingsError`` (from ``relay.settings``) for a URL
    that is none, and ``Unavailable`` when a Cluster is away, which is asked for its map at once.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "relay:",
        custom_limit: int = CUSTOM_LIMIT,
        event_limit: int = EVENT_LIMIT,
    ) -> None:
        with clients.asking():
            self._redis = clients.blocking(url)
        self._follow_at = 0.0
        self._prefix = prefix
        self._custom_limit = custom_limit
        self._event_limit = event_limit

    def publish(
        self,
        cid: str,
        *,
        custom: dict[str, Any] | None = None,
        type: str = "custom",  # noqa: A002 - the event's own word
        user_id: str | None = None,
        event_id: str | None = None,
        volatile: bool = False,
        **fields: Any,
    ) -> str:
        """Publish an event to the watchers of the call ``cid``; return its ``event_id``.

        ``custom`` is the application's own object and belongs to every event of type ``custom``.
        ``user_id`` says who it comes from, unless ``user``, an object with ``id``, does. The same
        ``event_id`` again is the same event and is published once; without one it gets an id of its
        own. ``volatile`` events are live only: whoever is not connected right now never sees them,
        and neither does anyone when no relay runs. Further ``fields`` become fields of the event.

        When this returns the event is stored in Redis; a relay publishes it within milliseconds.
        Raises, from ``relay.errors``: ``BadInput`` or ``TooLarge`` for an event that a relay would
        refuse, and ``Unavailable`` when Redis is away or does not take it, in whatever shape it is.
        Whether the event was stored is not known then: publish again with the same ``event_id``,
        so that nothing is published twice. The cause is redis-py's error.
        """
        made = _arguments(event_id)
        words = command(
            self._prefix, cid, custom=custom, type=type, user_id=user_id, volatile=volatile,
            custom_limit=self._custom_limit, event_limit=self._event_limit, fields=fields, **made,
        )  # fmt: skip
        with clients.asking():
            self._follow()
            self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        return str(made["event_id"])

    def _follow(self) -> None:
        if (now := time.monotonic()) >= self._follow_at:
            self._follow_at = now + FOLLOW_S
            clients.follow(self._redis)

    def close(self) -> None:
        """Close the connections to Redis."""
        clients.close(self._redis)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncPublisher:
    """Publishes events to the relays that share a Redis, from asyncio.

        async with relay.AsyncPublisher("redis://localhost:6379/0") as publisher:
            await publisher.publish("default:demo", custom={"render-animation": "balloons"})

    Arguments and errors are those of ``Publisher``, but for a Cluster's: it is first asked when
    something is published.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "relay:",
        custom_limit: int = CUSTOM_LIMIT,
        event_limit: int = EVENT_LIMIT,
    ) -> None:
        self._redis = clients.asynchronous(url)
        self._follow_at = 0.0
        self._prefix = prefix
        self._custom_limit = custom_limit
        self._event_limit = event_limit

    async def publish(
        self,
        cid: str,
        *,
        custom: dict[str, Any] | None = None,
        type: str = "custom",  # noqa: A002 - the event's own word
        user_id: str | None = None,
        event_id: str | None = None,
        volatile: bool = False,
        **fields: Any,
    ) -> str:
        """Publish an event and return its ``event_id``: see ``Publisher.publish``."""
        made = _arguments(event_id)
        words = command(
            self._prefix, cid, custom=custom, type=type, user_id=user_id, volatile=volatile,
            custom_limit=self._custom_limit, event_limit=self._event_limit, fields=fields, **made,
        )  # fmt: skip
        with clients.asking():
            await self._follow()
            await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        return str(made["event_id"])

    async def _follow(self) -> None:
        if (now := time.monotonic()) >= self._follow_at:
            self._follow_at = now + FOLLOW_S
            await clients.afollow(self._redis)

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        await clients.aclose(self._redis)

    async def __aenter__(self) -> AsyncPublisher:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
