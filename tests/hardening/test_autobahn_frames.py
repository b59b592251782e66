"""Autobahn's groups 1 to 5 and 10: framing, pings, reserved bits, opcodes, fragmentation.

Told again from the suite's documented cases, with its numbers. Where the relay differs:

==========  =======================  ============================================================
case        Autobahn                 the relay
==========  =======================  ============================================================
1.2.x       binary is echoed         1003: the protocol is JSON in text frames
2.6, 2.11   octet-wise               the same, and in one segment
5.6, 5.20   the pong comes first     last, when all came in one segment: a pong says that what
                                     came before its ping has been dealt with
9.x         messages up to 16 MB     not told: 64 KiB is the limit, beyond it 1009 (below)
12, 13      permessage-deflate       the extension is declined in the handshake (below)
==========  =======================  ============================================================
"""

from __future__ import annotations

import pytest

from tests.gateway.conftest import MakeGateway, anyio_backend, make_gateway
from tests.gateway.peer import CONNECT, Peer
from tests.hardening.autobahn import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    Case,
    check,
    fragments,
    frame,
    play,
    rest,
    text,
)

__all__ = ["anyio_backend", "make_gateway"]

pytestmark = pytest.mark.anyio

FAILS = ("close", 1002)
HELLO = text(check())
PINGED = frame(PING, b"p")
PONGED = ("pong", b"p")
LIMIT = 65_536

FRAMING = [
    Case("1.1.1 text of no bytes", (text(b""),), ("refused",)),
    *(
        Case(f"1.1.{number} text of {size} bytes", (text(check(size)),), ("ok",), chop)
        for number, size, chop in (
            (2, 125, None), (3, 126, None), (4, 127, None), (5, 128, None),
            (6, 65_535, None), (7, 65_536, None), (8, 65_536, 997),
        )
    ),
    *(
        Case(f"1.2.{number} binary of {size} bytes", (frame(BINARY, bytes(size)),),
             (("close", 1003),), chop)
        for number, size, chop in (
            (1, 0, None), (2, 125, None), (3, 126, None), (4, 127, None), (5, 128, None),
            (6, 65_535, None), (7, 65_536, None), (8, 65_536, 997),
        )
    ),
]  # fmt: skip

PINGS = [
    Case("2.1 ping without payload", (frame(PING),), (("pong", b""),)),
    Case("2.2 ping with text", (frame(PING, b"Hello, world!"),), (("pong", b"Hello, world!"),)),
    Case("2.3 ping with bytes", (frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),),
         (("pong", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),)),
    Case("2.4 ping of 125 bytes", (frame(PING, b"\xfe" * 125),), (("pong", b"\xfe" * 125),)),
    Case("2.5 ping of 126 bytes", (frame(PING, b"\xfe" * 126),), (FAILS,)),
    Case("2.6 ping of 125 bytes, octets", (frame(PING, b"\xfe" * 125),),
         (("pong", b"\xfe" * 125),), 1),
    Case("2.7 pong unasked", (frame(PONG),), ()),
    Case("2.8 pong unasked with payload", (frame(PONG, b"unsolicited"),), ()),
    Case("2.9 pong unasked, then ping", (frame(PONG, b"unsolicited"), PINGED), (PONGED,)),
    *(
        Case(f"{name} ten pings", tuple(frame(PING, b"payload-%d" % n) for n in range(10)),
             tuple(("pong", b"payload-%d" % n) for n in range(10)), chop)
        for name, chop in (("2.10", 0), ("2.11", 1))
    ),
]  # fmt: skip

RESERVED_BITS = [
    Case("3.1 RSV1 text", (text(check(), rsv=1),), (FAILS,)),
    Case("3.2 text, RSV2 text, ping", (HELLO, text(check(), rsv=2), PINGED), ("ok", FAILS)),
    Case("3.3 text, RSV3 text, ping, frames", (HELLO, text(check(), rsv=3), PINGED),
         ("ok", FAILS), 0),
    Case("3.4 text, RSV4 text, ping, octets", (HELLO, text(check(), rsv=4), PINGED),
         ("ok", FAILS), 1),
    Case("3.5 RSV5 binary", (frame(BINARY, b"x", rsv=5),), (FAILS,)),
    Case("3.6 RSV6 ping", (frame(PING, b"x", rsv=6),), (FAILS,)),
    Case("3.7 RSV7 close", (frame(CLOSE, b"\x03\xe8", rsv=7),), (FAILS,)),
]  # fmt: skip


def reserved_opcode(number: str, opcode: int, payload: bytes, *, chop: int | None = None) -> Case:
    return Case(f"{number} opcode {opcode}", (frame(opcode, payload),), (FAILS,), chop)


