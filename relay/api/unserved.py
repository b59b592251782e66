"""Paths of Stream's API that the relay does not serve: each answers what it is, and that it is not.

A path that is nowhere answers 404 too, but the reader of that 404 looks for a typing mistake; here
he learns that there is none. Stream's SDKs do not repeat what is unrecoverable.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay.doors import Door
from relay.errors import NotServed
from relay.http import endpoint

_OF_A_CALL: Final = {
    "muting and pinning": ("mute_users", "pin", "unpin"),
    "recording": (
        "recordings", "recordings/{kind}/start", "recordings/{kind}/stop", "start_recording",
        "stop_recording", "start_frame_recording", "stop_frame_recording",
        "{session}/recordings/{filename}",
    ),
    "transcription and captions": (
        "start_transcription", "stop_transcription", "transcriptions", "start_closed_captions",
        "stop_closed_captions", "closed_captions", "{session}/transcriptions/{filename}",
    ),
    "broadcasting": (
        "start_broadcasting", "stop_broadcasting", "rtmp_broadcasts", "rtmp_broadcasts/stop",
        "rtmp_broadcasts/{name}/stop",
    ),
    "call statistics and feedback": (
        "feedback", "report", "participants", "stats/{session}", "ring_state",
        "session/{session}/participant_sessions",
        "session/{session}/participant/{user}/{user_session}/details/track",
    ),
}  # fmt: skip
"""What it is → paths below ``…/call/{type}/{id}/``."""

_OF_VIDEO: Final = {
    "call statistics and feedback": (
        "call/stats", "call/feedback", "call_stats", "call_stats/{rest:path}", "stats",
        "stats/{rest:path}", "active_calls_status",
    ),
    "the choice of a media server": ("edges",),
    "telephony": ("sip/{rest:path}",),
    "push notifications": ("devices", "push_providers"),
}  # fmt: skip
"""What it is → paths below ``/video/`` and ``/api/v2/video/``."""

_OF_THE_APP: Final = {
    "push notifications": ("devices", "push_providers", "push_preferences", "push_templates"),
    "chat": ("chat/{rest:path}", "messages/{rest:path}", "og", "polls", "polls/{rest:path}"),
    "feeds": ("feeds/{rest:path}",),
    "moderation": ("moderation/{rest:path}", "blocklists", "blocklists/{rest:path}"),
    "blocking between users": ("users/block", "users/unblock"),
    "deleting, exporting and restoring users": (
        "users/delete", "users/deactivate", "users/reactivate", "users/restore", "export/users",
        "users/{id}/deactivate", "users/{id}/reactivate", "users/{id}/export", "users/{id}/event",
        "users/live_locations",
    ),
    "roles and permissions as settings": (
        "roles", "roles/{name}", "permissions", "permissions/{id}",
    ),
    "tasks, imports and uploads": (
        "tasks/{id}", "imports", "imports/{rest:path}", "import_urls", "uploads/{rest:path}",
        "storage/{rest:path}", "external_storage", "external_storage/{rest:path}",
    ),
}  # fmt: skip
"""What it is → paths below ``/api/v2/``."""

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def routes(door: Door) -> list[Route]:
    """Return a route for every path; they go behind those that are served."""
    found = []
    for prefix in ("/video", "/api/v2/video"):
        found += _below(f"{prefix}/call/{{type}}/{{id}}", _OF_A_CALL, door)
        found += _below(prefix, _OF_VIDEO, door)
    return found + _below("/api/v2", _OF_THE_APP, door)


def _below(prefix: str, table: dict[str, tuple[str, ...]], door: Door) -> list[Route]:
    return [
        _refusing(f"{prefix}/{path}", what, door) for what, paths in table.items() for path in paths
    ]


def _refusing(path: str, what: str, door: Door) -> Route:
    async def refuse(request: Request) -> Response:
        raise NotServed(f"{what}: the relay does not serve this, it relays events and no media")

    return Route(path, endpoint(refuse, door), methods=_METHODS)
