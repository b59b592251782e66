"""Calls as values: what is known of one, and the shape in which Stream's SDKs expect it.

Pure. The JavaScript client throws without ``egress`` and ``settings.screensharing``; mobile SDKs
want the specification's whole required set, so the relay always answers with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from relay import users
from relay.errors import BadInput
from relay.users import User

MEMBERS_MOST: Final = 1000
"""Members that a call may have."""


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user's place in a call: members hear of it, whether they watch or not."""

    user_id: str
    created_at: int
    updated_at: int
    role: str = "user"
    custom: dict[str, Any] = {}


class MemberChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom one request added, changed (some in their role) and removed; ``at`` as all times."""

    id: str
    at: int
    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class Permissions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one user may do in a call beyond its role, or no longer."""

    granted: tuple[str, ...] = ()
    revoked: tuple[str, ...] = ()


class Participant(msgspec.Struct, frozen=True, kw_only=True):
    """A user who joined a call and has not left it; ``joined_at`` in nanoseconds since 1970."""

    user_id: str
    user_session_id: str
    role: str
    joined_at: int


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """From the first participant's joining until the last one's leaving."""

    id: str
    started_at: int
    participants: tuple[Participant, ...] = ()


class Call(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call as the store keeps it; times in nanoseconds since 1970.

    ``members`` are in the order in which they came, each user once. ``settings`` holds only what
    somebody overrode, ``permissions`` only users for whom something differs. ``member_changes`` are
    the latest: by them the repeat of a request that was cut off knows what it has done.
    """

    cid: str
    created_by: str
    created_at: int
    updated_at: int
    starts_at: int | None = None
    ended_at: int | None = None
    team: str = ""
    video: bool = False
    backstage: bool = False
    custom: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    members: tuple[Member, ...] = ()
    member_changes: tuple[MemberChange, ...] = ()
    blocked: tuple[str, ...] = ()
    permissions: dict[str, Permissions] = {}

    @property
    def type(self) -> str:
        """The part of the cid before the colon."""
        return self.cid.partition(":")[0]

    @property
    def id(self) -> str:
        """The part of the cid after the colon."""
        return self.cid.partition(":")[2]

    def member(self, user_id: str) -> Member | None:
        """Return a user's membership, None when it is no member."""
        return next((member for member in self.members if member.user_id == user_id), None)

    @property
    def audience(self) -> list[str]:
        """Return the ids of the members who are told of the call: all who are not blocked."""
        return [member.user_id for member in self.members if member.user_id not in self.blocked]


_RESOLUTION: Final = {"width": 1280, "height": 720, "bitrate": 1_500_000}
_SETTINGS: Final[dict[str, Any]] = {
    "audio": {
        "access_request_enabled": False, "default_device": "speaker", "mic_default_on": False,
        "opus_dtx_enabled": True, "redundant_coding_enabled": True, "speaker_default_on": True,
        "hifi_audio_enabled": False,
    },
    "backstage": {"enabled": False},
    "broadcasting": {
        "enabled": False,
        "hls": {
            "auto_on": False, "enabled": False, "quality_tracks": [],
            "layout": {"name": "spotlight", "external_app_url": "", "external_css_url": ""},
        },
        "rtmp": {
            "enabled": False, "quality": "720p",
            "layout": {"name": "spotlight", "external_app_url": "", "external_css_url": ""},
        },
    },
    "encryption": {"mode": "disabled"},
    "frame_recording": {"mode": "disabled", "capture_interval_in_seconds": 2},
    "geofencing": {"names": []},
    "individual_recording": {"mode": "disabled"},
    "limits": {"max_participants_exclude_roles": []},
    "raw_recording": {"mode": "disabled"},
    "recording": {
        "audio_only": False, "mode": "disabled", "quality": "720p",
        "layout": {"name": "spotlight", "external_app_url": "", "external_css_url": ""},
    },
    "ring": {
        "auto_cancel_timeout_ms": 15000, "incoming_call_timeout_ms": 15000,
        "missed_call_timeout_ms": 15000,
    },
    "screensharing": {
        "access_request_enabled": False, "enabled": False, "target_resolution": _RESOLUTION,
    },
    "session": {"inactivity_timeout_seconds": 30},
    "thumbnails": {"enabled": False},
    "transcription": {
        "closed_caption_mode": "disabled", "language": "auto", "mode": "disabled",
    },
    "video": {
        "access_request_enabled": False, "camera_default_on": False, "camera_facing": "front",
        "enabled": False, "target_resolution": _RESOLUTION,
    },
}  # fmt: skip


def response(
    call: Call, users_by_id: Mapping[str, User], session: Session | None = None
) -> dict[str, Any]:
    """Return Stream's CallResponse, its times as integer nanoseconds.

    ``users_by_id`` has whom the call names; who is missing there is shown by its id alone.
    """
    return {
        "type": call.type,
        "id": call.id,
        "cid": call.cid,
        "current_session_id": "" if session is None else session.id,
        "created_by": _user(call.created_by, users_by_id, call.created_at),
        "custom": call.custom,
        "created_at": call.created_at,
        "updated_at": call.updated_at,
        "starts_at": call.starts_at,
        "ended_at": call.ended_at,
        "team": call.team,
        "recording": False,
        "transcribing": False,
        "captioning": False,
        "translating": False,
        "backstage": call.backstage,
        "settings": merged(_SETTINGS, call.settings),
        "blocked_user_ids": list(call.blocked),
        "ingress": {name: {"address": ""} for name in ("rtmp", "whip", "srt")},
        "egress": {"broadcasting": False, "rtmps": []},
        **({} if session is None else {"session": session_response(session, users_by_id)}),
    }


def member_response(member: Member, users_by_id: Mapping[str, User]) -> dict[str, Any]:
    """Return Stream's MemberResponse, its times as integer nanoseconds."""
    return {
        "user_id": member.user_id,
        "user": _user(member.user_id, users_by_id, member.created_at),
        "role": member.role,
        "custom": member.custom,
        "created_at": member.created_at,
        "updated_at": member.updated_at,
    }


def participant_response(
    participant: Participant, users_by_id: Mapping[str, User]
) -> dict[str, Any]:
    """Return Stream's CallParticipantResponse, its times as integer nanoseconds."""
    return {
        "user": _user(participant.user_id, users_by_id, participant.joined_at),
        "user_session_id": participant.user_session_id,
        "role": participant.role,
        "joined_at": participant.joined_at,
    }


def session_response(session: Session, users_by_id: Mapping[str, User]) -> dict[str, Any]:
    """Return Stream's CallSessionResponse, its times as integer nanoseconds."""
    participants = session.participants
    return {
        "id": session.id,
        "started_at": session.started_at,
        "participants": [participant_response(p, users_by_id) for p in participants],
        "participants_count_by_role": dict(Counter(p.role for p in participants)),
        "anonymous_participant_count": 0,
        "accepted_by": {},
        "missed_by": {},
        "rejected_by": {},
    }


def _user(user_id: str, users_by_id: Mapping[str, User], known_at: int) -> dict[str, Any]:
    user = users_by_id.get(user_id) or User(id=user_id, created_at=known_at, updated_at=known_at)
    # Beyond the specification: Stream's Python SDK warns of each answer without these two.
    return users.response(user) | {"invisible": False, "shadow_banned": False}


# -- settings -----------------------------------------------------------------------------------


def default_settings() -> dict[str, Any]:
    """Return what holds for a call of which nobody overrode anything."""
    return merged(_SETTINGS, {})


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with what ``over`` says instead, object by object."""
    result = dict(base)
    for name, value in over.items():
        below = base.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) else value
    return result


def read_settings(value: object, path: str) -> dict[str, Any]:
    """Return the part of a settings override that the relay knows.

    Raises ``BadInput`` naming the field whose type is not that of the default.
    """
    return _read_block(value, _SETTINGS, path)


def _read_block(value: object, template: Mapping[str, Any], path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{path} must be a JSON object")
    known = {name: value[name] for name in template if value.get(name) is not None}
    return {
        name: _read_setting(given, template[name], f"{path}.{name}")
        for name, given in known.items()
    }


def _read_setting(value: object, default: Any, path: str) -> Any:
    if isinstance(default, dict):
        return _read_block(value, default, path)
    if type(value) is not type(default) or (type(value) is int and value not in _NUMBERS):
        raise BadInput(f"{path} must be {_KINDS[type(default)]}")
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise BadInput(f"{path} must be a list of strings")
    if isinstance(value, str) and len(value) > LONGEST_SETTING:
        raise BadInput(f"{path} may have at most {LONGEST_SETTING} characters")
    return value


LONGEST_SETTING: Final = 1024
_NUMBERS: Final = range(2**31)
_KINDS: Final = {
    bool: "true or false",
    int: f"a whole number from 0 to {_NUMBERS[-1]}",
    str: "a string",
    list: "a list",
}
