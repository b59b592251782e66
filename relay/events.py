"""Events, publications and positions: the values everything else passes around.

Pure: ids and times come in as arguments. ``created_at`` and friends are nanoseconds since 1970
inside the relay; ``wire`` turns them into the dialect a reader wants.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from relay import wire
from relay.errors import BadInput, TooLarge

CUSTOM_LIMIT: Final = 5120
"""Bytes of compact UTF-8 that ``custom`` may have unless the settings say otherwise."""

CLOCK_AHEAD_S: Final = 60.0
"""Seconds by which the clock of whoever dates an event may run ahead: seen ids live that longer."""

_CID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}:[A-Za-z0-9_.!@-]{1,128}")
_USER_ID: Final = re.compile(r"[^\s/\x00-\x1f\x7f]{1,255}")
_EVENT_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_EVENT_TYPE: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")

_OWN_FRAMES: Final = frozenset(
    {
        "call.position", "call.send", "call.sent", "call.unwatch", "call.unwatched", "call.watch",
        "call.watchers", "call.watching", "connection.changed", "connection.draining",
        "connection.error", "connection.ok", "connection.recovered", "error", "health.check",
        "token.refresh", "token.refreshed",
    }
)  # fmt: skip
"""Types that mean something to a client as a frame; an event under such a name would forge one."""

_OWN_FIELDS: Final = ("event_id", "epoch", "offset")


class Position(NamedTuple):
    """Where in a call's order a publication stands. Offsets count from 1 without holes."""

    epoch: str
    offset: int


class Origin(NamedTuple):
    """Where a relay, this one or another, has published something."""

    cid: str
    event_id: str
    position: Position


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact about one call, ready to be published.

    ``body`` is the JSON object watchers get, with its ``event_id`` and without a position.
    ``sender`` is ``door:owner``: ids of different senders never meet. ``identity`` is what a repeat
    is known by (None for a volatile event nobody will repeat); ``minted`` says that the relay chose
    it, so only the relay's own retries can repeat it. ``alias`` is an id that came along unsigned:
    it decides nothing, its reuse with another ``fingerprint`` is reported. ``fingerprint`` is a
    digest of what the sender said, empty where the sender gave no id to say something else under.
    """

    cid: str
    type: str
    event_id: str
    body: bytes
    sender: str
    identity: str | None
    fingerprint: str
    minted: bool = False
    alias: str | None = None
    volatile: bool = False


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an event: where it stands, or that it had been published before.

    ``position`` is None for a volatile event. ``duplicate``: the position is that of the first
    time. ``reused``: the same id (or alias) came with other content.
    """

    cid: str
    event_id: str
    position: Position | None
    duplicate: bool = False
    reused: bool = False


def check_cid(value: object, field: str = "call_cid") -> str:
    """Return ``value`` when it is a cid, ``type:id``.

    Raises ``BadInput`` naming ``field`` otherwise.
    """
    if isinstance(value, str) and _CID.fullmatch(value):
        return value
    raise BadInput(
        f"{field} must be 'type:id', e.g. 'default:standup': letters, digits, '_' and '-' "
        "(the id also '.', '!', '@'), at most 64 and 128 characters",
        reason="bad_cid",
    )


def is_cid(value: str) -> bool:
    """Tell whether a text is a cid."""
    return _CID.fullmatch(value) is not None


def check_user_id(value: object, field: str = "user_id") -> str:
    """Return ``value`` when it can be a user's id; raises ``BadInput`` naming ``field``."""
    if isinstance(value, str) and _USER_ID.fullmatch(value):
        return value
    raise BadInput(
        f"{field} must be a string of 1 to 255 characters without spaces and slashes",
        reason="bad_user_id",
    )


def check_event_id(value: object, field: str = "event_id") -> str:
    """Return ``value`` when it can be an event's id; raises ``BadInput`` naming ``field``."""
    if isinstance(value, str) and _EVENT_ID.fullmatch(value):
        return value
    raise BadInput(
        f"{field} must be a string of 1 to 128 printable ASCII characters without spaces",
        reason="bad_event_id",
    )


def check_event_type(value: object, field: str = "type") -> str:
    """Return ``value`` when an event may be called so; raises ``BadInput`` naming ``field``."""
    if not (isinstance(value, str) and len(value) <= 128 and _EVENT_TYPE.fullmatch(value)):
        raise BadInput(
            f"{field} must be a string such as 'custom' or 'call.updated': lower-case words "
            "joined by dots, at most 128 characters",
            reason="no_type",
        )
    if value in _OWN_FRAMES:
        raise BadInput(
            f"{field} {value!r} is a frame of the socket, not an event", reason="reserved_type"
        )
    return value


