"""One socket: bytes in and out, around the pure session.

uvicorn hands the transport over at the upgrade (its ``ws=`` hook). ``websockets``' sans-I/O
protocol does the handshake and takes frames apart, except for texts that come whole (``reading``);
publications are written as prebuilt bytes. A task runs only while commands are worked off.
"""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from relay import logs, metrics, wire
from relay.errors import Close, RelayError
from relay.gateway import frames, reading
from relay.gateway.bounds import CLOSE_TIMEOUT_S, MAX_REASON, NOISE_LIMIT, SILENCE_S, SLICE_BYTES
from relay.gateway.call import Batch, plain_socket, unsent
from relay.gateway.commands import Worker, publish_now
from relay.gateway.refusal import no_handshake, refusing
from relay.gateway.returns import PING_S, is_goodbye
from relay.gateway.session import Action, End, Refuse, Send, Session, Write
from relay.users import User

if TYPE_CHECKING:
    from relay.gateway.sockets import Sockets
    from relay.gateway.trail import Trail

log = logs.get(__name__)

_OPEN: Final = State.OPEN  # looking a member up costs more than the comparison


class Connection(asyncio.Protocol):
    """A socket from its upgrade on. Implements ``call.Watcher`` and ``wheel.Timed``."""

    __slots__ = (
        "_due_at", "_ended", "_fragments", "_heard_at", "_hears_out", "_is_deaf", "_noise",
        "_plain", "_protocol", "_room", "_session", "_slow_since", "_sockets", "_transport",
        "_unparsed", "_unread", "_worker", "calls", "cleared", "direct", "peer", "slot", "trail",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._protocol = ServerProtocol(
            max_size=sockets.limits.frame_max_bytes, logger=sockets.protocol_logger
        )
        self._session: Session | None = None
        self._fragments: bytearray | None = None
        self._unread = reading.NOTHING  # what came and waits for its turn
        self._unparsed = 0  # bytes that the parser holds, or more: 0 only between two frames
        self._ended = self._hears_out = self._is_deaf = False
        self._noise = self.slot = 0
        self._worker: Worker | None = None
        self._room: asyncio.Future[None] | None = None
        self._slow_since = self._heard_at = self._due_at = 0.0
        self.trail: Trail | None = None
        self.calls: set[str] = set()
        self.cleared: set[str] = set()
        self.peer = ""

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport over."""
        self._transport = cast("asyncio.Transport", transport)
        # At 0 the transport reports as soon as it holds a byte back: ``direct`` hangs on it.
        self._transport.set_write_buffer_limits(high=0)
        self._plain = plain_socket(self._transport)
        self._write_directly(self._plain)
        self._sockets.opened(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the peer."""
        self._heard_at = self._sockets.now()
        if self._unread:
            self._unread = memoryview(bytes(self._unread) + data)
        elif not (self.connection_id and self._take_whole(data)):
            self._unread = memoryview(data)
            if not self._sockets.pace.do(self._read_on):
                self._transport.pause_reading()

    def _take_whole(self, data: bytes) -> bool:
        """Take what is one whole text or pong, the short way; False when it is something else."""
        if self._unparsed or self._fragments is not None or not self.is_open:
            return False
        if (text := reading.whole_text(data, self._sockets.limits.frame_max_bytes)) is not None:
            self._text(text)
        elif (payload := reading.whole_pong(data)) is not None:
            self._pong(payload)
        else:
            return False
        return True

    def _read_on(self) -> bool:
        """Take a slice of what came; return whether there is more, which waits for its turn."""
        data, self._unread = bytes(self._unread[:SLICE_BYTES]), self._unread[SLICE_BYTES:]
        try:
            if data and not self._take_whole(data):
                self._parse(data)
            self._pass_on()
        except Exception:
            self.abort("internal")  # else it would wait for its turn for ever
            raise
        if self._worker is None:
            self.resume_reading()
        return bool(self._unread)

    def _parse(self, data: bytes) -> None:
        was_open = self._protocol.state is _OPEN
        self._unparsed += len(data)
        self._protocol.receive_data(data)
        # The last of these frames may have closed the protocol; those before it count.
        self._hears_out = was_open
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                # Else the count stays above 0 for ever, and the parser gets all that comes.
                if self._unparsed == len(data) and reading.is_whole_request(data):
                    self._unparsed = 0
                self._handshake(event)
            else:
                frame = cast("Frame", event)
                self._unparsed -= reading.least_size(frame)
                self._frame(frame)
        self._hears_out = False
        if was_open and self._protocol.parser_exc is not None:
            self._count_end(why := reading.failure(self._protocol.close_sent))
            log.info("socket closed", why=why, peer=self.peer)
        elif self._session is None and self._protocol.handshake_exc is not None:
            self._refuse_handshake()

    def eof_received(self) -> bool:
        """Learn that the peer will send no more; we close, in turn, what does not do so itself."""
        self._sockets.pace.do(self._hear_the_end)
        return self._transport.get_extra_info("sslcontext") is None

    def _hear_the_end(self) -> None:
        while self._unread:  # TLS tells of the end while we pause
            self._read_on()
        if not self._transport.is_closing():  # else it was cut off, and may be gone by now
            self._protocol.receive_eof()
            self._pass_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._unread = reading.NOTHING
        self._leave()
        self.resume_writing()
        if self._session is not None:
            if isinstance(exc, TimeoutError):
                self._count_end("vanished")
            self._count_end("left")
            metrics.SOCKETS.dec()
        self._sockets.closed(self)
        reading.let_go(self._protocol)

    def pause_writing(self) -> None:
        """Learn that the transport holds bytes back: what comes now has to queue behind them."""
        self._write_directly(None)

    def resume_writing(self) -> None:
        """Learn that the unsent bytes have drained."""
        self._write_directly(self._plain)
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    def _write_directly(self, direct: socket.socket | None) -> None:
        self.direct = direct
        self._sockets.changes.count += 1

    def _let_go(self) -> None:
        """Write nothing past the transport any more: the descriptor is its to close."""
        if self._plain is not None:
            self._plain.detach()
            self._plain = None
        self._write_directly(None)

    # -- handshake and frames ---------------------------------------------------------------------

    def _handshake(self, request: Request) -> None:
        if (refusal := self._sockets.refusal(request)) is not None:
            self._sockets.door.refused(refusal)
            self._protocol.send_response(refusing(refusal))
            return
        response = self._protocol.accept(request)
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            self._protocol.send_response(response)
            self._session = self._sockets.session(request)
            metrics.OPENED.inc()
            metrics.SOCKETS.inc()
            self.peer = self._sockets.client_address(request, self._transport)
            self.schedule()

    def _refuse_handshake(self) -> None:
        """Answer what is no handshake in our own words instead of those of ``websockets``."""
        error = no_handshake(self._protocol.handshake_exc)
        self._sockets.door.refused(error)
        self._protocol.data_to_send()
        self._unread = reading.NOTHING  # it may have been a head without an end
        self._transport.write(refusing(error).serialize())
        self._transport.close()

    def _frame(self, frame: Frame) -> None:
        if not self.is_open:
            self._hear_noise()
            return
        match frame.opcode:
            case Opcode.TEXT if frame.fin:
                self._text(bytes(frame.data))
            case Opcode.TEXT | Opcode.CONT:
                self._fragment(frame)
            case Opcode.BINARY:
                self.end(Close.UNSUPPORTED_DATA, "send text frames only", "binary")
            case Opcode.PONG:
                self._pong(bytes(frame.data))
            case Opcode.PING:
                self._hear_noise()

    def _pong(self, payload: bytes) -> None:
        self._sockets.returns.ponged(self, payload)
        self._hear_noise()

    def _fragment(self, frame: Frame) -> None:
        self._fragments = self._fragments or bytearray()
        self._fragments += frame.data
        if frame.fin:
            whole, self._fragments = self._fragments, None
            self._text(whole)
        else:
            self._hear_noise()

    def _hear_noise(self) -> None:
        """Count a frame that brought no message: each costs work, and a ping costs a pong."""
        self._noise += 1
        if self._noise > NOISE_LIMIT:
            if self.is_open:
                self.end(Close.FLOOD, "too many frames: slow down", "flood")
            else:
                self.abort("flood")

    def _text(self, data: bytes | bytearray) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.end(Close.INVALID_TEXT, "a text frame must be UTF-8", "invalid_utf8")
        else:
            self.perform(self.session.received(text, self._sockets.now_ns()))

    def _pass_on(self) -> None:
        """Write what the protocol wants written; its empty bytes mean: end the connection."""
        writes = self._protocol.data_to_send()
        if data := b"".join(writes):
            self._transport.write(data)
            self._check_hard_bound()
        if b"" in writes:
            self._finish()
        if self._session is not None and self._protocol.state is not _OPEN:
            self._leave()

    def _finish(self) -> None:
        """End the connection: nothing more will be written."""
        failure = self._protocol.parser_exc
        half_close = self._transport.can_write_eof() and not self._transport.is_closing()
        if failure is None or isinstance(failure, EOFError) or not half_close:
            self._transport.close()
            return
        # The peer may be in the middle of sending. Closing now would reset the connection, and
        # the peer would never read why.
        self._transport.write_eof()
        self._sockets.wheel.schedule(self, self._sockets.now() + CLOSE_TIMEOUT_S)

    # -- the session's actions --------------------------------------------------------------------

    def perform(self, actions: list[Action]) -> None:
        """Do what the session wants done; what has to wait goes to a worker, in order."""
        for action in actions:
            match action:
                case Send() if self._worker is None and publish_now(self, self._sockets, action):
                    pass  # nothing waited before it, and it need not wait itself
                case Write(text):
                    self.reply(text)
                case Refuse(command_id, error):
                    self.refuse(command_id, error)
                case End(code, reason, why, farewell):
                    if farewell is not None:
                        metrics.REFUSED.labels(self._sockets.door.name, why).inc()
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
        if self._worker.put(action):
            self._transport.pause_reading()

    def worker_idle(self) -> None:
        """Learn that every command was worked off."""
        self._worker = None
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read on after too many commands were waiting, or what came waited for its turn."""
        if not (self._is_deaf or self._unread or self.is_heard or self._transport.is_closing()):
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
        is_open = self._protocol.state is _OPEN or self._hears_out
        return is_open and not self._transport.is_closing()

    def deliver(self, batch: Batch) -> int:
        """Write a batch; a slow peer goes without what is volatile, or is cut off."""
        unsent = self._transport.get_write_buffer_size()
        if not self.is_open:
            metrics.DROPPED.inc(batch.count)
            return 0
        if unsent > self._sockets.limits.soft_buffer_bytes:
            return self._deliver_slow(batch, unsent)
        self._transport.write(batch.everything)
        return batch.count

    def write(self, data: bytes) -> None:
        """Write frames that may not be dropped."""
        if self.direct is not None:
            data = unsent(self.direct, data)
        if data and self.is_open:
            self._transport.write(data)
            self._check_hard_bound()

    async def drained(self) -> None:
        """Return once the peer has taken what was written, or is cut off for not taking it."""
        limit = self._sockets.limits.soft_buffer_bytes
        while self.is_open and self._transport.get_write_buffer_size() > limit:
            self._note_slow()
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def _check_hard_bound(self) -> None:
        """Cut off a peer that keeps sending and does not read the answers."""
        if self._transport.get_write_buffer_size() > self._sockets.limits.hard_buffer_bytes:
            self.abort("slow")

    def _deliver_slow(self, batch: Batch, unsent: int) -> int:
        if unsent > self._sockets.limits.hard_buffer_bytes:
            self.abort("slow")
            metrics.DROPPED.inc(batch.count)
            return 0
        self._note_slow()
        metrics.SKIPPED.inc(batch.volatile_count)
        if batch.kept:
            self._transport.write(batch.kept)
        return batch.count - batch.volatile_count

    def _note_slow(self) -> None:
        """Start the time that a slow peer has to drain, unless it is running."""
        if not self._slow_since:
            self._slow_since = self._sockets.now()
            self.hang()

    # -- time (wheel.Timed) -----------------------------------------------------------------------

    def on_due(self, now: float) -> None:
        """Do what time brings: heartbeats, the end of a token, a peer too slow or gone."""
        if not self.is_open:
            self.abort("close_timeout")
        elif now - self._heard_at > SILENCE_S and self._transport.is_reading():
            self.abort("silent")
        elif self._is_slow_for_good(now):
            self.abort("slow")
        else:
            if now >= self._due_at:
                self._noise = 0
                self.perform(self.session.due(self._sockets.now_ns()))
                self.schedule()
            if self.is_open:
                self.ping()
                self.hang()

    def _is_slow_for_good(self, now: float) -> bool:
        limits = self._sockets.limits
        if self._transport.get_write_buffer_size() <= limits.soft_buffer_bytes:
            self._slow_since = 0.0
            return False
        self._slow_since = self._slow_since or now
        return now - self._slow_since >= limits.slow_timeout_s

    def schedule(self) -> None:
        """Reckon anew when the session is due, and hang this socket into the wheel."""
        self._due_at = self._sockets.now() + self.session.next_due_s(self._sockets.now_ns())
        self.hang()

    def hang(self) -> None:
        """Hang this socket into the wheel for whatever is due next."""
        if not self.is_open:
            return  # the wheel is to look after its end
        due = self._due_at
        if self.trail is not None:
            due = min(due, self._sockets.now() + PING_S)
        if self._slow_since:
            due = min(due, self._slow_since + self._sockets.limits.slow_timeout_s)
        self._sockets.wheel.schedule(self, due)

    @property
    def is_heard(self) -> bool:
        """Whether what the peer says is read just now."""
        return self._transport.is_reading()

    def ping(self) -> None:
        """Ask for a sign of life."""
        trail, returns = self.trail, self._sockets.returns
        self._transport.write(frames.PING if trail is None else returns.ping(self, trail))

    # -- the end ----------------------------------------------------------------------------------

    def announce_end(self, within_ms: int) -> None:
        """Tell a peer that has logged in to open another socket: this one will be closed."""
        if self.connection_id and self.is_open:
            self.reply(frames.draining(within_ms))

    def end(self, code: Close, reason: str, why: str, farewell: bytes | None = None) -> None:
        """Close with a code, after a last text; a peer that does not answer is cut off."""
        self._hears_out = False
        if not self.is_open:
            return
        self._count_end(why)
        log.info("socket closed", why=why, code=int(code), peer=self.peer)
        if farewell is not None:
            self.reply(farewell)
        self._protocol.send_close(code, reason.encode()[:MAX_REASON].decode(errors="ignore"))
        if code is Close.FLOOD:
            self._is_deaf, self._unread = True, reading.NOTHING
            self._transport.pause_reading()
        self.resume_reading()  # for its answer, should commands have been waiting
        self._pass_on()
        self._sockets.wheel.schedule(self, self._sockets.now() + CLOSE_TIMEOUT_S)

    def abort(self, why: str) -> None:
        """Cut the peer off at once, unsent bytes and all; counted unless ``end`` has done it."""
        if self.is_open:
            self._count_end(why)
            log.info("socket cut off", why=why, peer=self.peer)
        self._is_deaf, self._unread = True, reading.NOTHING
        self._let_go()
        self._transport.abort()  # and leaves in the next turn: the hub may be writing just now

    def _count_end(self, why: str) -> None:
        """Count why a socket ended, the first reason for each."""
        if not self._ended:
            self._ended = True
            metrics.CLOSED.labels(why).inc()

    def _leave(self) -> None:
        """Cease to watch. Every way of closing leads here; a second time does nothing."""
        self._let_go()
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None
        self._sockets.returns.ended(self, is_clean=is_goodbye(self._protocol.close_rcvd))
        for cid in list(self.calls):
            self._sockets.unwatch(self, cid)
