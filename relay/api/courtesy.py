"""What Stream's SDKs ask on the side; a refusal would only make them try again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from relay import http


async def _telemetry(request: Request) -> Response:
    """Take a report about a client's connection and forget it. It comes before any login."""
    return http.answer(request, {}, 201)


async def _hint(request: Request) -> Response:
    """Say where the relay is, to a browser SDK whose ``locationHintUrl`` points here."""
    return http.answer(request, {}, headers={"X-Amz-Cf-Pop": "relay"})


def routes() -> list[Route]:
    """Return the routes for telemetry and for the location hint."""
    return [
        Route("/video/call_client_event", _telemetry, methods=["POST"]),
        Route("/api/v2/video/call_client_event", _telemetry, methods=["POST"]),
        Route("/hint", _hint, methods=["GET"]),
    ]
