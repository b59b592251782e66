"""Users as values: what is known of one, and the shapes in which Stream's SDKs expect it.

Pure. Mobile SDKs decode strictly, so every field that the specification requires is there, even
where the relay has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from relay import wire
from relay.errors import BadInput
from relay.events import check_custom, check_user_id


class User(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user as the store keeps it; times in nanoseconds since 1970.

    Tokens that were issued before ``revoked_before`` are no longer good (0 = all are).
    """

    id: str
    created_at: int
    updated_at: int
    name: str = ""
    image: str = ""
    role: str = "user"
    language: str = ""
    teams: tuple[str, ...] = ()
    invisible: bool = False
    revoked_before: int = 0
    custom: dict[str, Any] = {}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What is said about a user; None = not said, what is known stays.

    The last three are a server's to say, never the user's own.
    """

    name: str | None = None
    image: str | None = None
    language: str | None = None
    invisible: bool | None = None
    custom: dict[str, Any] | None = None
    role: str | None = None
    teams: tuple[str, ...] | None = None
    revoked_before: int | None = None


_TEXTS: Final = {"name": 1024, "image": 1024, "language": 32}
"""What a user says in words, and how many characters of it are kept."""

TEAMS_MOST: Final = 100
TEAM_CHARS: Final = 100


def read_profile(details: Mapping[str, Any], field: str = "user_details") -> Profile:
    """Return the profile in ``details``; raises ``BadInput`` naming the field that is wrong.

    What only a server may say is left out: see ``read_teams``, and the API for the role.
    """
    for name, most in _TEXTS.items():
        value = details.get(name)
        if value is not None and not (isinstance(value, str) and len(value) <= most):
            raise BadInput(f"{field}.{name} must be a string of at most {most} characters")
    if not isinstance(invisible := details.get("invisible"), bool | None):
        raise BadInput(f"{field}.invisible must be true or false")
    if (custom := details.get("custom")) is not None:
        check_custom(custom, field=f"{field}.custom")
    said = {name: details.get(name) for name in _TEXTS}
    return Profile(**said, invisible=invisible, custom=custom)


def read_teams(details: Mapping[str, Any], field: str) -> tuple[str, ...] | None:
    """Return the teams in ``details``, each once, None when they are not said."""
    teams = details.get("teams")
    if teams is None:
        return None
    if not isinstance(teams, list) or len(teams) > TEAMS_MOST:
        raise BadInput(f"{field}.teams must be a list of at most {TEAMS_MOST} strings")
    for number, team in enumerate(teams):
        if not (isinstance(team, str) and 0 < len(team) <= TEAM_CHARS):
            raise BadInput(
                f"{field}.teams[{number}] must be a string of 1 to {TEAM_CHARS} characters"
            )
    return tuple(dict.fromkeys(teams))


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
        "invisible": user.invisible,
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
