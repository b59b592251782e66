"""Bodies of Stream's webhooks as they really look, for ``relay simulate``.

Pure: ids and the time come in as arguments. Times are integer nanoseconds here; ``simulate`` turns
them into RFC 3339 where that dialect is asked for. Field sets: Stream's OpenAPI document v236 and
production bodies (their users have no ``custom``, but ``shadow_banned`` and ``invisible``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from relay import calls, permissions, users
from relay.calls import Call
from relay.users import User

_HOUR_NS: Final = 3_600_000_000_000


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """Who does something, in which call, when (nanoseconds since 1970)."""

    cid: str
    user_id: str
    now_ns: int
    session_id: str
    custom: dict[str, Any]


def body(kind: str, scene: Scene) -> dict[str, Any]:
    """Return the body of a webhook of the type ``kind``, one of ``KINDS``."""
    common: dict[str, Any] = {"type": kind, "created_at": scene.now_ns}
    if kind.startswith("user."):
        return common | _BUILDERS[kind](scene)
    return common | {"call_cid": scene.cid} | _BUILDERS[kind](scene)


def _user(scene: Scene) -> dict[str, Any]:
    began = scene.now_ns - _HOUR_NS
    user = User(id=scene.user_id, name=scene.user_id.title(), created_at=began, updated_at=began)
    shown = users.response(user, online=True)
    del shown["custom"]
    return shown | {"shadow_banned": False, "invisible": False, "last_active": scene.now_ns}


def _record(scene: Scene) -> Call:
    began = scene.now_ns - _HOUR_NS
    return Call(cid=scene.cid, created_by=scene.user_id, created_at=began, updated_at=scene.now_ns)


def _call(scene: Scene, **changed: Any) -> dict[str, Any]:
    began = scene.now_ns - _HOUR_NS
    call = _record(scene)
    creator = User(id=scene.user_id, created_at=began, updated_at=began)
    shown = calls.response(call, {creator.id: creator}) | {
        "created_by": _user(scene),
        "current_session_id": scene.session_id,
        "session": _session(scene),
        "team": "",
        "ended_at": None,
    }
    return shown | changed


def _session(scene: Scene) -> dict[str, Any]:
    return {
        "id": scene.session_id,
        "started_at": scene.now_ns,
        "ended_at": None,
        "participants": [_participant(scene)],
        "participants_count_by_role": {"user": 1},
        "anonymous_participant_count": 0,
        "accepted_by": {scene.user_id: scene.now_ns},
        "missed_by": {},
        "rejected_by": {},
    }


def _participant(scene: Scene) -> dict[str, Any]:
    return {
        "user": _user(scene),
        "user_session_id": f"{scene.session_id}-1",
        "role": "user",
        "joined_at": scene.now_ns,
    }


def _member(scene: Scene) -> dict[str, Any]:
    return {
        "user": _user(scene),
        "user_id": scene.user_id,
        "role": "user",
        "custom": {},
        "created_at": scene.now_ns,
        "updated_at": scene.now_ns,
    }


def _custom(scene: Scene) -> dict[str, Any]:
    return {"custom": scene.custom, "user": _user(scene)}


def _created(scene: Scene) -> dict[str, Any]:
    return {"call": _call(scene), "members": [_member(scene)]}


def _updated(scene: Scene) -> dict[str, Any]:
    return {"call": _call(scene), "capabilities_by_role": permissions.by_role(_record(scene))}


def _ended(scene: Scene) -> dict[str, Any]:
    return {
        "call": _call(scene, ended_at=scene.now_ns, current_session_id=""),
        "user": _user(scene),
        "reason": "ended by a user",
    }


def _deleted(scene: Scene) -> dict[str, Any]:
    return {"call": _call(scene)}


def _reaction(scene: Scene) -> dict[str, Any]:
    return {
        "reaction": {
            "type": "reaction",
            "emoji_code": ":heart:",
            "custom": scene.custom,
            "user": _user(scene),
        }
    }


def _members(scene: Scene) -> dict[str, Any]:
    return {"call": _call(scene), "members": [_member(scene)]}


def _member_removed(scene: Scene) -> dict[str, Any]:
    return {"call": _call(scene), "members": [scene.user_id]}


def _session_change(scene: Scene) -> dict[str, Any]:
    return {"call": _call(scene), "session_id": scene.session_id}


def _joined(scene: Scene) -> dict[str, Any]:
    return {"session_id": scene.session_id, "participant": _participant(scene)}


def _left(scene: Scene) -> dict[str, Any]:
    return _joined(scene) | {"duration_seconds": 60, "reason": "left"}


def _counted(scene: Scene) -> dict[str, Any]:
    return {
        "session_id": scene.session_id,
        "participants_count_by_role": {"user": 1},
        "anonymous_participant_count": 0,
    }


def _permissions(scene: Scene) -> dict[str, Any]:
    return {"user": _user(scene), "own_capabilities": sorted(permissions.BASIC)}


def _blocked(scene: Scene) -> dict[str, Any]:
    return {"user": _user(scene), "blocked_by_user": _user(scene)}


def _unblocked(scene: Scene) -> dict[str, Any]:
    return {"user": _user(scene)}


_BUILDERS: Final[dict[str, Callable[[Scene], dict[str, Any]]]] = {
    "custom": _custom,
    "call.created": _created,
    "call.updated": _updated,
    "call.ended": _ended,
    "call.deleted": _deleted,
    "call.reaction_new": _reaction,
    "call.member_added": _members,
    "call.member_updated": _members,
    "call.member_removed": _member_removed,
    "call.session_started": _session_change,
    "call.session_ended": _session_change,
    "call.session_participant_joined": _joined,
    "call.session_participant_left": _left,
    "call.session_participant_count_updated": _counted,
    "call.permissions_updated": _permissions,
    "call.blocked_user": _blocked,
    "call.unblocked_user": _unblocked,
    "user.updated": _unblocked,
}

KINDS: Final = tuple(_BUILDERS)
"""The types there are bodies for."""
