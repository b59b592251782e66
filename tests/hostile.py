"""Hostile requests for every operation of the HTTP API, made from good ones.

``operations`` reads the routes themselves, so a new one is here without being entered. ``GOOD`` has
a body of each with every field that it reads; ``corrupted`` makes of it the bodies that have one
field wrong, which the relay must refuse by that field's path.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import httpx
from starlette.routing import Route

from relay.wire import encode

CID = "default:demo"
OWNER = "john"
CONNECTION = "node-1-mac"

Body = dict[str, Any]

_MEMBER = {"user_id": "jane", "role": "host", "custom": {"seat": 1}}
_SETTINGS = {"backstage": {"enabled": False}, "ring": {"missed_call_timeout_ms": 9000}}
_USER = {"id": "jane", "name": "Jane", "image": "i", "role": "user", "custom": {"a": 1}}
_CALL = {
    "custom": {"topic": "tea"},
    "members": [_MEMBER],
    "settings_override": _SETTINGS,
    "starts_at": "2027-01-15T08:00:00Z",
    "team": "red",
    "video": True,
}
_ASKED = {"members_limit": 5, "ring": True, "notify": True, "video": True, "watch": True}
_FIND = {
    "filter_conditions": {
        "created_at": {"$gte": "2020-01-01T00:00:00Z"},
        "$or": [{"role": {"$in": ["host", "user"]}}, {"user_id": {"$autocomplete": "ja"}}],
    },
    "sort": [{"field": "created_at", "direction": -1}],
    "limit": 10,
}

GOOD: dict[tuple[str, str], Body] = {
    ("POST", "/guest"): {"user": _USER},
    ("POST", "/users"): {"users": {"jane": _USER}},
    ("PATCH", "/users"): {
        "users": [
            {
                "id": OWNER,
                "set": {"name": "J", "role": "admin", "custom": {"b": 2}, "colour": "red"},
                "unset": ["image"],
            }
        ]
    },
    ("POST", "/calls"): {
        "filter_conditions": {
            "type": "default",
            "backstage": False,
            "members": {"$in": ["jane"]},
            "custom.topic": {"$in": ["tea", 5]},
            "$nor": [{"team": {"$exists": True}}, {"ended_at": {"$gt": "2020-01-01T00:00:00Z"}}],
        },
        "sort": [{"field": "starts_at", "direction": 1}],
        "limit": 10,
        "watch": False,
    },
    ("POST", "/call/members"): {"type": "default", "id": "demo", **_FIND},
    ("POST", "/call/{type}/{id}"): {"data": _CALL, **_ASKED},
    ("PATCH", "/call/{type}/{id}"): {
        "custom": {"topic": "tea"},
        "settings_override": _SETTINGS,
        "starts_at": 1_800_000_000_000_000_000,
    },
    ("POST", "/call/{type}/{id}/block"): {"user_id": "jane"},
    ("POST", "/call/{type}/{id}/delete"): {"hard": True},
    ("POST", "/call/{type}/{id}/event"): {
        "custom": {"animation": "balloons"},
        "user_id": "jane",
        "user": _USER,
        "volatile": False,
        "event_id": "e1",
    },
    ("POST", "/call/{type}/{id}/join"): {"create": True, "data": _CALL, **_ASKED},
    ("POST", "/call/{type}/{id}/kick"): {
        "user_id": "jane",
        "block": True,
        "kicked_by_id": OWNER,
        "kicked_by": {"id": OWNER, "name": "John"},
    },
    ("POST", "/call/{type}/{id}/members"): {
        "update_members": [_MEMBER],
        "remove_members": ["ben"],
    },
    ("POST", "/call/{type}/{id}/reaction"): {
        "type": "raised-hand",
        "emoji_code": ":raise-hand:",
        "custom": {"a": 1},
    },
    ("POST", "/call/{type}/{id}/reject"): {"reason": "busy"},
    ("POST", "/call/{type}/{id}/request_permission"): {"permissions": ["send-audio"]},
    ("POST", "/call/{type}/{id}/unblock"): {"user_id": "jane"},
    ("POST", "/call/{type}/{id}/user_permissions"): {
        "user_id": "jane",
        "grant_permissions": ["send-audio"],
        "revoke_permissions": ["send-video"],
    },
}
"""By method and path below its prefix. What is not here reads no body."""

NEEDED = {
    ("POST", "/guest"): ["user", "user.id"],
    ("POST", "/users"): ["users", "users.jane.id"],
    ("PATCH", "/users"): ["users[0].id"],
    ("POST", "/call/members"): ["type", "id"],
    ("POST", "/call/{type}/{id}/block"): ["user_id"],
    ("POST", "/call/{type}/{id}/event"): ["custom"],
    ("POST", "/call/{type}/{id}/kick"): ["user_id"],
    ("POST", "/call/{type}/{id}/members"): ["update_members[0].user_id"],
    ("POST", "/call/{type}/{id}/reaction"): ["type"],
    ("POST", "/call/{type}/{id}/request_permission"): ["permissions"],
    ("POST", "/call/{type}/{id}/unblock"): ["user_id"],
    ("POST", "/call/{type}/{id}/user_permissions"): ["user_id"],
}
"""Fields that must not be missing."""

BY_USERS = ("/join", "/reaction", "/accept", "/reject", "/request_permission")
"""Paths (their ends) that only a user may ask."""


class Operation(NamedTuple):
    """A method and a path with its prefix; ``key`` is what tells it in ``GOOD``."""

    method: str
    path: str
    key: tuple[str, str]

    @property
    def by_user(self) -> bool:
        """Whether only a user may ask it."""
        return self.path.endswith(BY_USERS) or self.key == ("POST", "/call/{type}/{id}")

    @property
    def url(self) -> str:
        """The path with its parameters filled in."""
        return (
            self.path.replace("{type}", "default")
            .replace("{id}", "demo")
            .replace("{name}", "default")
        )

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def assert_refused(response: httpx.Response, path: str, codes: tuple[int, ...] = (4, 22)) -> None:
    """Assert that a request was refused, and that the message names the field."""
    body = response.json()
    assert response.status_code in (400, 413), body
    assert body["code"] in codes, body
    assert path in body["message"], f"{path!r} is not in {body['message']!r}"


def operations(routes: Iterable[Route]) -> list[Operation]:
    """Return what the API serves below ``/video`` and ``/api/v2``."""
    found = []
    for route in routes:
        below = _below(route.path)
        if below is not None:
            methods = sorted((route.methods or set()) - {"HEAD"})
            found += [Operation(method, route.path, (method, below)) for method in methods]
    return found


def _below(path: str) -> str | None:
    for prefix in ("/api/v2/video", "/api/v2", "/video"):
        if path.startswith(f"{prefix}/"):
            return path.removeprefix(prefix)
    return None


# -- corrupting ---------------------------------------------------------------------------------

LONG = "x" * 40_000
_NO_TEXT = (5, True, {"a": 1}, ["x"], LONG)
_NO_FLAG = (1, "true", {}, ["x"], 10**30)
_NO_NUMBER = ("x", True, {}, ["x"], -1, 0.5, 10**30)
_NO_LIST = ("x", 5, True, {"a": 1})
_NO_DIRECTION = (0, 2, True, "x", ["x"], 10**30)
_NO_CONDITION = ({}, {"$hum": 1}, {"__proto__": {}}, {"$in": "x"}, {"$eq": {}})
_NO_SCALAR = ({}, {"$in": {"a": 1}}, LONG)
_NO_OBJECT = ("x", 5, True, ["x"])
_NO_TIME = ("yesterday", -1, 10**30, True, 0.5, {"a": 1}, "9999-99-99T00:00:00Z", LONG)
_FREE = ("custom", "set")
_TIMES = ("starts_at", "$gte", "$gt")


def corrupted(key: tuple[str, str], body: Body) -> Iterator[tuple[str, Body]]:
    """Yield bodies with one field wrong, each with that field's path."""
    for path, steps, value in list(_fields(body, "", ())):
        for wrong in _wrong(steps, value):
            yield path, _replaced(body, steps, wrong)
    for path, steps, _ in list(_fields(body, "", ())):
        if path in NEEDED.get(key, ()):
            yield path, _removed(body, steps)


