from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from relay import http
from relay.broker import Limits
from relay.broker.memory import MemoryBroker
from relay.doors import Door
from relay.errors import BadInput, RateLimited, RelayError, TooLarge, TooSlow, Unavailable
from relay.events import Position, Publication
from tests.bad_input import SIX_KEYS
from tests.edges import NOW_NS, Clock, refused

pytestmark = pytest.mark.anyio


def request(*chunks: bytes, stall: bool = False, gone: bool = False, **headers: str) -> Request:
    """A POST whose body comes in chunks, and then stalls or breaks off."""
    left = list(chunks)

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": True}
        if gone:
            return {"type": "http.disconnect"}
        if stall:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": encoded}
    return Request(scope, receive)


def client(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://relay")


def app(*routes: Route, origins: tuple[str, ...] = ("*",)) -> ASGIApp:
    starlette = Starlette(routes=list(routes), exception_handlers=http.exception_handlers())
    return http.wrap_cors(starlette, origins)


def raising(error: Exception) -> Any:
    async def endpoint(_: Request) -> Response:
        raise error

    return endpoint


@pytest.fixture
def door() -> Door:
    return Door("test", MemoryBroker(Limits(), Clock(), "node"))


# -- bodies -------------------------------------------------------------------------------------


async def test_a_body_of_the_limit_is_read_and_one_byte_more_is_not() -> None:
    assert await http.read_body(request(b"ab", b"cd"), 4) == b"abcd"
    with pytest.raises(TooLarge, match="more than 4 bytes"):
        await http.read_body(request(b"ab", b"cde"), 4)


async def test_a_body_is_given_up_as_soon_as_it_is_too_long() -> None:
    with pytest.raises(TooLarge):
        await http.read_body(request(b"abcde", stall=True), 4)


@pytest.mark.parametrize("length", ["5", "9" * 18, "9" * 5000])
async def test_a_declared_length_over_the_limit_is_refused_unread(length: str) -> None:
    with pytest.raises(TooLarge):
        await http.read_body(request(stall=True, content_length=length), 4)


@pytest.mark.parametrize("length", ["4", "-5", "x", "²"])
async def test_a_declared_length_is_only_a_hint(length: str) -> None:
    assert await http.read_body(request(b"abcd", content_length=length), 4) == b"abcd"


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    with pytest.raises(TooSlow) as caught:
        await http.read_body(request(b"a", stall=True), 4, timeout_s=0.01)
    assert (caught.value.status, caught.value.code) == (408, 23)


async def test_a_peer_that_leaves_is_no_crash() -> None:
    with pytest.raises(BadInput) as caught:
        await http.read_body(request(b"a", gone=True), 4)
    assert caught.value.reason == "broken_off"


# -- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/video/x", "2027-01-15T08:00:00.000000000Z"),
        ("/api/v2/video/x", NOW_NS),
        ("/api/v2", None),
    ],
)
async def test_each_path_has_its_dialect_of_time(path: str, expected: object, door: Door) -> None:
    async def endpoint(given: Request) -> Response:
        return http.answer(given, {"call": {"created_at": NOW_NS}}, 201)

    async with client(app(Route("/{rest:path}", http.endpoint(endpoint, door)))) as web:
        response = await web.get(path)
    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"
    if expected is not None:
        assert response.json()["call"]["created_at"] == expected
    assert response.json()["duration"].endswith("ms")
    assert float(response.json()["duration"][:-2]) >= 0


