"""The front itself: what falls short of the protocol does not get past it unnoticed."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from typing import ClassVar

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from relay.errors import NotFound
from tests.processes import RelayProcess
from tests.sdk.front import Front


class Sloppy(http.server.BaseHTTPRequestHandler):
    """Answers its paths as given in ``BODIES``."""

    BODIES: ClassVar = {"/video/complete": NotFound("no").body(), "/video/short": {"detail": "no"}}

    def do_GET(self) -> None:
        body = json.dumps(self.BODIES[self.path]).encode()
        self.send_response(404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def front() -> Iterator[Front]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sloppy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        relay = RelayProcess()
        relay.port = server.server_port
        with Front(relay) as front:
            yield front
        server.shutdown()
        thread.join()


def test_an_answer_that_lacks_a_field_is_found(front: Front) -> None:
    assert httpx.get(f"{front.base_url}/video/complete").status_code == 404
    front.check()
    assert httpx.get(f"{front.base_url}/video/short").json() == {"detail": "no"}
    with pytest.raises(AssertionError, match=r"GET /video/short answered 404 with .*message"):
        front.check()
    assert [answer.path for answer in front.answers] == ["/video/complete", "/video/short"]


@pytest.mark.anyio
async def test_an_event_that_lacks_a_field_is_found(front: Front) -> None:
    long = {"type": "call.watching", "text": "x" * 70_000}
    short = {"type": "custom", "event_id": "e1", "call_cid": "default:demo"}

    async def tell(socket: object) -> None:
        for frame in (long, short, {"type": "bye"}):
            await socket.send(json.dumps(frame))  # type: ignore[attr-defined]

    async with serve(tell, "127.0.0.1", 0, compression=None) as server:
        sockets = RelayProcess()
        sockets.port = next(iter(server.sockets)).getsockname()[1]
        front.sockets = sockets
        async with connect(front.socket_url, compression=None, max_size=None) as client:
            got = [json.loads(await asyncio.wait_for(client.recv(), 10)) for _ in range(3)]
    assert got == [long, short, {"type": "bye"}]
    assert front.kinds == ["call.watching", "custom", "bye"]
    with pytest.raises(AssertionError, match=r"custom falls short: .*user is missing"):
        front.check()
