"""The files of the page: each is served as what it is, and what it refers to is there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette

from relay import __version__
from relay.api import page_routes

pytestmark = pytest.mark.anyio


def client_of(demo_key: str | None) -> httpx.AsyncClient:
    app = Starlette(routes=page_routes(demo_key))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://relay.test")


@pytest.fixture
async def demo() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of("demo") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/demo.js", "text/javascript; charset=utf-8"),
        ("/relay.js", "text/javascript; charset=utf-8"),
        ("/relay.d.ts", "text/plain; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ],
)
async def test_a_file_is_served_as_what_it_is(
    demo: httpx.AsyncClient, path: str, kind: str
) -> None:
    response = await demo.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == kind
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["content-security-policy"].startswith("default-src 'self'")


async def test_everything_the_page_refers_to_is_there(demo: httpx.AsyncClient) -> None:
    found = set()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        response = await demo.get(path)
        assert response.status_code == 200, path
        found.add(path)
        names = re.findall(r'(?:href|src|from) ?= ?"/([\w.]+)"|from "\.?/([\w.]+)"', response.text)
        waiting += {f"/{one or two}" for one, two in names} - found - set(waiting)
    assert {"/sprites.js", "/views.js", "/effects.js", "/relay.js"} <= found


async def test_the_page_is_told_the_key_and_the_version(demo: httpx.AsyncClient) -> None:
    settings = (await demo.get("/demo.json")).json()
    assert (settings["api_key"], settings["version"]) == ("demo", __version__)


async def test_without_the_demo_only_the_client_is_served() -> None:
    async with client_of(None) as client:
        assert (await client.get("/relay.js")).status_code == 200
        assert (await client.get("/relay.d.ts")).status_code == 200
        for path in ("/", "/demo.js", "/demo.json", "/style.css"):
            assert (await client.get(path)).status_code == 404
