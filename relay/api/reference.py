"""What the relay fixes and Stream lets one configure: call types, and the limits of the API."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from relay import calls, http, permissions
from relay.api.context import Caller, Context
from relay.errors import NotFound

CALL_TYPES: Final = ("audio_room", "default", "development", "livestream")
"""The call types that Stream has from the start. Any other name works like ``default``."""

_PLATFORMS: Final = ("android", "ios", "web")
_KNOWN_SINCE: Final = 1_704_067_200_000_000_000


def _call_type(name: str) -> dict[str, Any]:
    call = calls.Call(cid=f"{name}:any", created_by="", created_at=0, updated_at=0)
    silent = {"enabled": False, "apns": {"body": "", "title": ""}}
    kinds = (
        "call_live_started",
        "call_missed",
        "call_notification",
        "call_ring",
        "session_started",
    )
    return {
        "name": name,
        "created_at": _KNOWN_SINCE,
        "updated_at": _KNOWN_SINCE,
        "grants": permissions.by_role(call),
        "settings": calls.default_settings(),
        "notification_settings": {"enabled": False, **dict.fromkeys(kinds, silent)},
    }


async def call_types(_: Context, request: Request, caller: Caller) -> Response:
    """Answer ``GET …/calltypes``."""
    caller.check_server()
    return http.answer(request, {"call_types": {name: _call_type(name) for name in CALL_TYPES}})


async def call_type(_: Context, request: Request, caller: Caller) -> Response:
    """Answer ``GET …/calltypes/{name}``."""
    caller.check_server()
    name = request.path_params["name"]
    if name not in CALL_TYPES:
        raise NotFound(f"there is no call type of that name, but: {', '.join(CALL_TYPES)}")
    return http.answer(request, _call_type(name))


async def rate_limits(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``GET …/rate_limits``: each user has as many requests of each operation a minute."""
    caller.check_server()
    limit = {"limit": api.meter.limit, "remaining": api.meter.limit, "reset": api.meter.reset_s()}
    asked = request.query_params.get("endpoints", "")
    names = [name for name in asked.split(",") if name] or ["SendCallEvent", "GetOrCreateCall"]
    per_platform = dict.fromkeys(names[:100], limit) if api.meter.limit else {}
    return http.answer(request, dict.fromkeys(_PLATFORMS, per_platform))
