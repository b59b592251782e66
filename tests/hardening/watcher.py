"""One watcher of one call that counts what its application would see; runs inside a crowd.

It does what docs/protocol.md tells a client to do: recover by position, drop what comes twice, and
(unless it is one of those that ignore ``connection.draining``) open a second socket before the
first one ends. Every event carries ``n``, counted by its sender: that, and not the offsets the
watcher itself goes by, shows whether something is missing or came twice.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from typing import Any, NamedTuple, cast

import msgspec

BACKOFF_S = (0.25, 0.5, 1.0, 2.0)
ANSWER_S = 15.0
ASK_AGAIN_S = 1.0
HANDSHAKE = (
    b"GET /video/connect?api_key=key&stream-auth-type=jwt HTTP/1.1\r\nHost: relay\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked(opcode: int, data: bytes) -> bytes:
    """Return a client's frame; a mask of zeros leaves the bytes as they are."""
    if len(data) < 126:
        return bytes([0x80 | opcode, 0x80 | len(data), 0, 0, 0, 0]) + data
    return bytes([0x80 | opcode, 0xFE]) + struct.pack("!H", len(data)) + bytes(4) + data


class Line(asyncio.Protocol):
    """One socket of a watcher: takes the relay's frames apart, and answers pings and closes."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._buffer = bytearray()
        self._upgraded = False
        self.code = 1006

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded:
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head[:16]:
                self.transport.abort()
                return
            self._upgraded, self._buffer = True, bytearray(rest)
            self._watcher.upgraded(self)
        self._take_frames()

    def _take_frames(self) -> None:
        while len(self._buffer) >= 2:
            length, start = self._buffer[1], 2
            if length == 126:
                length, start = int.from_bytes(self._buffer[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(self._buffer[2:10], "big"), 10
            if len(self._buffer) < start + length:
                return
            opcode = self._buffer[0] & 0x0F
            data = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            self._frame(opcode, data)

    def _frame(self, opcode: int, data: bytes) -> None:
        if opcode == 1:
            self._watcher.heard(self, msgspec.json.decode(data))
        elif opcode == 9:
            self.transport.write(masked(10, data))
        elif opcode == 8:
            self.code = int.from_bytes(data[:2], "big")
            self.transport.write(masked(8, data[:2]))
            self.transport.close()

    def say(self, **message: Any) -> None:
        self.transport.write(masked(1, msgspec.json.encode(message)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._watcher.ended(self)


class Moments(NamedTuple):
    """When (loop time, seconds) sockets were opened, watched a call again, were told to go."""

    dials: list[float]
    back: list[float]
    told: list[float]

    def clear(self) -> None:
        """Forget what was."""
        for times in self:
            times.clear()


class Watcher:
    """``moments`` and ``codes`` are shared by a crowd: when what happened, how sockets ended."""

    def __init__(
        self,
        *,
        ports: list[int],
        user_id: str,
        token: str,
        cid: str,
        heeds: bool,
        rng: random.Random,
        moments: Moments,
        codes: Counter[int],
    ) -> None:
        self._ports = ports
        self._user_id = user_id
        self._token = token
        self._cid = cid
        self._heeds = heeds
        self._random = rng
        self._moments = moments
        self._codes = codes
        self._line: Line | None = None
        self._next: Line | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._since: dict[str, Any] | None = None
        self.watching = asyncio.Event()
        self.away_s = 0.0
        self.first = 0
        self.last = 0
        self.missing = 0
        self.repeated = 0
        self.told_lost = 0
        self.moved = 0

    def start(self) -> None:
        """Connect; how often it has to try is nobody's business."""
        self._spawn(0.0)

    def cut(self, away_s: float) -> None:
        """Lose the connection, and come back that much later."""
        self.away_s = away_s
        if self._line is not None:
            self._line.transport.abort()

    # -- what the lines report --------------------------------------------------------------------

    def upgraded(self, line: Line) -> None:
        line.say(token=self._token, user_details={"id": self._user_id})

    def heard(self, line: Line, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "connection.ok":
                self._ask(line)
            case "error":  # temporary: nothing else is ever wrong with it
                asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask, line)
            case "call.watching":
                self._switch(line, frame)
            case "connection.draining":
                self._moments.told.append(asyncio.get_running_loop().time())
                if self._heeds and line is self._line and self._next is None:
                    within_s = frame["reconnect_within_ms"] / 1000
                    self._spawn(self._random.uniform(0, within_s / 2), second=True)
            case "call.position":
                self.told_lost += 1
                self._since = {"epoch": frame["epoch"], "offset": frame["offset"]}
            case "custom" if line is self._line:
                self._event(frame)

    def ended(self, line: Line) -> None:
        if line is self._next:
            self._next = None
        if line is self._line:
            self._line = None
            self.watching.clear()
            self._codes[line.code] += 1
            if self._next is None:
                self._come_back()

    def _ask(self, line: Line) -> None:
        since = {} if self._since is None else {"since": self._since}
        line.say(type="call.watch", id=1, call_cid=self._cid, **since)

    # -- what it does -----------------------------------------------------------------------------

    def _switch(self, line: Line, frame: dict[str, Any]) -> None:
        """From here on this socket delivers; the other one, if there is one, is left."""
        before, self._line, self._next = self._line, line, None
        if self._since is None or frame.get("recovered") is False:
            self.told_lost += frame.get("recovered") is False
            self._since = {"epoch": frame["epoch"], "offset": frame["offset"]}
        self._failures = 0
        self._moments.back.append(asyncio.get_running_loop().time())
        self.watching.set()
        if before is not None and before is not line:
            self.moved += 1
            before.transport.write(masked(8, b"\x03\xe8"))
            before.transport.close()

    def _event(self, event: dict[str, Any]) -> None:
        assert self._since is not None
        if event["epoch"] == self._since["epoch"] and event["offset"] <= self._since["offset"]:
            return
        self._since = {"epoch": event["epoch"], "offset": event["offset"]}
        self._show(event["custom"]["n"])

    def _show(self, n: int) -> None:
        """Be the application, which knows nothing of offsets."""
        if not self.first:
            self.first = n
        elif n <= self.last:
            self.repeated += 1
        else:
            self.missing += n - self.last - 1
        self.last = max(self.last, n)

    def _come_back(self) -> None:
        wait_s = self._random.uniform(0, BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)])
        self._failures += 1
        away_s, self.away_s = self.away_s, 0.0
        self._spawn(away_s or wait_s)

    def _spawn(self, delay_s: float, *, second: bool = False) -> None:
        task = asyncio.create_task(self._dial(delay_s, second=second))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self, delay_s: float, *, second: bool) -> None:
        await asyncio.sleep(delay_s)
        loop = asyncio.get_running_loop()
        if second and self._line is None:
            return  # too late: the way back is under way
        self._moments.dials.append(loop.time())
        line = Line(self)
        if second:
            self._next = line
        else:
            self._line = line
        try:
            port = self._random.choice(self._ports)
            async with asyncio.timeout(ANSWER_S):
                await loop.create_connection(lambda: line, "127.0.0.1", port)
        except OSError:  # TimeoutError is one
            self.ended(line)
        else:
            loop.call_later(ANSWER_S, self._give_up, line)

    def _give_up(self, line: Line) -> None:
        """Cut a socket on which nothing is watched yet."""
        if line is self._next or (line is self._line and not self.watching.is_set()):
            line.transport.abort()
