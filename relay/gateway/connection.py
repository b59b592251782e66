"""One socket: bytes in and out, around the pure session.

uvicorn hands the transport over at the upgrade (its ``ws=`` hook). ``websockets``' sans-I/O
protocol does the handshake and takes frames apart; publications are written to the transport as
prebuilt bytes. There is no task per socket: one runs only while a command is being worked off.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from relay import logs, metrics, wire
from relay.errors import Close, RelayError
from relay.gateway import frames
from relay.gateway.call import Batch
from relay.gateway.commands import Worker
from relay.gateway.session import Action, End, Refuse, Session, Write
from relay.users import User

if TYPE_CHECKING:
    from relay.gateway.sockets import Sockets

log = logs.get(__name__)

CLOSE_TIMEOUT_S: Final = 3.0
SILENCE_S: Final = 65.0
"""A peer that answered none of three pings is gone, whatever its kernel acknowledges."""
MAX_REASON: Final = 120
"""Bytes of a close frame's reason (RFC 6455 allows 123)."""
_PING: Final = b"\x89\x00"


class Connection(asyncio.Protocol):
    """A socket from its upgrade on. Implements ``call.Watcher`` and ``wheel.Timed``."""

    __slots__ = (
        "_fragments", "_heard_at", "_protocol", "_room", "_session", "_slow_since", "_sockets",
        "_transport", "_worker", "calls", "peer", "slot",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._protocol = ServerProtocol(
            max_size=sockets.limits.frame_max_bytes, logger=sockets.protocol_logger
        )
        self._session: Session | None = None
        self._fragments: list[bytes] | None = None
        self._worker: Worker | None = None
        self._room: asyncio.Future[None] | None = None
        self._slow_since = 0.0
        self._heard_at = 0.0
        self.calls: set[str] = set()
        self.peer = ""
        self.slot = 0

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        self._transport = cast("asyncio.Transport", transport)
        soft = self._sockets.limits.soft_buffer_bytes
        self._transport.set_write_buffer_limits(high=soft, low=soft // 2)
        self._sockets.opened(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the peer."""
        self._heard_at = self._sockets.now()
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._handshake(event)
            else:
                self._frame(cast("Frame", event))
        self._pass_on()

    def eof_received(self) -> None:
        """Learn that the peer will send no more; the transport closes itself."""
        self._protocol.receive_eof()
        self._pass_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._leave()
        self.resume_writing()
        self._sockets.closed(self)

    def resume_writing(self) -> None:
        """Learn that the unsent bytes have drained."""
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    # -- handshake and frames ---------------------------------------------------------------------

    def _handshake(self, request: Request) -> None:
        refusal = self._sockets.refusal(request)
        if refusal is None:
            response = self._protocol.accept(request)
        else:
            response = _refusing(refusal)
            self._sockets.door.refused(refusal)
        self._protocol.send_response(response)
        if self._protocol.state is State.OPEN:
            self._session = self._sockets.session(request)
            self.peer = self._sockets.client_address(request, self._transport)
            self.schedule()

    def _frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT:
                self._fragment(frame, [])
            case Opcode.CONT if self._fragments is not None:
                self._fragment(frame, self._fragments)
            case Opcode.BINARY:
                self.end(Close.UNSUPPORTED_DATA, "send text frames only", "binary")

    def _fragment(self, frame: Frame, before: list[bytes]) -> None:
        before.append(bytes(frame.data))
        self._fragments = None if frame.fin else before
        if frame.fin:
            self._text(b"".join(before))

    def _text(self, data: bytes) -> None:
        if not self.is_open:
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.end(Close.INVALID_TEXT, "a text frame must be UTF-8", "invalid_utf8")
        else:
            self.perform(self.session.received(text, self._sockets.now_ns()))

    def _pass_on(self) -> None:
        """Write what the protocol wants written; its empty bytes mean: end the connection."""
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()
        if self._session is not None and self._protocol.state is not State.OPEN:
            self._leave()

    # -- the session's actions --------------------------------------------------------------------

    def perform(self, actions: list[Action]) -> None:
        """Do what the session wants done; what has to wait goes to a worker, in order."""
        for action in actions:
            match action:
                case Write(text):
                    self.reply(text)
                case Refuse(command_id, error):
                    self.refuse(command_id, error)
                case End(code, reason, why, farewell):
                    self.end(code, reason, why, farewell)
                case _:
                    self._enqueue(action)

    def reply(self, text: bytes) -> None:
        """Write one text."""
        self.write(wire.text_frame(text))

    def refuse(self, command_id: object, error: RelayError) -> None:
        """Answer a command with an error, and count it."""
        self._sockets.door.refused(error)
        self.reply(frames.error(command_id, error))

    def _enqueue(self, action: Action) -> None:
        if self._worker is None:
            self._worker = Worker(self, self._sockets)
            self._worker.task = self._sockets.tasks.spawn(self._worker.run())
        if self._worker.put(action):
            self._transport.pause_reading()

    def worker_idle(self) -> None:
        """Learn that every command was worked off."""
        self._worker = None
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on after too many commands were waiting."""
        if self.is_open and not self._transport.is_reading():
            self._transport.resume_reading()

    # -- call.Watcher -----------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The conversation; there is one from the handshake on."""
        assert self._session is not None, "asked for a session before the handshake"
        return self._session

    @property
    def connection_id(self) -> str:
        """The id told at the login; empty before."""
        return "" if self._session is None else self._session.connection_id

    @property
    def user(self) -> User:
        """Who is at the other end."""
        assert self.session.user is not None, "asked for a user before the login"
        return self.session.user

    @property
    def is_open(self) -> bool:
        """Whether writing still makes sense."""
        return self._protocol.state is State.OPEN and not self._transport.is_closing()

    def deliver(self, batch: Batch) -> int:
        """Write a batch; a slow peer goes without what is volatile, or is cut off."""
        unsent = self._transport.get_write_buffer_size()
        if unsent > self._sockets.limits.soft_buffer_bytes:
            return self._deliver_slow(batch, unsent)
        self._transport.write(batch.everything)
        return batch.count

    def write(self, data: bytes) -> None:
        """Write frames that may not be dropped."""
        if self.is_open:
            self._transport.write(data)

    async def drained(self) -> None:
        """Return once the peer has taken what was written, or is cut off for not taking it."""
        limits = self._sockets.limits
        while self.is_open and self._transport.get_write_buffer_size() > limits.soft_buffer_bytes:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait_for(asyncio.shield(self._room), limits.slow_timeout_s)
            except TimeoutError:
                self.abort("slow")

    def _deliver_slow(self, batch: Batch, unsent: int) -> int:
        limits = self._sockets.limits
        if unsent > limits.hard_buffer_bytes:
            self.abort("slow")
            return 0
        if not self._slow_since:
            self._slow_since = self._sockets.now()
            self.schedule()
        metrics.SKIPPED.inc(batch.volatile_count)
        if batch.kept:
            self._transport.write(batch.kept)
        return batch.count - batch.volatile_count

    # -- time (wheel.Timed) -----------------------------------------------------------------------

    def on_due(self, now: float) -> None:
        """Do what time brings: heartbeats, the end of a token, a peer too slow or gone."""
        if not self.is_open:
            self.abort("close_timeout")
        elif now - self._heard_at > SILENCE_S:
            self.abort("silent")
        elif self._is_slow_for_good(now):
            self.abort("slow")
        else:
            self.perform(self.session.due(self._sockets.now_ns()))
            if self.is_open:
                self._transport.write(_PING)
                self.schedule()

    def _is_slow_for_good(self, now: float) -> bool:
        limits = self._sockets.limits
        if self._transport.get_write_buffer_size() <= limits.soft_buffer_bytes:
            self._slow_since = 0.0
        return bool(self._slow_since) and now - self._slow_since >= limits.slow_timeout_s

    def schedule(self) -> None:
        """Hang this socket into the wheel for whatever is due next."""
        now = self._sockets.now()
        due = now + self.session.next_due_s(self._sockets.now_ns())
        if self._slow_since:
            due = min(due, self._slow_since + self._sockets.limits.slow_timeout_s)
        self._sockets.wheel.schedule(self, due)

    # -- the end ----------------------------------------------------------------------------------

    def end(self, code: Close, reason: str, why: str, farewell: bytes | None = None) -> None:
        """Close with a code, after a last text; a peer that does not answer is cut off."""
        if not self.is_open:
            return
        metrics.CLOSED.labels(why).inc()
        log.info("socket closed", why=why, code=int(code), peer=self.peer)
        if farewell is not None:
            self.reply(farewell)
        self._protocol.send_close(code, reason.encode()[:MAX_REASON].decode(errors="ignore"))
        self._pass_on()
        self._sockets.wheel.schedule(self, self._sockets.now() + CLOSE_TIMEOUT_S)

    def abort(self, why: str) -> None:
        """Cut the peer off at once, unsent bytes and all."""
        if not self._transport.is_closing():
            metrics.CLOSED.labels(why).inc()
            log.info("socket cut off", why=why, peer=self.peer)
        self._leave()
        self._transport.abort()

    def _leave(self) -> None:
        """Cease to watch. Every way of closing leads here; a second time does nothing."""
        if self._worker is not None and self._worker.task is not None:
            self._worker.task.cancel()
        for cid in list(self.calls):
            self._sockets.unwatch(self, cid)


def _refusing(error: RelayError) -> Response:
    """Return the HTTP answer to an upgrade that is refused, in Stream's shape."""
    body = wire.encode(error.body())
    headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body))})
    headers["Connection"] = "close"
    headers["Access-Control-Allow-Origin"] = "*"
    return Response(error.status, HTTPStatus(error.status).phrase, headers, body)
