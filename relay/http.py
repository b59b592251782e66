"""The HTTP ground both edges stand on: bounded bodies, JSON answers, errors, CORS.

Used by ``ingress`` and ``api``, each of which gives a list of routes that ``app`` puts together.
Inside the relay times are integer nanoseconds; ``answer`` is where they take the dialect that the
reader of a path understands. Every error leaves as the six keys that Stream's SDKs need.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, ExceptionHandler

from relay import metrics, wire
from relay.doors import Door
from relay.errors import (
    BadInput,
    MethodNotAllowed,
    NotAllowed,
    NotFound,
    RelayError,
    TooLarge,
    TooSlow,
)
from relay.events import Event, Origin, Publication

Clock = Callable[[], int]
"""Returns the time in nanoseconds since 1970."""

Handler = Callable[[Request], Awaitable[Response]]

BODY_TIMEOUT_S: Final = 10.0
"""How long a request's body may take to arrive."""

_EXPOSED: Final = (
    "Retry-After",
    "X-Amz-Cf-Pop",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
)
_METHODS: Final = ("GET", "POST", "PATCH", "PUT", "DELETE", "HEAD")


# -- requests -----------------------------------------------------------------------------------


async def read_body(request: Request, limit: int, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """Return the request's body of at most ``limit`` bytes.

    Raises ``TooLarge`` as soon as it is known to be longer, before reading where the length is
    declared; ``TooSlow`` when it takes over ``timeout_s`` seconds; ``BadInput`` when the peer left.
    """
    declared = request.headers.get("content-length", "")
    # Over 18 digits is beyond any limit, and int() itself refuses some thousand.
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _body_too_large(limit)
    body = bytearray()
    try:
        async with _off_the_clock(request), asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _body_too_large(limit)
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {timeout_s:g} seconds") from None
    except ClientDisconnect:
        raise BadInput("the request broke off", reason="broken_off") from None
    return bytes(body)


@asynccontextmanager
async def _off_the_clock(request: Request) -> AsyncIterator[None]:
    """Take what the body does out of the time that the request has for Redis."""
    limit: asyncio.Timeout | None = getattr(request.state, "limit", None)
    if limit is None or (end := limit.when()) is None:
        yield
        return
    loop = asyncio.get_running_loop()
    left = end - loop.time()
    limit.reschedule(None)
    yield
    limit.reschedule(loop.time() + left)


def _body_too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body has more than {limit} bytes", reason="body_too_large")


def publishing(handler: Handler, door: Door) -> Handler:
    """Return ``handler`` as an ``endpoint`` that waits for Redis no longer than ``door`` says."""

    answered = endpoint(handler, door)

    async def limited(request: Request) -> Response:
        async with door.in_time() as request.state.limit:
            return await answered(request)

    return limited


def endpoint(handler: Handler, door: Door) -> Handler:
    """Return ``handler`` with a stop watch, and with its refusals in the ledger of ``door``.

    What is refused after ``publish`` took it stands there already and is not counted again.
    """

    async def timed(request: Request) -> Response:
        request.state.started = time.perf_counter()
        try:
            return await handler(request)
        except RelayError as error:
            if not getattr(request.state, "taken", False):
                door.refused(error)
            raise

    return timed


async def publish(
    request: Request, door: Door, event: Event, origins: Sequence[Origin] = ()
) -> Publication:
    """Publish what a request brought; from here on the door itself counts what becomes of it."""
    request.state.taken = True
    return await door.publish(event, origins)


# -- answers ------------------------------------------------------------------------------------


def answer(
    request: Request,
    content: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return ``content`` as JSON with its ``duration``, times in the dialect of the path.

    Stream's server SDKs read ``/api/v2`` and take only integer nanoseconds, its client SDKs read
    ``/video`` and take only RFC 3339.
    """
    body = {**content, "duration": _duration(request)}
    if not request.scope["path"].startswith("/api/v2/"):
        body = wire.with_rfc3339(body)
    return _json(body, status, _told(request, headers))


def set_header(request: Request, name: str, value: object) -> None:
    """Let the answer to this request carry a header, whether it turns out an error or not."""
    told: dict[str, str] = request.scope.setdefault("relay.headers", {})
    told[name] = str(value)


def _told(request: Request, more: Mapping[str, str] | None) -> dict[str, str]:
    return {**request.scope.get("relay.headers", {}), **(more or {})}


def position_fields(publication: Publication) -> dict[str, Any]:
    """Return what an answer says of a publication: its id and, when it is kept, its position."""
    fields: dict[str, Any] = {"event_id": publication.event_id}
    if publication.position is not None:
        fields |= publication.position._asdict()
    return fields


def _json(body: Mapping[str, Any], status: int, headers: Mapping[str, str] | None) -> Response:
    return Response(wire.encode(body), status, headers, media_type="application/json")


def _duration(request: Request) -> str:
    started = getattr(request.state, "started", None)
    elapsed_s = 0.0 if started is None else time.perf_counter() - started
    return f"{elapsed_s * 1000:.2f}ms"


# -- errors -------------------------------------------------------------------------------------


def refusal(
    request: Request,
    error: RelayError,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """Return the answer to an error: its status, the six keys and ``extra``, when to come back."""
    told = _told(request, headers)
    if error.retry_after is not None:
        told["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, TooSlow):
        # What is left of the body may never come: there is no next request on this connection.
        told["Connection"] = "close"
    body = error.body(_duration(request)) | dict(extra or {})
    return _json(body, error.status, told)


def exception_handlers() -> dict[Any, ExceptionHandler]:
    """Return Starlette's ``exception_handlers``: whatever goes wrong is answered in six keys.

    An exception nobody foresaw is answered 500 and then raised on to the server, which logs it.
    """
    return {RelayError: _on_relay_error, HTTPException: _on_http_error, Exception: _on_crash}


async def _on_relay_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RelayError)
    return refusal(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer what Starlette refused: an unknown path, a wrong method, a file it cannot serve."""
    assert isinstance(error, HTTPException)
    refused: RelayError
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "")
        refused = MethodNotAllowed(f"{request.method} is not possible here, but: {allowed}")
    else:
        refused = NotFound("there is no such path")
    metrics.REFUSED.labels("http", refused.reason).inc()
    return refusal(request, refused, error.headers)


async def _on_crash(request: Request, _: Exception) -> Response:
    return refusal(request, RelayError("the relay failed; its log says why"))


# -- cross-origin requests ----------------------------------------------------------------------


def wrap_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Return ``app`` for pages of ``origins`` (``*`` = any); every answer, errors too, says so.

    A page may send whatever header its SDK wants: the relay uses no cookies, so a header gives a
    page nothing that it did not have.
    """
    return _Cors(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=_EXPOSED,
        max_age=7200,
    )


class _Cors(CORSMiddleware):
    """Starlette's, but a refused preflight is an error like any other."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        error = NotAllowed(bytes(response.body).decode(), reason="cors")
        metrics.REFUSED.labels("http", error.reason).inc()
        kept = {
            name: value
            for name, value in response.headers.items()
            if name == "vary" or name.startswith("access-control-")
        }
        return _json(error.body(), error.status, kept)
