"""uvicorn's HTTP protocol with the bounds that it lacks, and refusals in the six keys.

A request's head has to arrive within a time and a size, what is left of a body after its answer
too, and so many connections may speak HTTP at once. The body itself is bounded where it is read:
``http.read_body``. A connection that becomes a socket is the gateway's and bounded there.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay import metrics, wire
from relay.errors import BadInput, RelayError, TooLarge, TooSlow, Unavailable
from relay.pace import Pace

HEAD_MAX_BYTES: Final = 65_536
RETRY_AFTER_S: Final = 5


class Bounds(NamedTuple):
    """``connections`` at once (0 = any number); ``head_s`` seconds for what a peer still owes."""

    connections: int = 0
    head_s: float = 10.0


_UNBOUNDED: Final = Bounds()


class HttpProtocol(HttpToolsProtocol):
    """One connection that speaks HTTP, until it is upgraded."""

    def __init__(
        self, *args: Any, bounds: Bounds = _UNBOUNDED, pace: Pace | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._bounds = bounds
        self._pace = Pace() if pace is None else pace
        self._unread = b""  # what came and waits for its turn
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there are too many who do."""
        super().connection_made(transport)
        if 0 < self._bounds.connections < len(self.connections):
            error = Unavailable(
                "too many connections: try again",
                reason="too_many_connections",
                retry_after=RETRY_AFTER_S,
            )
            self._refuse(error)
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._unread = b""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, those of a body at once, a request's first ones when it is their turn."""
        if self._unread:
            self._unread += data
        elif self._in_body:
            self._take(data)
        else:
            self._unread = data
            self._pace.do(self._read_on)
        if self._unread:
            self.flow.pause_reading()

    def eof_received(self) -> None:
        """Learn that the peer will send no more. TLS tells of it although we pause."""
        self._read_on()
        super().eof_received()

    def _read_on(self) -> None:
        if self._unread:
            data, self._unread = self._unread, b""
            self.flow.resume_reading()
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Take bytes; whoever owes more of a head, or of a body that nobody reads, has to hurry."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            return  # it has become a socket
        if self._in_head:
            self._head_bytes += len(data)
        if self._in_head and self._head_bytes > HEAD_MAX_BYTES:
            limit = f"the head of the request has more than {HEAD_MAX_BYTES} bytes"
            self._refuse(TooLarge(limit, reason="head_too_large"))
        elif not self._owes():
            self._wait_no_more()
        elif self._deadline is None and not self.transport.is_closing():
            self._wait()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the gateway, which has a clock of its own."""
        self._wait_no_more()
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment] # which knows us: else it takes a collection

    # -- httptools --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Learn that a request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Learn that its head is there."""
        self._in_head = False
        self._in_body = True
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Learn that all of it is there."""
        self._in_body = False
        super().on_message_complete()

    # -- deadlines and refusals -------------------------------------------------------------------

    def _owes(self) -> bool:
        """Whether the peer has begun something that nobody else has a deadline for."""
        if self._in_head:
            return self._head_bytes > 0
        return self._in_body and self.cycle is not None and self.cycle.response_complete

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(self._bounds.head_s, self._late)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        """End a connection that took too long; one that never said a word gets none either."""
        self._deadline = None
        if self._in_head and self._head_bytes:
            self._refuse(TooSlow(f"the request did not arrive in {self._bounds.head_s:g} s"))
            return
        metrics.REFUSED.labels("http", "idle").inc()
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP."""
        self._refuse(BadInput("this is not an HTTP/1.1 request", reason="not_http"))

    def _refuse(self, error: RelayError) -> None:
        metrics.REFUSED.labels("http", error.reason).inc()
        self._wait_no_more()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_answer(error))
        self.transport.close()


def _answer(error: RelayError) -> bytes:
    body = wire.encode(error.body())
    retry = b"" if error.retry_after is None else b"retry-after: %d\r\n" % error.retry_after
    return (
        b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\n"
        b"access-control-allow-origin: *\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
    ) % (error.status, retry, len(body), body)
