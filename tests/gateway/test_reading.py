"""The short way in: it takes what the parser would have taken, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from relay.gateway import reading
from tests.gateway.conftest import Gateway, gateways
from tests.gateway.fakes import FakeTimeLoop, turns
from tests.gateway.peer import CONNECT, HANDSHAKE, Peer

pytestmark = pytest.mark.anyio

LIMIT = 65_536


def frame(data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return bytes(Frame(opcode, data, fin=fin).serialize(mask=True))


def size(data: bytes) -> str:
    """Name a case: its bytes are masked anew each time."""
    return f"{len(data)} bytes"


@pytest.mark.parametrize("length", [2, 125, 126, 127, 65_535])
def test_one_whole_text_is_taken(length: int) -> None:
    assert reading.whole_text(frame(b"x" * length), LIMIT) == b"x" * length


@pytest.mark.parametrize(
    "data",
    [
        b"",
        frame(b"")[:6],
        frame(b"hello")[:-1],
        frame(b"hello") + b"\x81",
        frame(b"x" * 200)[:-1],
        frame(b"hello", fin=False),
        frame(b"hello", Opcode.CONT),
        frame(b"hello", Opcode.BINARY),
        frame(b"hello", Opcode.PING),
        b"\xc1" + frame(b"hello")[1:],
        b"\x81\x06123456",
        b"\x81\x7e" + frame(b"x" * 200)[2:],
        frame(b"x" * 65_536),
    ],
    ids=size,
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert reading.whole_text(data, LIMIT) is None


def test_a_text_over_the_limit_is_left_to_the_parser() -> None:
    assert reading.whole_text(frame(b"x" * 100), 100) is not None
    assert reading.whole_text(frame(b"x" * 101), 100) is None


@pytest.mark.parametrize("length", [0, 4, 125])
def test_one_whole_pong_is_taken(length: int) -> None:
    assert reading.whole_pong(frame(b"x" * length, Opcode.PONG)) == b"x" * length


@pytest.mark.parametrize(
    "data",
    [
        b"",
        frame(b"tick", Opcode.PONG)[:-1],
        frame(b"tick", Opcode.PONG) + b"\x81",
        frame(b"tick", Opcode.PING),
        b"\x8a\x04tick..",
        b"\x8a\xfe" + bytes(130),
    ],
    ids=size,
)
def test_what_is_not_just_a_pong_is_left_to_the_parser(data: bytes) -> None:
    assert reading.whole_pong(data) is None


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536])
def test_the_least_size_is_what_a_thrifty_client_sends(length: int) -> None:
    data = frame(b"x" * length)
    assert reading.least_size(Frame(Opcode.TEXT, b"x" * length)) == len(data)


async def test_the_parser_is_spared_after_a_whole_request(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    assert peer.connection._unparsed == 0
    peer.raw(peer.frame(Opcode.PING) + peer.frame(Opcode.TEXT, b"{}")[:3])
    assert peer.connection._unparsed == 3


@pytest.mark.parametrize("cut", [1, 30, -3, -2, -1])
async def test_a_request_in_pieces_leaves_everything_to_the_parser(
    gateway: Gateway, cut: int
) -> None:
    request = HANDSHAKE.format(path=CONNECT, key="A" * 22 + "==", more="").encode()
    peer = Peer(gateway)
    peer.raw(request[:cut])
    peer.raw(request[cut:])
    assert peer.connection._unparsed > 0
    assert (await peer.log_in()).types == ["connection.ok"]


async def test_a_first_frame_in_the_same_read_leaves_everything_to_the_parser(
    gateway: Gateway,
) -> None:
    request = HANDSHAKE.format(path=CONNECT, key="A" * 22 + "==", more="").encode()
    first = b"\x89\x84\0\0\0\0\r\n\r\n"  # a ping that ends as a request does
    peer = Peer(gateway)
    peer.raw(request + first[:-1])
    assert peer.connection._unparsed > 0
    peer.raw(first[-1:])
    assert (await peer.log_in()).types == ["connection.ok"]


PIECES = st.one_of(
    st.sampled_from([b'{"type":"health.check"}', b'{"type":"x","id":"%b"}' % (b"y" * 90)]).map(
        frame
    ),
    st.binary(max_size=200).map(frame),
    st.binary(max_size=20).map(lambda data: frame(data, Opcode.PING)),
    st.binary(max_size=20).map(lambda data: frame(data, fin=False)),
    st.binary(max_size=20).map(lambda data: frame(data, Opcode.CONT)),
    st.just(b"\x81\xfe\x00\x02\0\0\0\0{}"),  # a length that is longer than it need be
    st.binary(max_size=12),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=8), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_the_short_way_and_the_parser_take_the_same(pieces: list[bytes], cuts: list[int]) -> None:
    for chunks in (pieces, _cut(b"".join(pieces), cuts)):
        assert _answers(chunks) == _answers(chunks, parser_only=True)


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def _answers(chunks: list[bytes], *, parser_only: bool = False) -> Any:
    async def run() -> Any:
        async with gateways() as make:
            peer = await Peer(make()).log_in()
            own_id, before = peer.connection.connection_id.encode(), len(peer.frames)
            peer.connection._unparsed += parser_only
            for chunk in chunks:
                peer.raw(chunk)
            await turns()
            return [(op, data.replace(own_id, b"id")) for op, data in peer.frames[before:]]

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(run())
