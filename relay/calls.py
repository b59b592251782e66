"""Calls as values: what is known of one, and the shape in which Stream's SDKs expect it.

Pure. The JavaScript client throws without ``egress`` and ``settings.screensharing``; mobile SDKs
want the specification's whole required set, so the relay always answers with it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from relay import users
from relay.users import User


class Member(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A user's place in a call: members hear of it, whether they watch or not."""

    user_id: str
    created_at: int
    updated_at: int
    role: str = "user"
    custom: dict[str, Any] = {}


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
    somebody overrode, ``permissions`` only users for whom something differs.
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


CAPABILITIES: Final = ("create-reaction", "join-call", "read-call")
"""What a user may do. Without ``send-audio`` and ``send-video`` no SDK asks for devices."""

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


def response(call: Call, created_by: User) -> dict[str, Any]:
    """Return Stream's CallResponse, its times as integer nanoseconds."""
    kind, _, call_id = call.cid.partition(":")
    return {
        "type": kind,
        "id": call_id,
        "cid": call.cid,
        "current_session_id": "",
        # These two are beyond the specification: Stream's Python SDK misses them only here.
        "created_by": users.response(created_by) | {"invisible": False, "shadow_banned": False},
        "custom": call.custom,
        "created_at": call.created_at,
        "updated_at": call.updated_at,
        "recording": False,
        "transcribing": False,
        "captioning": False,
        "translating": False,
        "backstage": False,
        "settings": _SETTINGS,
        "blocked_user_ids": [],
        "ingress": {name: {"address": ""} for name in ("rtmp", "whip", "srt")},
        "egress": {"broadcasting": False, "rtmps": []},
    }
