"""Autobahn's groups 6 and 7: UTF-8 in texts and reasons, and the closing handshake.

Told again from the suite's documented cases, with its numbers. A text stands inside a JSON string,
so what is valid UTF-8 but no JSON (a bare control character) is ``refused`` and the connection
stays. What is not as strict as Autobahn likes (it calls that NON-STRICT, not failed):

==========  ==========================  =========================================================
case        Autobahn                    the relay
==========  ==========================  =========================================================
6.4.x       fail at the first bad byte  1007 when the message is complete: messages are at most
                                        64 KiB, and checking twice would cost every good one
7.1.5       the close is answered       1002: the message before it was never finished
7.1.6       256 KiB, then a close       64 KiB, its limit
7.13.x      codes from 5 000 on         1002, as for all that RFC 6455 does not allow
==========  ==========================  =========================================================
"""

from __future__ import annotations

import struct

import pytest

from tests.gateway.conftest import MakeGateway, anyio_backend, make_gateway
from tests.hardening.autobahn import (
    CLOSE,
    PING,
    Case,
    Seen,
    check,
    close,
    fragments,
    frame,
    play,
    rest,
    text,
)

__all__ = ["anyio_backend", "make_gateway"]

pytestmark = pytest.mark.anyio

INVALID: Seen = ("close", 1007)
KOSME = bytes.fromhex("cebae1bdb9cf83cebcceb5")
EDITED = b"edited"


def says(data: bytes) -> bytes:
    """Return a health check around some bytes."""
    return b'{"type":"health.check","x":"%b"}' % data


def valid(number: str, data: bytes, seen: Seen = "ok") -> list[Case]:
    """Return the cases of a text that is UTF-8: whole, and octet by octet."""
    return [
        Case(f"{number} {data.hex()[:24]}", (text(says(data)),), (seen,)),
        Case(f"{number} {data.hex()[:24]} in fragments", fragments(says(data), 1), (seen,)),
    ]


def invalid(number: str, data: bytes) -> list[Case]:
    """Return the cases of a text that is not."""
    return [
        Case(f"{number} {data.hex()[:24]}", (text(says(data)),), (INVALID,)),
        Case(f"{number} {data.hex()[:24]} in fragments", fragments(says(data), 1), (INVALID,)),
    ]


def each(prefix: str, maker: object, *items: bytes) -> list[Case]:
    assert callable(maker)
    return [case for n, data in enumerate(items, 1) for case in maker(f"{prefix}.{n}", data)]


def surrogate(code: int) -> bytes:
    return chr(code).encode("utf-8", "surrogatepass")


