"""Users as values: what is known of one, and the shapes in which Stream's SDKs expect it.

Pure. Mobile SDKs decode strictly, so every field that the specification requires is there, even
where the relay has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from relay import wire
from relay.errors import BadInput
from relay.events import check_custom, check_user_id


class User(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user as the store keeps it; times in nanoseconds since 1970."""

    id: str
    created_at: int
    updated_at: int
    name: str = ""
    image: str = ""
    role: str = "user"
    language: str = ""
    teams: tuple[str, ...] = ()
    custom: dict[str, Any] = {}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What a user may say about itself; None = not said, what is known stays."""

    name: str | None = None
    image: str | None = None
    custom: dict[str, Any] | None = None
    role: str | None = None


def read_profile(details: Mapping[str, Any], field: str = "user_details") -> Profile:
    """Return the profile in ``details``; raises ``BadInput`` naming the field that is wrong.

    The role is left out: it is given by a server or a token, never by the user.
    """
    for name in ("name", "image"):
        value = details.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= 1024):
            raise BadInput(f"{field}.{name} must be a string of at most 1024 characters")
    if (custom := details.get("custom")) is not None:
        check_custom(custom, field=f"{field}.custom")
    return Profile(name=details.get("name"), image=details.get("image"), custom=custom)


def changed(user: User | None, user_id: str, profile: Profile, now_ns: int) -> User:
    """Return the user with ``profile`` applied, a new one when there was none.

    The same object comes back when nothing changes, so that callers need not write it.
    """
    if user is None:
        check_user_id(user_id)
        user = User(id=user_id, created_at=now_ns, updated_at=now_ns)
        return msgspec.structs.replace(user, **_said(profile))
    news = {key: value for key, value in _said(profile).items() if getattr(user, key) != value}
    return msgspec.structs.replace(user, **news, updated_at=now_ns) if news else user


def _said(profile: Profile) -> dict[str, Any]:
    return {key: val for key, val in msgspec.structs.asdict(profile).items() if val is not None}


def response(user: User, *, online: bool = False) -> dict[str, Any]:
    """Return Stream's UserResponse, its times as integer nanoseconds."""
    return {
        "id": user.id,
        "name": user.name,
        "image": user.image,
        "custom": user.custom,
        "language": user.language,
        "role": user.role,
        "teams": list(user.teams),
        "created_at": user.created_at,
        "updated_at": user.updated_at,
        "banned": False,
        "online": online,
        "blocked_user_ids": [],
    }


def own(user: User) -> dict[str, Any]:
    """Return Stream's OwnUser, the ``me`` of ``connection.ok``, its times as nanoseconds."""
    return response(user, online=True) | {
        "devices": [],
        "invisible": False,
        "mutes": [],
        "channel_mutes": [],
        "unread_count": 0,
        "total_unread_count": 0,
        "unread_channels": 0,
        "unread_threads": 0,
    }


def full(user: User) -> dict[str, Any]:
    """Return Stream's FullUserResponse, as the upsert of users answers it."""
    return own(user) | {"online": False, "shadow_banned": False}


def encoded(user: User, *, online: bool = False) -> bytes:
    """Return the user as JSON with RFC 3339 times, as it stands in an event."""
    return wire.encode(wire.with_rfc3339(response(user, online=online)))


def summary(user: User) -> dict[str, str]:
    """Return what a list of watchers shows of a user."""
    return {"id": user.id, "name": user.name, "image": user.image}
