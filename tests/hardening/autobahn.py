"""The vocabulary of the Autobahn cases: frames as a client writes them, and how to play a case.

Autobahn's server under test echoes. Ours answers: a text that is a health check is echoed as
``"ok"``, any other text as ``"refused"`` (an ``error`` frame). Either shows that the whole message
came through. A case that leaves the connection open must leave it usable.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TypeAlias

from tests.gateway.conftest import MakeGateway
from tests.gateway.fakes import turns
from tests.gateway.peer import Peer

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = bytes.fromhex("37fa213d")

Seen: TypeAlias = str | tuple[str, object]
"""``ok``, ``refused``, ``("pong", payload)`` or ``("close", code)``."""


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a masked frame, however wrong."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 65_536:
        head += struct.pack("!BH", 0xFE, len(data))
    else:
        head += struct.pack("!BQ", 0xFF, len(data))
    mask = (MASK * (len(data) // 4 + 1))[: len(data)]
    blinded = int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")
    return head + MASK + blinded.to_bytes(len(data), "big")


def text(data: bytes, *, fin: bool = True, rsv: int = 0) -> bytes:
    """Return a text frame."""
    return frame(TEXT, data, fin=fin, rsv=rsv)


def rest(data: bytes, *, fin: bool = True) -> bytes:
    """Return a continuation frame."""
    return frame(CONT, data, fin=fin)


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    """Return a close frame."""
    return frame(CLOSE, (b"" if code is None else struct.pack("!H", code)) + reason)


def check(size: int = 0) -> bytes:
    """Return a health check of at least that many bytes."""
    return b'{"type":"health.check"}'.ljust(size)


def fragments(data: bytes, size: int) -> tuple[bytes, ...]:
    """Return a text in frames of that many bytes."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return tuple(
        frame(CONT if index else TEXT, part, fin=index == len(parts) - 1)
        for index, part in enumerate(parts)
    )


@dataclass(frozen=True)
class Case:
    """What is sent, and what comes back. ``chop``: bytes per segment, 0: a frame each."""

    name: str
    sends: tuple[bytes, ...]
    seen: tuple[Seen, ...]
    chop: int | None = None

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    @property
    def segments(self) -> list[bytes]:
        """Return what arrives at once."""
        if self.chop == 0:
            return list(self.sends)
        data = b"".join(self.sends)
        size = self.chop or len(data)
        return [data[at : at + size] for at in range(0, len(data), size)]


async def play(case: Case, make_gateway: MakeGateway) -> None:
    """Play a case on a socket that has logged in, and compare."""
    gateway = make_gateway(rules={"command_rate": 0})
    peer = await Peer(gateway).log_in()
    before = len(peer.frames)
    for segment in case.segments:
        peer.raw(segment)
    await turns()
    seen = tuple(_seen(*one) for one in peer.frames[before:])
    assert seen == case.seen, seen
    if seen and seen[-1][0] == "close":
        assert not peer.connection.is_open
        if not peer.transport.eof:
            peer.raw(close(1000))  # the answer to a close frame of the relay's own
            assert peer.transport.closing, "the connection was left open"
        return
    assert peer.connection.is_open
    peer.raw(text(check()))
    assert peer.types[-1] == "health.check"


def _seen(opcode: int, data: bytes) -> Seen:
    if opcode == TEXT:
        return {"health.check": "ok", "error": "refused"}[json.loads(data)["type"]]
    if opcode == CLOSE:
        return "close", struct.unpack("!H", data[:2])[0] if data else None
    return {PING: "ping", PONG: "pong"}[opcode], data