def after_text(number: str, opcode: int, payload: bytes, *, chop: int | None = None) -> Case:
    name = f"{number} opcode {opcode} after text"
    return Case(name, (HELLO, frame(opcode, payload), PINGED), ("ok", FAILS), chop)


PAYLOAD = b"reserved opcode payload"
OPCODES = [
    reserved_opcode("4.1.1", 3, b""),
    reserved_opcode("4.1.2", 4, PAYLOAD),
    after_text("4.1.3", 5, b""),
    after_text("4.1.4", 6, PAYLOAD),
    after_text("4.1.5", 7, PAYLOAD, chop=1),
    reserved_opcode("4.2.1", 11, b""),
    reserved_opcode("4.2.2", 12, PAYLOAD),
    after_text("4.2.3", 13, b""),
    after_text("4.2.4", 14, PAYLOAD),
    after_text("4.2.5", 15, PAYLOAD, chop=1),
]

HALVES = (text(b'{"type":"hea', fin=False), rest(b'lth.check"}'))
PING_BETWEEN = (HALVES[0], PINGED, HALVES[1])
NOTHING_TO_CONTINUE = rest(b"non-continuation payload")
NOTHING_YET = rest(b"non-continuation payload", fin=False)
FIVE = (
    text(check()[:4], fin=False), rest(check()[4:8], fin=False), PINGED,
    rest(check()[8:12], fin=False), rest(check()[12:16], fin=False), PINGED, rest(check()[16:]),
)  # fmt: skip

FRAGMENTS = [
    Case("5.1 ping in fragments", (frame(PING, b"a", fin=False), rest(b"b")), (FAILS,)),
    Case("5.2 pong in fragments", (frame(PONG, b"a", fin=False), rest(b"b")), (FAILS,)),
    *(Case(f"{n} text in two", HALVES, ("ok",), chop)
      for n, chop in (("5.3", None), ("5.4", 0), ("5.5", 1))),
    Case("5.6 ping between fragments", PING_BETWEEN, ("ok", PONGED)),
    *(Case(f"{n} ping between fragments", PING_BETWEEN, (PONGED, "ok"), chop)
      for n, chop in (("5.7", 0), ("5.8", 1))),
    *(Case(f"{n} nothing to continue", (NOTHING_TO_CONTINUE, HELLO), (FAILS,), chop)
      for n, chop in (("5.9", None), ("5.10", 0), ("5.11", 1))),
    *(Case(f"{n} nothing to continue, unfinished", (NOTHING_YET, HELLO), (FAILS,), chop)
      for n, chop in (("5.12", None), ("5.13", 0), ("5.14", 1))),
    Case("5.15 a text, then nothing to continue", (*HALVES, NOTHING_YET, HELLO), ("ok", FAILS)),
    Case("5.16 nothing to continue, twice", (NOTHING_YET, *HALVES) * 2, (FAILS,)),
    Case("5.17 nothing to continue, finished, twice", (NOTHING_TO_CONTINUE, *HALVES) * 2, (FAILS,)),
    Case("5.18 text within text", (HALVES[0], text(b'lth.check"}')), (FAILS,)),
    Case("5.19 five fragments and two pings", FIVE, (PONGED, PONGED, "ok"), 0),
    Case("5.20 the same at once", FIVE, ("ok", PONGED, PONGED)),
]  # fmt: skip

AUTO_FRAGMENTATION = [
    Case("10.1.1 65 536 bytes in fragments of 1 300", fragments(check(LIMIT), 1300), ("ok",)),
    Case("10.1.1 the same, segments", fragments(check(LIMIT), 1300), ("ok",), 1460),
]

BEYOND = [
    Case("9.x one byte too many", (text(check(LIMIT + 1)),), (("close", 1009),)),
    Case("9.x one byte too many, fragments", fragments(check(LIMIT + 1), 4096),
         (("close", 1009),), 0),
    Case("9.x a head that promises 16 MB", (text(check(16_777_216))[:14],), (("close", 1009),)),
    Case("9.x a length beyond 63 bits", (b"\x81\xff" + b"\xff" * 8 + bytes(4),),
         (("close", 1009),)),
    Case("unmasked text", (b"\x81\x02{}",), (FAILS,)),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [*FRAMING, *PINGS, *RESERVED_BITS, *OPCODES, *FRAGMENTS, *AUTO_FRAGMENTATION, *BEYOND],
    ids=str,
)
async def test_case(case: Case, make_gateway: MakeGateway) -> None:
    await play(case, make_gateway)


async def test_12_and_13_compression_is_declined(make_gateway: MakeGateway) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    peer = Peer(make_gateway()).connect(CONNECT, offer)
    status, headers, _ = peer.response
    assert status == 101
    assert "sec-websocket-extensions" not in headers
    peer.raw(text(check(), rsv=4))  # compressed all the same
    assert peer.close is not None
    assert peer.close[0] == 1002
