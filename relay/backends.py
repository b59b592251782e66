"""What a backend's event must be: the rules of Redis's doors, which its publisher keeps as well.

Pure. ``ingress`` reads by them what came, ``publisher`` what it is about to send.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from relay import events, users, wire
from relay.errors import BadInput, TooLarge
from relay.events import Event
from relay.users import User

DEFAULT_USER: Final = "backend"
EVENT_LIMIT: Final = 1_048_576
"""Bytes that an event may have as it is sent, unless the settings say otherwise."""


class Bounds(NamedTuple):
    """What a backend's event may take in bytes: its ``custom`` (0 = no limit) and all of it."""

    custom: int = events.CUSTOM_LIMIT
    event: int = EVENT_LIMIT


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
