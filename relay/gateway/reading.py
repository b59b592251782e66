"""The short way in for what nearly every read is: one whole text or pong and nothing else.

``websockets``' parser is ready for whatever a peer may send, at the price of half a dozen
generators a frame, nearly as much as the rest of a command. What is not taken here goes to the
parser, which stays the judge of every frame that is not plain.
"""

from __future__ import annotations

from websockets.frames import Close, Frame
from websockets.protocol import Protocol
from websockets.speedups import apply_mask

NOTHING = memoryview(b"")
_WHOLE_TEXT = 0x81
_WHOLE_PONG = 0x8A
_MASKED = 0x80
_BLANK_LINE = b"\r\n\r\n"
_FAILURES = {1002: "protocol_error", 1007: "invalid_utf8", 1009: "too_big"}
"""Why ``websockets`` closes a socket by itself, as counters call it."""


def whole_text(data: bytes, limit: int) -> bytes | None:
    """Return the text of ``data`` when that is one unfragmented text frame of a client.

    None for anything else, also for a text of more than ``limit`` or 65 535 bytes. ``data`` has to
    begin where a frame does.
    """
    if len(data) < 8 or data[0] != _WHOLE_TEXT:
        return None
    length, start = data[1] ^ _MASKED, 6
    if length == 126:
        length, start = data[2] << 8 | data[3], 8
    elif length > 126:
        return None  # it is huge, or was not masked
    if start + length != len(data) or length > limit:
        return None
    return apply_mask(data[start:], data[start - 4 : start])


def whole_pong(data: bytes) -> bytes | None:
    """Return the payload of ``data`` when that is one pong of a client, None for anything else."""
    if len(data) < 6 or data[0] != _WHOLE_PONG:
        return None
    length = data[1] ^ _MASKED
    if length > 125 or len(data) != 6 + length:
        return None
    return apply_mask(data[6:], data[2:6])


def least_size(frame: Frame) -> int:
    """Return how many bytes a client needs to send this frame; it may have spent more."""
    length = len(frame.data)
    return 6 + length + (0 if length < 126 else 2 if length < 65536 else 8)


def is_whole_request(data: bytes) -> bool:
    """Tell whether ``data``, in which a request begins and ends, has nothing after it."""
    return data.find(_BLANK_LINE) == len(data) - len(_BLANK_LINE)


def failure(sent: Close | None) -> str:
    """Return how counters call what made ``websockets`` close a socket with this."""
    return "protocol_error" if sent is None else _FAILURES.get(sent.code, "internal")


def let_go(protocol: Protocol) -> None:
    """Break the cycles of a protocol whose connection is over, so that it is gone at once.

    They would wait for a collection, and a crowd that leaves would make it a long one.
    """
    protocol.parser.close()
    for error in (protocol.parser_exc, protocol.handshake_exc):
        if error is not None:
            error.__traceback__ = None  # its frames know the protocol, and the request
    protocol.parser_exc = protocol.handshake_exc = None