def test_a_publication_is_told_with_its_position_when_it_has_one() -> None:
    kept = Publication(cid="a:b", event_id="e", position=Position("k3", 41))
    volatile = Publication(cid="a:b", event_id="e", position=None)
    assert http.position_fields(kept) == {"event_id": "e", "epoch": "k3", "offset": 41}
    assert http.position_fields(volatile) == {"event_id": "e"}


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadInput("no"), 400, 4),
        (Unavailable("later"), 503, -1),
        (HTTPException(401), 404, 16),
        (ValueError("with a secret"), 500, -1),
    ],
)
async def test_every_error_is_answered_in_six_keys_and_with_cors(
    error: Exception, status: int, code: int
) -> None:
    async with client(app(Route("/", raising(error)))) as web:
        response = await web.get("/", headers={"origin": "https://page.example"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert set(response.json()) == SIX_KEYS
    assert response.headers["access-control-allow-origin"] == "*"
    assert "retry-after" not in response.headers
    assert "with a secret" not in response.text


async def test_an_unforeseen_error_reaches_the_server_which_logs_it() -> None:
    transport = httpx.ASGITransport(app(Route("/", raising(ValueError("bug")))))
    async with httpx.AsyncClient(transport=transport, base_url="http://relay") as web:
        with pytest.raises(ValueError, match="bug"):
            await web.get("/")


@pytest.mark.parametrize("error", [RateLimited, Unavailable])
async def test_who_may_come_back_is_told_when(error: type[RelayError]) -> None:
    async with client(app(Route("/", raising(error("later", retry_after=1.2))))) as web:
        assert (await web.get("/")).headers["retry-after"] == "2"


async def test_the_rest_of_a_stalled_body_is_not_waited_for() -> None:
    async with client(app(Route("/", raising(TooSlow("too slow"))))) as web:
        assert (await web.get("/")).headers["connection"] == "close"


async def test_unknown_paths_and_methods_are_refused_like_anything_else() -> None:
    not_found, wrong_method = refused("http", "not_found"), refused("http", "method_not_allowed")
    async with client(app(Route("/", raising(BadInput("")), methods=["POST"]))) as web:
        missing = await web.get("/nowhere")
        wrong = await web.get("/")
    assert (missing.status_code, missing.json()["code"]) == (404, 16)
    assert (wrong.status_code, wrong.json()["code"]) == (405, 4)
    assert wrong.headers["allow"] == "POST"
    assert "POST" in wrong.json()["message"]
    assert refused("http", "not_found") == not_found + 1
    assert refused("http", "method_not_allowed") == wrong_method + 1


async def test_a_refusal_is_counted_once_by_its_door(door: Door) -> None:
    async def endpoint(_: Request) -> Response:
        raise BadInput("no", reason="tested")

    before = refused("test", "tested")
    async with client(app(Route("/", http.endpoint(endpoint, door)))) as web:
        await web.get("/")
    assert refused("test", "tested") == before + 1


# -- cross-origin requests ----------------------------------------------------------------------

PREFLIGHT = {
    "origin": "https://page.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,stream-auth-type,"
    "x-client-request-id,x-stream-client,idempotency-key,x-anything",
}


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "PUT", "DELETE", "HEAD"])
async def test_a_page_may_use_every_method_and_header_of_an_sdk(method: str) -> None:
    asked = PREFLIGHT | {"access-control-request-method": method}
    async with client(app()) as web:
        response = await web.options("/video/call/default/demo", headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "*"
    assert method in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"]
    assert set(allowed.split(",")) == set(PREFLIGHT["access-control-request-headers"].split(","))


async def test_a_page_may_read_the_headers_that_sdks_read() -> None:
    async with client(app()) as web:
        response = await web.get("/", headers={"origin": "https://page.example"})
    exposed = response.headers["access-control-expose-headers"]
    for name in ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"):
        assert name in exposed


async def test_a_page_of_another_origin_is_refused_in_six_keys() -> None:
    before = refused("http", "cors")
    async with client(app(origins=("https://ours.example",))) as web:
        response = await web.options("/", headers=PREFLIGHT)
        plain = await web.get("/", headers={"origin": "https://page.example"})
        ours = await web.get("/", headers={"origin": "https://ours.example"})
    assert (response.status_code, response.json()["code"]) == (403, 17)
    assert set(response.json()) == SIX_KEYS
    assert "access-control-allow-origin" not in response.headers
    assert "access-control-allow-origin" not in plain.headers
    assert ours.headers["access-control-allow-origin"] == "https://ours.example"
    assert refused("http", "cors") == before + 1
