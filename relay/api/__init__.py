"""The HTTP API: calls, members, events, users and hooks as Stream's SDKs ask for them, and health.

Each path exists twice: for client SDKs (``/video``, RFC 3339 times) and for server SDKs
(``/api/v2/video``, integer nanoseconds); ``http.answer`` knows which is which.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import http
from relay.announcer import REPEATS_S
from relay.api import (
    app,
    calls,
    courtesy,
    events,
    health,
    joining,
    members,
    moderation,
    reference,
    unserved,
    users,
)
from relay.api.context import Announces, Caller, Context, Joins, Receivers, Watches
from relay.api.health import Probe, Readiness
from relay.api.hooks_file import HooksFile
from relay.api.limits import Meter
from relay.api.media_file import load_media
from relay.api.operators import operator_routes
from relay.api.page import page_routes
from relay.broker import Store
from relay.doors import Door
from relay.events import CUSTOM_LIMIT
from relay.forwarded import Network
from relay.http import Clock
from relay.media import Media
from relay.tokens import Keys

__all__ = [
    "Announces", "HooksFile", "Joins", "Probe", "Readiness", "Receivers", "Watches", "load_media",
    "operator_routes", "page_routes", "routes",
]  # fmt: skip

_Endpoint = Callable[[Context, Request, Caller], Awaitable[Response]]
_Operation = tuple[str, _Endpoint]
"""Its name in Stream's API, by which requests are counted, and what answers it."""

_CALL: Final[Mapping[str, Mapping[str, _Operation]]] = {
    "": {
        "GET": ("GetCall", calls.get),
        "POST": ("GetOrCreateCall", calls.get_or_create),
        "PATCH": ("UpdateCall", calls.update),
    },
    "/accept": {"POST": ("AcceptCall", joining.accept)},
    "/block": {"POST": ("BlockUser", moderation.block)},
    "/delete": {"POST": ("DeleteCall", calls.delete)},
    "/event": {"POST": ("SendCallEvent", events.send)},
    "/go_live": {"POST": ("GoLive", calls.go_live)},
    "/join": {"POST": ("JoinCall", joining.join)},
    "/kick": {"POST": ("KickUser", moderation.kick)},
    "/mark_ended": {"POST": ("EndCall", calls.end)},
    "/members": {"POST": ("UpdateCallMembers", members.update)},
    "/reaction": {"POST": ("SendReaction", events.react)},
    "/reject": {"POST": ("RejectCall", joining.reject)},
    "/request_permission": {"POST": ("RequestPermission", moderation.request_permission)},
    "/ring": {"POST": ("RingCall", joining.ring)},
    "/stop_live": {"POST": ("StopLive", calls.stop_live)},
    "/unblock": {"POST": ("UnblockUser", moderation.unblock)},
    "/user_permissions": {"POST": ("UpdateUserPermissions", moderation.permit)},
}
"""Below ``…/call/{type}/{id}``."""

_VIDEO: Final[Mapping[str, Mapping[str, _Operation]]] = {
    "/call/members": {"POST": ("QueryCallMembers", members.query)},
    "/calls": {"POST": ("QueryCalls", calls.query)},
    "/calltypes": {"GET": ("ListCallTypes", reference.call_types)},
    "/calltypes/{name}": {"GET": ("GetCallType", reference.call_type)},
}
"""Below ``/video`` and ``/api/v2/video``."""

_APP: Final[Mapping[str, Mapping[str, _Operation]]] = {
    "/app": {"GET": ("GetApp", app.get), "PATCH": ("UpdateApp", app.update)},
    "/check_sns": {"POST": ("CheckSNS", app.check_sns)},
    "/check_sqs": {"POST": ("CheckSQS", app.check_sqs)},
    "/rate_limits": {"GET": ("GetRateLimits", reference.rate_limits)},
    "/users": {
        "GET": ("QueryUsers", users.query),
        "POST": ("UpdateUsers", users.upsert),
        "PATCH": ("UpdateUsersPartial", users.patch),
    },
}
"""Below ``/api/v2``."""

_PREFIXES: Final = ("/video", "/api/v2/video")


def routes(
    *,
    keys: Keys,
    store: Store,
    door: Door,
    watches: Watches,
    announcer: Announces,
    joins: Joins,
    receivers: Receivers,
    clock: Clock,
    ready: Probe,
    media: Media | None = None,
    http_rate: int = 300,
    custom_limit: int = CUSTOM_LIMIT,
    max_bytes: int = 1_048_576,
    strict_calls: bool = False,
    guests: bool = True,
    hook_networks: Sequence[Network] = (),
    aws: bool = True,
    repeats_s: float = REPEATS_S,
) -> list[Route]:
    """Return every route of the API.

    ``custom_limit`` is in bytes of compact JSON (0 = any), ``max_bytes`` bounds a request's body,
    ``http_rate`` is requests a minute per user and operation (0 = any), ``repeats_s`` the broker's
    ``dedupe_window``.
    """
    context = Context(
        keys=keys,
        store=store,
        door=door,
        watches=watches,
        announcer=announcer,
        joins=joins,
        meter=Meter(store, http_rate, clock),
        receivers=receivers,
        clock=clock,
        media=media,
        custom_limit=custom_limit,
        max_bytes=max_bytes,
        strict_calls=strict_calls,
        guests=guests,
        hook_networks=hook_networks,
        aws=aws,
        repeats_s=repeats_s,
    )
    found = [_guest_route(context, prefix) for prefix in ("/video", "/api/v2")]
    for prefix in _PREFIXES:
        found += [_route(context, f"{prefix}{path}", table) for path, table in _VIDEO.items()]
        call = f"{prefix}/call/{{type}}/{{id}}"
        found += [
            _route(context, f"{call}{path}", table, http.publishing)
            for path, table in _CALL.items()
        ]
    found += [_route(context, f"/api/v2{path}", table) for path, table in _APP.items()]
    return [*found, *courtesy.routes(), *health.routes(ready), *unserved.routes(door)]


def _guest_route(context: Context, prefix: str) -> Route:
    async def answer(request: Request) -> Response:
        return await users.guest(context, request)

    return Route(f"{prefix}/guest", http.endpoint(answer, context.door), methods=["POST"])


def _route(
    context: Context,
    path: str,
    table: Mapping[str, _Operation],
    endpoint: Callable[[http.Handler, Door], http.Handler] = http.endpoint,
) -> Route:
    """Return one route for all methods of a path, so that a 405 names every one of them."""
    operations = dict(table)
    if "GET" in operations:
        operations["HEAD"] = operations["GET"]

    async def dispatch(request: Request) -> Response:
        name, handler = operations[request.method]
        return await handler(context, request, await context.caller(request, name))

    return Route(path, endpoint(dispatch, context.door), methods=list(operations))
