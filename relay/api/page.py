"""The client library, and in the demo the page that shows what it can do.

The files are those of ``web/``; in an installed relay they lie inside the package.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

import relay
from relay import http

_PAGE: Final = {
    "/": "index.html",
    "/demo.js": "demo.js",
    "/effects.js": "effects.js",
    "/favicon.svg": "favicon.svg",
    "/sprites.js": "sprites.js",
    "/style.css": "style.css",
    "/views.js": "views.js",
}
_CLIENT: Final = {"/relay.js": "relay.js", "/relay.d.ts": "relay.d.ts"}

_TYPES: Final = {".ts": "text/plain; charset=utf-8"}
"""Where the system's guess is wrong: it takes TypeScript for video."""

_HEADERS: Final = {
    "Cache-Control": "no-cache",  # revalidated by ETag: an upgraded relay shows its own page
    "Content-Security-Policy": "default-src 'self'; connect-src *; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
}


def page_routes(demo_key: str | None) -> list[Route]:
    """Return ``/relay.js``; with an API key also the demo page, which logs guests in with it."""
    files = dict(_CLIENT) if demo_key is None else {**_CLIENT, **_PAGE}
    routes = [Route(path, _file(_folder() / name), methods=["GET"]) for path, name in files.items()]
    if demo_key is not None:
        routes.append(Route("/demo.json", _settings(demo_key), methods=["GET"]))
    return routes


def _folder() -> Path:
    """Return where the web files are: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parent.parent
    inside = package / "web"
    return inside if inside.is_dir() else package.parent / "web"


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(path, headers=_HEADERS, media_type=_TYPES.get(path.suffix))

    return send


def _settings(api_key: str) -> Callable[[Request], Awaitable[Response]]:
    async def tell(request: Request) -> Response:
        return http.answer(request, {"api_key": api_key, "version": relay.__version__})

    return tell