def _fields(
    value: Any, path: str, steps: tuple[Any, ...]
) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Yield every field and element below ``value``, except what is the application's own."""
    if steps:
        yield path, steps, value
    if steps and steps[-1] in _FREE and isinstance(value, dict):
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else name, (*steps, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _fields(inner, f"{path}[{index}]", (*steps, index))


def _wrong(steps: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    name = steps[-1]
    if name in _TIMES:
        return _NO_TIME
    if name == "direction":
        return _NO_DIRECTION
    if isinstance(value, dict) and value and all(key.startswith("$") for key in value):
        return _NO_CONDITION
    if any(str(step).startswith("custom.") for step in steps) and not isinstance(value, list):
        return _NO_SCALAR
    if isinstance(value, bool):
        return _NO_FLAG
    if isinstance(value, int):
        return _NO_NUMBER
    if isinstance(value, list):
        return _NO_LIST
    if isinstance(value, dict):
        return (*_NO_OBJECT, {"text": LONG}) if name == "custom" else _NO_OBJECT
    return _NO_TEXT


def _replaced(body: Body, steps: tuple[Any, ...], wrong: Any) -> Body:
    changed = copy.deepcopy(body)
    _parent(changed, steps)[steps[-1]] = wrong
    return changed


def _removed(body: Body, steps: tuple[Any, ...]) -> Body:
    changed = copy.deepcopy(body)
    del _parent(changed, steps)[steps[-1]]
    return changed


def _parent(body: Any, steps: tuple[Any, ...]) -> Any:
    for step in steps[:-1]:
        body = body[step]
    return body


def changed_at(body: Body, place: int, name: str, value: Any) -> Body:
    """Return a body with one of its fields exchanged, or with another one added."""
    fields = list(_fields(body, "", ()))
    place %= len(fields) + 1
    if place == len(fields):
        return {**body, name: value}
    return _replaced(body, fields[place][1], value)


# -- texts that are no JSON object ----------------------------------------------------------------

RAW = {
    "nothing but an array": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "cut off": b'{"custom":{',
    "no UTF-8": b'{"custom":{"a":"\xff\xfe"}}',
    "a lone surrogate": b'{"custom":{"a":"\\ud800"}}',
    "a number out of range": b'{"custom":{"a":1e999}}',
    "a number of 10 000 digits": b'{"custom":{"a":' + b"9" * 10_000 + b"}}",
    "not a number": b'{"custom":{"a":NaN}}',
    "10 000 nested arrays": b'{"custom":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "100 nested objects": b'{"a":' * 100 + b"1" + b"}" * 100,
    "a byte order mark": b'\xef\xbb\xbf{"custom":{}}',
}
"""Bodies that every operation which reads one refuses."""

URLS = (
    "a%00b",
    "a%0Ab",
    "%F0%9F%98%80",
    "a:b",
    "x" * 300,
    "%ff",
    "a%20b",
    "%2e%2e",
    "__proto__%00",
)
"""What may stand where a path wants a call's type and id, and is none."""

CALL_URL = "/video/call/default/demo"

QUERIES = [
    (CALL_URL, {"members_limit": "-1"}, "members_limit"),
    (CALL_URL, {"members_limit": "1e3"}, "members_limit"),
    (CALL_URL, {"members_limit": "9" * 5000}, "members_limit"),
    (CALL_URL, {"watch": "maybe"}, "watch"),
    (CALL_URL, {"ring": "maybe"}, "ring"),
    (CALL_URL, {"notify": "1"}, "notify"),
    (CALL_URL, {"connection_id": "x" * 5000}, "connection_id"),
    (CALL_URL, {"connection_id": "node-2-mac"}, "connection_id"),
    ("/api/v2/users", {"payload": "{"}, "payload"),
    ("/api/v2/users", {"payload": "[" * 5000}, "payload"),
    ("/api/v2/users", {"payload": "[]"}, "payload"),
    *(
        ("/api/v2/users", {"payload": encode(payload).decode()}, path)
        for payload, path in (
            ({"limit": -1}, "limit"),
            ({"limit": 10**30}, "limit"),
            ({"next": "x"}, "next"),
            ({"sort": {"field": "id"}}, "sort"),
            ({"filter_conditions": {"__proto__": 1}}, "filter_conditions.__proto__"),
            ({"filter_conditions": {"id": {"$where": "1"}}}, "filter_conditions.id.$where"),
            ({"filter_conditions": {"$and": {}}}, "filter_conditions.$and"),
            ({"filter_conditions": {"teams": {"$in": [5]}}}, "filter_conditions.teams.$in[0]"),
        )
    ),
]
"""A GET, its parameters, and which of them is wrong."""

NAMES = sorted(
    {
        name
        for body in GOOD.values()
        for _, steps, _ in _fields(body, "", ())
        for name in steps
        if isinstance(name, str)
    }
    | {"__proto__", "constructor", "next", "prev", "$and", "$eq", "$lt", "$contains", "custom.a.b"}
)
"""Every name of a field or an operator that the API knows, and some that it does not."""
