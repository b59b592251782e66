"""What Stream's protocol requires of every answer and every event, as data and one checker.

Source: the required fields of Stream's OpenAPI specification, and what its SDKs cannot do without.
The clients of the tests hand in whatever they get, so that everything the suite makes the relay say
is held to it, not only what some test looks at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

Spec = Any
"""A type, ``TIME``, a dict of required fields (``name?`` = may be absent or null), ``[spec]`` for a
list, ``{str: spec}`` for a map with any keys."""

TIME: Final = "time"
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z")

USER: Final = {
    "id": str, "name": str, "image": str, "custom": dict, "language": str, "role": str,
    "teams": [str], "created_at": TIME, "updated_at": TIME, "banned": bool, "online": bool,
    "blocked_user_ids": [str],
}  # fmt: skip
_UNREAD: Final = {
    "devices": list, "invisible": bool, "mutes": list, "channel_mutes": list, "unread_count": int,
    "total_unread_count": int, "unread_channels": int, "unread_threads": int,
}  # fmt: skip
OWN_USER: Final = {**USER, **_UNREAD}
FULL_USER: Final = {**OWN_USER, "shadow_banned": bool}
# Ingested webhooks are relayed as they are, and Stream's own describe users without these.
SOMEBODY: Final = {"id": str, "role": str, "created_at": TIME, "updated_at": TIME}

MEMBER: Final = {
    "user": SOMEBODY, "user_id": str, "custom": dict, "created_at": TIME, "updated_at": TIME,
    "role": str,
}  # fmt: skip
PARTICIPANT: Final = {"user": SOMEBODY, "user_session_id": str, "role": str, "joined_at": TIME}
SESSION: Final = {
    "id": str, "participants": [PARTICIPANT], "participants_count_by_role": {str: int},
    "anonymous_participant_count": int, "accepted_by": {str: TIME}, "missed_by": {str: TIME},
    "rejected_by": {str: TIME}, "started_at?": TIME, "ended_at?": TIME,
}  # fmt: skip
SETTINGS: Final = dict.fromkeys(
    (
        "audio", "backstage", "broadcasting", "geofencing", "recording", "individual_recording",
        "raw_recording", "frame_recording", "ring", "screensharing", "transcription", "video",
        "thumbnails", "limits", "session", "encryption",
    ),
    dict,
)  # fmt: skip
CALL: Final = {
    "type": str, "id": str, "cid": str, "current_session_id": str, "created_by": SOMEBODY,
    "custom": dict, "created_at": TIME, "updated_at": TIME, "recording": bool,
    "transcribing": bool, "captioning": bool, "translating": bool, "backstage": bool,
    "settings": SETTINGS, "blocked_user_ids": [str],
    "ingress": {name: {"address": str} for name in ("rtmp", "whip", "srt")},
    "egress": {"broadcasting": bool, "rtmps": list},
    "session?": SESSION, "starts_at?": TIME, "ended_at?": TIME, "team?": str,
}  # fmt: skip
STATE: Final = {
    "call": CALL, "members": [MEMBER], "own_capabilities": [str], "membership?": MEMBER,
}  # fmt: skip
ERROR: Final = {
    "code": int, "message": str, "StatusCode": int, "duration": str, "more_info": str,
    "details": list,
}  # fmt: skip

_OF_A_CALL: Final = {"type": str, "created_at": TIME, "call_cid": str}
_PARTICIPATION: Final = {**_OF_A_CALL, "session_id": str, "participant": PARTICIPANT}
_RINGING: Final = {**_OF_A_CALL, "call": CALL, "members": [MEMBER], "session_id": str}
_MEMBERS: Final = {**_OF_A_CALL, "call": CALL, "members": [MEMBER]}

EVENTS: Final[dict[str, Spec]] = {
    "call.accepted": {**_OF_A_CALL, "call": CALL, "user": SOMEBODY},
    "call.blocked_user": {**_OF_A_CALL, "user": SOMEBODY, "blocked_by_user?": SOMEBODY},
    "call.created": _MEMBERS,
    "call.deleted": {**_OF_A_CALL, "call": CALL},
    "call.ended": {**_OF_A_CALL, "call": CALL, "user?": SOMEBODY, "members?": [MEMBER]},
    "call.kicked_user": {**_OF_A_CALL, "user": SOMEBODY, "kicked_by_user?": SOMEBODY},
    "call.live_started": {**_OF_A_CALL, "call": CALL},
    "call.member_added": _MEMBERS,
    "call.member_removed": {**_OF_A_CALL, "call": CALL, "members": [str]},
    "call.member_updated": _MEMBERS,
    "call.member_updated_permission": {**_MEMBERS, "capabilities_by_role": {str: [str]}},
    "call.notification": {**_RINGING, "user": SOMEBODY},
    "call.permission_request": {**_OF_A_CALL, "user": SOMEBODY, "permissions": [str]},
    "call.permissions_updated": {**_OF_A_CALL, "user": SOMEBODY, "own_capabilities": [str]},
    "call.reaction_new": {
        **_OF_A_CALL,
        "reaction": {"type": str, "user": SOMEBODY, "emoji_code?": str, "custom?": dict},
    },
    "call.rejected": {**_OF_A_CALL, "call": CALL, "user": SOMEBODY, "reason?": str},
    "call.ring": {**_RINGING, "user": SOMEBODY, "video": bool},
    "call.session_ended": {**_OF_A_CALL, "call": CALL, "session_id": str},
    "call.session_participant_joined": _PARTICIPATION,
    "call.session_participant_left": {**_PARTICIPATION, "duration_seconds": int},
    "call.session_started": {**_OF_A_CALL, "call": CALL, "session_id": str},
    "call.unblocked_user": {**_OF_A_CALL, "user": SOMEBODY},
    "call.updated": {**_OF_A_CALL, "call": CALL, "capabilities_by_role": {str: [str]}},
    "connection.error": {"type": str, "created_at": TIME, "connection_id": str, "error": ERROR},
    "connection.ok": {"type": str, "created_at": TIME, "connection_id": str, "me": OWN_USER},
    "custom": {**_OF_A_CALL, "custom": dict, "user": SOMEBODY},
    "health.check": {"type": str, "created_at": TIME, "connection_id": str},
    "user.updated": {"type": str, "created_at": TIME, "user": SOMEBODY, "custom": dict},
}
"""By type. Any other event of a call has at least what all of them have."""

_DONE: Final = {"duration": str}
_USERS: Final = {"users": {str: FULL_USER}, "membership_deletion_task_id": str}
_CALL_PATH: Final = r"/(?:api/v2/)?video/call/[^/]+/[^/]+"
_VIDEO_PATH: Final = r"/(?:api/v2/)?video"

ANSWERS: Final[tuple[tuple[str, str, Spec], ...]] = (
    ("GET", _CALL_PATH, STATE),
    ("POST", _CALL_PATH, {**STATE, "created": bool}),
    ("PATCH", _CALL_PATH, STATE),
    (
        "POST",
        f"{_CALL_PATH}/join",
        {
            **STATE,
            "created": bool,
            "credentials": {
                "server": {"edge_name": str, "url": str, "ws_endpoint": str},
                "token": str,
                "ice_servers": [dict],
            },
            "stats_options": {"reporting_interval_ms": int, "enable_rtc_stats": bool},
        },
    ),
    ("POST", f"{_CALL_PATH}/members", {"members": [MEMBER]}),
    ("POST", f"{_CALL_PATH}/reaction", {"reaction": {"type": str, "user": SOMEBODY}}),
    ("POST", f"{_CALL_PATH}/(?:delete|go_live|stop_live)", {"call": CALL}),
    ("POST", f"{_VIDEO_PATH}/call/members", {"members": [MEMBER], "next?": str, "prev?": str}),
    ("POST", f"{_VIDEO_PATH}/calls", {"calls": [STATE], "next?": str, "prev?": str}),
    ("POST", r"/(?:api/v2|video)/guest", {"user": USER, "access_token": str}),
    ("POST", "/api/v2/users", _USERS),
    ("PATCH", "/api/v2/users", _USERS),
    ("GET", "/api/v2/users", {"users": [FULL_USER]}),
)
"""Method, path, and what the answer has beyond ``duration``."""

_API: Final = re.compile(r"/(?:api/v2|video)(?:/.*)?")


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Raise ``AssertionError`` naming every field by which an answer of the API falls short."""
    if not _API.fullmatch(path) or method == "HEAD":
        return
    in_nanoseconds = path.startswith("/api/v2/")
    if status >= 400:
        problems = list(_problems(body, {**ERROR, "unrecoverable?": bool}, "", False))
        if isinstance(body, dict) and body.get("StatusCode") != status:
            problems.append(f"StatusCode is {body.get('StatusCode')}, the answer's is {status}")
    else:
        problems = list(_problems(body, _DONE, "", in_nanoseconds))
        for wanted_method, pattern, spec in ANSWERS:
            if wanted_method == method and re.fullmatch(pattern, path):
                problems += _problems(body, spec, "", in_nanoseconds)
                break
    assert not problems, f"{method} {path} answered {status} with {problems}: {str(body)[:500]}"