def check_custom(value: object, limit: int = CUSTOM_LIMIT, field: str = "custom") -> bytes:
    """Return ``value`` as compact JSON when it is an object of at most ``limit`` bytes (0 = any).

    Raises ``BadInput`` when it is no object, ``TooLarge`` when it is too long.
    """
    if not isinstance(value, dict):
        raise BadInput(f"{field} must be a JSON object", reason="custom_not_an_object")
    encoded = wire.encode(value)
    if limit and len(encoded) > limit:
        raise TooLarge(
            f"{field} has {len(encoded)} bytes of compact JSON, the limit is {limit}",
            reason="custom_too_large",
        )
    return encoded


def fingerprint(content: bytes) -> str:
    """Return 32 hex digits that stand for ``content``."""
    return blake2b(content, digest_size=16).hexdigest()


def custom_event(
    *,
    cid: str,
    custom: bytes,
    user: bytes,
    event_id: str,
    now_ns: int,
    sender: str,
    minted: bool,
    volatile: bool = False,
) -> Event:
    """Build a ``custom`` event in Stream's shape: type, created_at, call_cid, custom, user.

    ``custom`` and ``user`` are JSON objects, already encoded. A volatile event whose id the relay
    minted has no identity: nobody can repeat it, so remembering it would buy nothing.
    """
    body = b"".join(
        (
            b'{"type":"custom","created_at":"', wire.rfc3339(now_ns).encode(),
            b'","call_cid":"', cid.encode(),
            b'","custom":', custom,
            b',"user":', user,
            b',"event_id":', wire.encode(event_id),
            b"}",
        )
    )  # fmt: skip
    return Event(
        cid=cid,
        type="custom",
        event_id=event_id,
        body=body,
        sender=sender,
        identity=None if volatile and minted else event_id,
        fingerprint="" if minted else fingerprint(custom),
        minted=minted,
        volatile=volatile,
    )


def given_event(
    body: dict[str, Any],
    *,
    event_id: str,
    sender: str,
    identity: str | None,
    fingerprint: str,
    minted: bool = False,
    alias: str | None = None,
    volatile: bool = False,
) -> Event:
    """Build an event from a body that already has Stream's shape (a webhook's, a backend's).

    Integer-nanosecond timestamps become RFC 3339; fields that only the relay may set are replaced.
    Raises ``BadInput`` when ``type`` or ``call_cid`` is missing or malformed.
    """
    cid = check_cid(body.get("call_cid"))
    kind = check_event_type(body.get("type"))
    shown = {key: value for key, value in body.items() if key not in _OWN_FIELDS}
    shown = wire.with_rfc3339(shown)
    shown["event_id"] = event_id
    return Event(
        cid=cid,
        type=kind,
        event_id=event_id,
        body=wire.encode(shown),
        sender=sender,
        identity=identity,
        fingerprint=fingerprint,
        minted=minted,
        alias=alias,
        volatile=volatile,
    )


def origins(body: dict[str, Any]) -> tuple[Origin, ...]:
    """Return where a body that comes in was published before; empty when it never was.

    What a relay publishes has a position, and it delivers that to hooks, which may lead back to a
    relay. A door that wraps bodies puts one inside the other's ``custom``: the outermost is first.
    """
    found: list[Origin] = []
    inner: Any = body
    while isinstance(inner, dict):
        match inner:
            case {
                "call_cid": str(cid), "event_id": str(event_id), "epoch": str(epoch),
                "offset": int(offset),
            } if _CID.fullmatch(cid):  # fmt: skip
                found.append(Origin(cid, event_id, Position(epoch, offset)))
        inner = inner.get("custom")
    return tuple(found)


def told(body: dict[str, Any]) -> bytes:
    """Return what a body says, the same however it came: without what relays put into it."""
    shown = {key: value for key, value in body.items() if key not in _OWN_FIELDS}
    return wire.canonical(wire.with_rfc3339(shown))


def placed(body: bytes, position: Position) -> bytes:
    """Return ``body`` with its position: the bytes every watcher of the call gets.

    Redis splices the same text on the server (broker/scripts/publish.lua).
    """
    return b'%b,"epoch":"%b","offset":%d}' % (body[:-1], position.epoch.encode(), position.offset)