EMPTY = (text(b"", fin=False), rest(b"", fin=False), rest(b""))
FAST = (KOSME + b"\xf4\x90\x80\x80", EDITED)  # the first half is invalid already
TEXTS = [
    Case("6.1.1 no bytes", (text(b""),), ("refused",)),
    Case("6.1.2 three fragments of no bytes", EMPTY, ("refused",)),
    Case("6.1.3 something in the middle", (EMPTY[0], rest(check(), fin=False), EMPTY[2]), ("ok",)),
    *valid("6.2.1", "Hello-µ@ßöäüàá-UTF-8!!".encode()),
    Case("6.2.2 fragments on a code point", (
        text(says("Hello-µ@ß".encode())[:-2], fin=False), rest("öäüàá-UTF-8!!".encode() + b'"}'),
    ), ("ok",)),
    Case("6.2.4 octets", (text(says(KOSME)),), ("ok",), 1),
    *invalid("6.3.1", KOSME + b"\xed\xa0\x80" + EDITED),
    *(
        Case(f"6.4.{number} invalid in the first part", (
            text(says(FAST[0])[:-2], fin=False), rest(FAST[1] + b'"}'),
        ), (INVALID,), chop)
        for number, chop in ((1, None), (2, 0), (3, 1), (4, 2))
    ),
    *each("6.5", valid, KOSME, b"\xce\xba", b"\xe1\xbd\xb9", b"\xf0\x90\x80\x80", b"$\xc2\xa2"),
    *each("6.6", invalid, *(KOSME[:cut] for cut in (1, 3, 4, 6, 8, 10))),
    *each("6.6", valid, *(KOSME[:cut] for cut in (2, 5, 7, 9, 11))),
    *valid("6.7.1", b"\x00", "refused"),  # a control character is no JSON
    *each("6.7", valid, b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"),
    *each("6.8", invalid, b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"),
    *each("6.9", valid, b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"),
    *each("6.10", invalid, b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf",
          b"\xfd\xbf\xbf\xbf\xbf\xbf"),
    *each("6.11", valid, b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"),
    *invalid("6.11.5", b"\xf4\x90\x80\x80"),
    *each("6.12", invalid, b"\x80", b"\xbf", *(b"\x80\xbf" * n for n in range(1, 4)),
          b"\x80\xbf\x80", bytes(range(0x80, 0xC0)), b"\x80\xbf\x80\xbf\x80"),
    *each("6.13", invalid, *(
        b" ".join(bytes([byte]) for byte in range(first, last)) + b" "
        for first, last in ((0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0xF8), (0xF8, 0xFC), (0xFC, 0xFE))
    )),
    *each("6.14", invalid, b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80",
          b"\xfc\x80\x80\x80\x80", b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf",
          b"\xfd\xbf\xbf\xbf\xbf"),
    *invalid("6.15.1", b"\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80\xfc\x80\x80\x80\x80\xdf\xef\xbf"),
    *each("6.16", invalid, b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"),
    *each("6.17", invalid, b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf",
          b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf"),
    *each("6.18", invalid, b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf",
          b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf"),
    *each("6.19", invalid, b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80",
          b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80"),
    *each("6.20", invalid, *map(surrogate, (
        0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF,
    ))),
    *each("6.21", invalid, *(
        surrogate(high) + surrogate(low)
        for high in (0xD800, 0xDB7F, 0xDB80, 0xDBFF) for low in (0xDC00, 0xDFFF)
    )),
    *each("6.22", valid, *(
        chr(plane << 16 | last).encode() for plane in range(17) for last in (0xFFFE, 0xFFFF)
    )),
    *each("6.23", valid, *(chr(code).encode() for code in range(0xFFF9, 0x10000))),
]  # fmt: skip

BYE = close(1000)
LONGEST_REASON = b"*" * 123
HANDSHAKE = [
    Case("7.1.1 a message, then close", (text(check()), BYE), ("ok", ("close", 1000))),
    Case("7.1.2 two closes", (BYE, BYE), (("close", 1000),)),
    Case("7.1.3 ping after close", (BYE, frame(PING)), (("close", 1000),)),
    Case("7.1.4 text after close", (BYE, text(check())), (("close", 1000),)),
    Case("7.1.5 close between fragments", (text(b"a", fin=False), BYE, rest(b"b")),
         (("close", 1002),)),
    Case("7.1.6 a long message, then close and ping", (text(check(65_536)), BYE, frame(PING)),
         ("ok", ("close", 1000))),
    Case("7.3.1 close without payload", (close(),), (("close", None),)),
    Case("7.3.2 close with one byte", (frame(CLOSE, b"a"),), (("close", 1002),)),
    Case("7.3.3 close with a code", (BYE,), (("close", 1000),)),
    Case("7.3.4 close with a reason", (close(1000, b"Hello World!"),), (("close", 1000),)),
    Case("7.3.5 the longest reason", (close(1000, LONGEST_REASON),), (("close", 1000),)),
    Case("7.3.6 a reason too long", (close(1000, LONGEST_REASON + b"*"),), (("close", 1002),)),
    Case("7.5.1 a reason that is not UTF-8", (close(1000, KOSME + b"\xed\xa0\x80edited"),),
         (("close", 1007),)),
    *(
        Case(f"7.7.{number} code {code}", (close(code),), (("close", code),))
        for number, code in enumerate(
            (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1
        )
    ),
    *(
        Case(f"7.9.{number} code {code}", (close(code),), (("close", 1002),))
        for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1)
    ),
    *(
        Case(f"7.13.{number} code {code}", (close(code),), (("close", 1002),))
        for number, code in enumerate((5000, 65535), 1)
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", [*TEXTS, *HANDSHAKE], ids=str)
async def test_case(case: Case, make_gateway: MakeGateway) -> None:
    await play(case, make_gateway)


def test_a_frame_is_masked_as_rfc_6455_shows_it() -> None:
    """Section 5.7: a single-frame masked text message that contains "Hello"."""
    assert text(b"Hello").hex(" ") == "81 85 37 fa 21 3d 7f 9f 4d 51 58"
    assert frame(1, b"x" * 256)[:4] == struct.pack("!BBH", 0x81, 0xFE, 256)
