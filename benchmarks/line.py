"""One hostile socket: what it says is up to its peer, it only connects, logs in and is told why.

Written for little CPU: of what comes it looks for the two answers of the login and keeps the end,
where a close frame is.
"""

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from typing import cast

from benchmarks.doors import CONNECT_PATH

UPGRADE = (
    f"GET {CONNECT_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()
ANSWER_S = 10.0
TAIL_BYTES = 2048
TEXT, PING = 1, 9
_TCP_CLOSED = 7


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a client's frame; a mask of zeros leaves the bytes as they are."""
    head, length = (0x80 if fin else 0) | opcode, len(data)
    if length < 126:
        return bytes([head, 0x80 | length]) + bytes(4) + data
    if length < 65_536:
        return struct.pack("!BBH4x", head, 0xFE, length) + data
    return struct.pack("!BBQ4x", head, 0xFF, length) + data


class Gone(Exception):
    """The other side has ended the connection."""


class Line(asyncio.Protocol):
    """A connection to the server under attack. ``ended`` is what it was told at the end."""

    def __init__(self) -> None:
        self._tail = b""
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._lost = asyncio.Event()

    @classmethod
    async def dial(cls, port: int, ends: "Counter[str]", *, window: int = 0) -> "Line":
        """Return one that is connected, with a receive buffer of ``window`` bytes if not 0."""
        plain = socket.socket()
        plain.setblocking(False)
        if window:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.sock_connect(plain, ("127.0.0.1", port)), ANSWER_S)
        except (OSError, asyncio.CancelledError):
            plain.close()
            ends["not connected"] += 1
            raise
        _, line = await loop.create_connection(cls, sock=plain)
        line._ends = ends  # noqa: SLF001 - its own
        return line

    _ends: "Counter[str]"

    # -- asyncio.Protocol -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Keep the end of what came."""
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        self._news.set()

    def pause_writing(self) -> None:
        """Learn that the other side does not keep up."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Learn that it does again."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note how it ended, unless this side ended it."""
        self._lost.set()
        self._news.set()
        self._room.set()

    # -- what peers do ----------------------------------------------------------------------------

    async def upgrade(self) -> None:
        """Become a socket."""
        await self.say(UPGRADE)
        await self._hear(b"\r\n\r\n")

    async def log_in(self, first: str) -> None:
        """Become a socket, and log in with this first frame."""
        await self.upgrade()
        await self.say(frame(TEXT, first.encode()))
        await self._hear(b'"connection.ok"')

    async def say(self, data: bytes) -> None:
        """Send bytes, as fast as they are taken; raises ``Gone``."""
        await self._room.wait()
        if self._lost.is_set() or self._transport.is_closing():
            raise Gone
        self._transport.write(data)

    async def _hear(self, wanted: bytes) -> None:
        while wanted not in self._tail:
            if self._lost.is_set():
                raise Gone
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), ANSWER_S)
        self._tail = b""

    async def listen(self, seconds: float) -> None:
        """Wait so long, or until the other side ends it: ``Gone``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), seconds)
            raise Gone

    def stop_reading(self) -> None:
        """Leave what comes in the kernel's buffer, until its window is shut."""
        self._transport.pause_reading()

    def sip(self, size: int) -> None:
        """Read so few bytes past the transport; raises ``Gone``, which asyncio would not notice."""
        plain: socket.socket = self._transport.get_extra_info("socket")
        try:
            if plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSED:
                raise Gone
            if size:
                os.read(plain.fileno(), size)
        except BlockingIOError:
            return
        except OSError as error:
            raise Gone from error

    def close(self) -> None:
        """Cut it, and count how it had ended."""
        self._ends[self.ended] += 1
        self._transport.abort()

    @property
    def ended(self) -> str:
        """The code of the close frame, the status of a refusal, ``reset``, or ``left``: by us."""
        for start in range(len(self._tail)):
            if self._tail[start] == 0x88 and start + 2 + self._tail[start + 1] == len(self._tail):
                return str(int.from_bytes(self._tail[start + 2 : start + 4], "big"))
        if self._tail.startswith(b"HTTP/1.1 "):
            return self._tail[9:12].decode()
        return "reset" if self._lost.is_set() else "left"
