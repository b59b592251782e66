"""The HTTP answer to an upgrade that is refused, in the shape of every other error.

Pure. Stream's clients take any HTTP error as a reason to try again later.
"""

from __future__ import annotations

from http import HTTPStatus

from websockets.datastructures import Headers
from websockets.http11 import Response

from relay import wire
from relay.errors import BadInput, RelayError


def refusing(error: RelayError) -> Response:
    """Return the answer; the connection ends with it."""
    body = wire.encode(error.body())
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body))})
    headers["Connection"] = "close"
    headers["Access-Control-Allow-Origin"] = "*"
    return Response(error.status, HTTPStatus(error.status).phrase, headers, body)


def no_handshake(why: Exception | None) -> BadInput:
    """Return the refusal of a request that ``websockets`` does not take for a handshake."""
    told = str(why)[:200].encode("ascii", "replace").decode()
    return BadInput(f"this is not a WebSocket handshake: {told}", reason="handshake")
