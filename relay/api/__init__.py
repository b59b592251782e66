"""The HTTP API: events, calls, users and hooks as Stream's SDKs ask for them, and health.

Each path exists twice: for client SDKs (``/video``, RFC 3339 times) and for server SDKs
(``/api/v2/video``, integer nanoseconds); ``http.answer`` knows which is which.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import http
from relay.api import app, calls, courtesy, events, health, users
from relay.api.context import Context, Receivers, Watches
from relay.api.health import Probe
from relay.api.hooks_file import HooksFile
from relay.api.operators import operator_routes
from relay.api.page import page_routes
from relay.broker import Store
from relay.doors import Door
from relay.events import CUSTOM_LIMIT
from relay.forwarded import Network
from relay.http import Clock
from relay.tokens import Keys

__all__ = ["HooksFile", "Probe", "Receivers", "Watches", "operator_routes", "page_routes", "routes"]

_Endpoint = Callable[[Context, Request], Awaitable[Response]]


def routes(
    *,
    keys: Keys,
    store: Store,
    door: Door,
    watches: Watches,
    receivers: Receivers,
    clock: Clock,
    ready: Probe,
    custom_limit: int = CUSTOM_LIMIT,
    max_bytes: int = 1_048_576,
    strict_calls: bool = False,
    guests: bool = True,
    hook_networks: Sequence[Network] = (),
    aws: bool = True,
) -> list[Route]:
    """Return every route of the API.

    ``custom_limit`` is in bytes of compact JSON (0 = any), ``max_bytes`` bounds a request's body.
    """
    context = Context(
        keys=keys,
        store=store,
        door=door,
        watches=watches,
        receivers=receivers,
        clock=clock,
        custom_limit=custom_limit,
        max_bytes=max_bytes,
        strict_calls=strict_calls,
        guests=guests,
        hook_networks=hook_networks,
        aws=aws,
    )
    return [
        _route(context, "/api/v2/app", GET=app.get, PATCH=app.update),
        _route(context, "/api/v2/check_sqs", POST=app.check_sqs),
        _route(context, "/api/v2/check_sns", POST=app.check_sns),
        _route(context, "/api/v2/users", POST=users.upsert),
        _route(context, "/api/v2/guest", POST=users.guest),
        _route(context, "/video/guest", POST=users.guest),
        *_call_routes(context, "/api/v2/video/call/{type}/{id}"),
        *_call_routes(context, "/video/call/{type}/{id}"),
        *courtesy.routes(),
        *health.routes(ready),
    ]


def _call_routes(context: Context, path: str) -> list[Route]:
    return [
        _route(context, path, GET=calls.get, POST=calls.get_or_create),
        _route(context, f"{path}/event", POST=events.send),
    ]


def _route(context: Context, path: str, **by_method: _Endpoint) -> Route:
    """Return one route for all methods of a path, so that a 405 names every one of them."""
    endpoints: Mapping[str, _Endpoint] = by_method
    if "GET" in by_method:
        endpoints = {**by_method, "HEAD": by_method["GET"]}

    async def dispatch(request: Request) -> Response:
        return await endpoints[request.method](context, request)

    return Route(path, http.endpoint(dispatch, context.door), methods=list(endpoints))
