"""A peer on a fake transport: what it sends goes straight into the connection."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

from websockets.frames import Frame, Opcode

from relay.gateway.connection import Connection
from tests.gateway.conftest import Gateway, token
from tests.gateway.fakes import FakeTransport, turns

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)
CONNECT = "/video/connect?api_key=key&stream-auth-type=jwt"


class Peer:
    """One client. ``sent`` are the bytes it got, ``frames`` what was in them."""

    def __init__(self, gateway: Gateway, address: str = "192.0.2.1") -> None:
        self.gateway = gateway
        self.connection: Connection = gateway.sockets.protocol()
        self.transport = FakeTransport({"peername": (address, 4711)})
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)
        self._taken = 0

    # -- sending

    def connect(self, path: str = CONNECT, *headers: str) -> Peer:
        key = base64.b64encode(bytes(16)).decode()
        more = "".join(f"{header}\r\n" for header in headers)
        self.raw(HANDSHAKE.format(path=path, key=key, more=more).encode("latin-1"))
        return self

    def raw(self, data: bytes) -> None:
        if not self.transport.closing:
            self.connection.data_received(data)

    def frame(self, opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
        return bytes(Frame(opcode, data, fin=fin).serialize(mask=True))

    def text(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.raw(self.frame(Opcode.TEXT, data))

    def say(self, **message: Any) -> None:
        self.text(json.dumps(message))

    async def log_in(self, user_id: str = "john", given: str | None = None) -> Peer:
        if not self.connection._session:
            self.connect()
        self.say(token=given or token(user_id), user_details={"id": user_id})
        await turns()
        return self

    async def watch(self, cid: str, **since: Any) -> dict[str, Any]:
        self.say(type="call.watch", id="w", call_cid=cid, **since)
        await turns(20)
        return next(f for f in reversed(self.texts) if f["type"] == "call.watching")

    # -- what came

    @property
    def response(self) -> tuple[int, dict[str, str], bytes]:
        head, _, body = bytes(self.transport.sent).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """Every frame since the handshake: the opcode and the payload."""
        data = bytes(self.transport.sent).partition(b"\r\n\r\n")[2]
        found = []
        while data:
            length, start = data[1], 2
            if length == 126:
                length, start = int.from_bytes(data[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(data[2:10], "big"), 10
            found.append((data[0] & 0x0F, data[start : start + length]))
            data = data[start + length :]
        return found

    @property
    def pings(self) -> list[bytes]:
        """The payloads of the pings."""
        return [data for opcode, data in self.frames if opcode == 9]

    def pong(self, number: int = -1) -> None:
        """Answer one of the pings, the last one."""
        self.raw(self.frame(Opcode.PONG, self.pings[number]))

    def answer_pings(self) -> None:
        """Answer every ping from now on, as a live peer does."""

        def watched(data: bytes) -> None:
            if data[:1] == b"\x89":
                loop.call_soon(self.raw, self.frame(Opcode.PONG, data[2:]))

        loop = asyncio.get_running_loop()
        self.transport.watched = watched

    @property
    def texts(self) -> list[dict[str, Any]]:
        return [json.loads(data) for opcode, data in self.frames if opcode == 1]

    @property
    def types(self) -> list[str]:
        return [text["type"] for text in self.texts]

    @property
    def close(self) -> tuple[int, str] | None:
        """The code and reason of the close frame, None when there was none."""
        for opcode, data in self.frames:
            if opcode == 8:
                return struct.unpack("!H", data[:2])[0], data[2:].decode()
        return None