def check_event(event: Any) -> None:
    """Raise ``AssertionError`` naming every field by which a frame of the socket falls short."""
    kind = event.get("type") if isinstance(event, dict) else None
    if kind not in EVENTS and (
        not isinstance(event, dict) or "event_id" not in event or "id" in event
    ):
        return  # a reply or a notice of the relay's own protocol: its transcripts are its test
    spec = EVENTS.get(kind, _OF_A_CALL)
    problems = list(_problems(event, spec, "", in_nanoseconds=False))
    assert not problems, f"the event {kind} falls short: {problems}"


def _problems(value: Any, spec: Spec, path: str, in_nanoseconds: bool) -> Iterator[str]:
    if spec == TIME:
        good = isinstance(value, int) if in_nanoseconds else bool(_RFC3339.fullmatch(str(value)))
        if not good:
            yield f"{path} is no time of this dialect: {value!r}"
    elif isinstance(spec, list):
        yield from _list_problems(value, spec[0], path, in_nanoseconds)
    elif isinstance(spec, dict):
        yield from _object_problems(value, spec, path, in_nanoseconds)
    elif type(value) is not spec:
        yield f"{path} is no {spec.__name__}: {value!r}"


def _list_problems(value: Any, spec: Spec, path: str, in_nanoseconds: bool) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path} is no list: {value!r}"
        return
    for index, item in enumerate(value):
        yield from _problems(item, spec, f"{path}[{index}]", in_nanoseconds)


def _object_problems(
    value: Any, spec: dict[Any, Spec], path: str, in_nanoseconds: bool
) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is no object: {value!r}"
        return
    if str in spec:
        for name, item in value.items():
            yield from _problems(item, spec[str], f"{path}.{name}", in_nanoseconds)
        return
    for name, inner in spec.items():
        field = name.removesuffix("?")
        below = f"{path}.{field}" if path else field
        if field not in value:
            if field == name:
                yield f"{below} is missing"
        elif not (field != name and value[field] is None):
            yield from _problems(value[field], inner, below, in_nanoseconds)
