"""One socket over a fake transport: its frames, its time, and its end."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from relay import metrics
from relay.errors import Close
from relay.gateway.bounds import CLOSE_TIMEOUT_S, SILENCE_S, SLICE_BYTES
from tests.gateway.conftest import Gateway, closed, gateways, token
from tests.gateway.fakes import CID, FakeTimeLoop, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio


# -- frames ---------------------------------------------------------------------------------------


async def test_a_ping_is_answered(gateway: Gateway) -> None:
    peer = Peer(gateway).connect()
    peer.raw(peer.frame(Opcode.PING, b"hello"))
    assert peer.frames == [(10, b"hello")]


async def test_fragments_make_one_message(gateway: Gateway) -> None:
    peer = Peer(gateway).connect()
    text = json.dumps({"token": token(), "user_details": {"id": "john", "name": "Jöhn"}}).encode()
    cut = text.index("ö".encode()) + 1 if "ö".encode() in text else len(text) // 2
    peer.raw(peer.frame(Opcode.TEXT, text[:cut], fin=False))
    peer.raw(peer.frame(Opcode.PING, b"between"))
    peer.raw(peer.frame(Opcode.CONT, b"", fin=False))
    peer.raw(peer.frame(Opcode.CONT, text[cut:]))
    await turns()
    assert peer.types == ["connection.ok"]


async def test_a_message_may_arrive_byte_by_byte(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    data = peer.frame(Opcode.TEXT, b'{"type":"health.check"}')
    for index in range(len(data)):
        peer.raw(data[index : index + 1])
    assert peer.types[-1] == "health.check"


async def test_many_frames_may_arrive_at_once(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    padded = b'{"type":"health.check","x":"%b"}' % (b"y" * SLICE_BYTES)
    peer.raw(b"".join(peer.frame(Opcode.TEXT, padded) for _ in range(5)))
    assert peer.types == ["connection.ok"] + ["health.check"] * 5


BAD_FRAMES: dict[str, tuple[bytes, Close, str]] = {
    "binary": (b"\x82\x81\0\0\0\0a", Close.UNSUPPORTED_DATA, "binary"),
    "invalid UTF-8": (b"\x81\x81\0\0\0\0\xff", Close.INVALID_TEXT, "invalid_utf8"),
    "too big": (b"\x81\xff" + (10**6).to_bytes(8, "big") + bytes(4), Close.TOO_BIG, "too_big"),
    "not masked": (b"\x81\x01a", Close.PROTOCOL_ERROR, "protocol_error"),
    "reserved bits": (b"\xf1\x81\0\0\0\0a", Close.PROTOCOL_ERROR, "protocol_error"),
    "unknown opcode": (b"\x83\x80\0\0\0\0", Close.PROTOCOL_ERROR, "protocol_error"),
    "lonely continuation": (b"\x80\x80\0\0\0\0", Close.PROTOCOL_ERROR, "protocol_error"),
    "text within text": (
        b"\x01\x80\0\0\0\0\x01\x80\0\0\0\0", Close.PROTOCOL_ERROR, "protocol_error",
    ),
    "long ping": (b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126), Close.PROTOCOL_ERROR, "protocol_error"),
    "fragments too big": (
        (b"\x01\xfe\xff\xff\0\0\0\0" + b"a" * 65535) + (b"\x80\x82\0\0\0\0aa"),
        Close.TOO_BIG, "too_big",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FRAMES)
@pytest.mark.parametrize("logged_in", [False, True])
async def test_a_bad_frame_closes_with_its_code_and_is_counted(
    gateway: Gateway, name: str, logged_in: bool
) -> None:
    data, code, why = BAD_FRAMES[name]
    peer = await Peer(gateway).log_in() if logged_in else Peer(gateway).connect()
    if logged_in:
        await peer.watch(CID)
    before = closed(why)
    peer.raw(data)
    assert peer.close is not None
    assert peer.close[0] == code != 1000
    assert closed(why) == before + 1
    assert not peer.connection.calls
    await asyncio.sleep(CLOSE_TIMEOUT_S + 2)
    assert peer.transport.closing
    await turns()
    assert not gateway.sockets._open
    assert (await Peer(gateway).log_in()).types == ["connection.ok"]


async def test_one_who_is_sending_when_it_is_refused_gets_to_read_why(gateway: Gateway) -> None:
    """Closing at once would reset the connection under what the peer still sends."""
    peer = await Peer(gateway).log_in()
    peer.raw(BAD_FRAMES["too big"][0])
    assert peer.transport.eof
    assert not peer.transport.closing
    peer.raw(b"x" * 100_000)
    peer.connection.eof_received()
    assert not peer.transport.aborted


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5), st.booleans())
def test_any_bytes_are_survived(chunks: list[bytes], logged_in: bool) -> None:
    async def run() -> None:
        async with gateways() as make:
            gateway = make()
            peer = await Peer(gateway).log_in() if logged_in else Peer(gateway).connect()
            for chunk in chunks:
                peer.raw(chunk)
                peer.raw(peer.frame(Opcode.TEXT, chunk))
            assert peer.close is None or peer.close[0] != 1000

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(run())


# -- time -----------------------------------------------------------------------------------------


async def test_an_idle_socket_gets_pings_and_health_checks(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    await asyncio.sleep(22)
    assert peer.types == ["connection.ok", "health.check"]
    assert (9, b"") in peer.frames


async def test_one_that_answers_nothing_is_cut_off(gateway: Gateway) -> None:
    before = closed("silent")
    peer = await Peer(gateway).log_in()
    await asyncio.sleep(SILENCE_S - 1)
    assert not peer.transport.aborted
    await asyncio.sleep(25)
    assert peer.transport.aborted
    assert closed("silent") == before + 1


async def test_one_that_answers_stays(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    for _ in range(20):
        await asyncio.sleep(20)
        peer.raw(peer.frame(Opcode.PONG))
    assert not peer.transport.closing


async def test_a_close_that_is_not_answered_ends_in_time(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.connection.end(Close.GOING_AWAY, "bye", "shutdown")
    assert not peer.transport.closing
    await asyncio.sleep(CLOSE_TIMEOUT_S + 2)
    assert peer.transport.aborted


async def test_one_whose_token_has_ended_is_cut_off_in_time_if_it_does_not_answer(
    gateway: Gateway,
) -> None:
    peer = await Peer(gateway).log_in(given=token(exp=gateway.now_ns() // 10**9 + 5))
    while peer.close is None:
        await asyncio.sleep(1)
    await asyncio.sleep(CLOSE_TIMEOUT_S + 2)
    assert peer.transport.aborted


async def test_a_long_reason_fits_the_frame(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.connection.end(Close.GOING_AWAY, "ö" * 200, "shutdown")
    assert peer.close == (Close.GOING_AWAY, "ö" * 60)
    peer.connection.end(Close.INTERNAL_ERROR, "again", "internal")
    assert len([1 for opcode, _ in peer.frames if opcode == 8]) == 1


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "eof", "lost", "aborted"])
async def test_however_it_ends_nothing_is_left(gateway: Gateway, way: str) -> None:
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    assert metrics.WATCHES._value.get() == 1
    match way:
        case "close":
            peer.raw(peer.frame(Opcode.CLOSE, b"\x03\xe8"))
        case "eof":
            peer.connection.eof_received()
            peer.transport.close()
        case "lost":
            peer.transport.close()
        case "aborted":
            peer.connection.abort("test")
    await turns()
    assert metrics.WATCHES._value.get() == metrics.CONNECTIONS._value.get() == 0
    assert not gateway.sockets._open
    await asyncio.sleep(3)
    assert gateway.broker.asked("unsubscribe") == [CID]
    assert not any(entries for entries in gateway.sockets.wheel._slots.values())


@pytest.mark.parametrize("method", ["subscribe", "positions", "history", "publish"])
async def test_one_lost_in_the_middle_of_a_command_leaves_nothing_behind(
    gateway: Gateway, method: str
) -> None:
    gateway.broker.lose(3)
    peer = await Peer(gateway).log_in()
    gate = gateway.broker.gates[method] = asyncio.Event()
    peer.say(type="call.watch", id=1, call_cid=CID, since={"epoch": "e1", "offset": 1})
    peer.say(type="call.send", id=2, call_cid=CID, custom={})
    await asyncio.sleep(1)
    peer.transport.abort()
    await turns()
    gate.set()
    await asyncio.sleep(5)
    assert gateway.hub._calls == {}
    assert len(gateway.sockets.tasks) == 4, "of the wheel, the quota and those who return"
    assert metrics.WATCHES._value.get() == 0


async def test_what_was_gathered_is_not_written_after_the_close(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    gateway.broker.send()
    peer.raw(BAD_FRAMES["not masked"][0])
    await turns()
    assert peer.frames[-1][0] == 8


async def test_every_change_of_what_is_written_to_directly_is_counted(gateway: Gateway) -> None:
    """Else a batch could overtake what is unsent, or reach another socket under an old number."""
    peer = await Peer(gateway).log_in()
    changes, connection = gateway.hub.changes, peer.connection
    near, far = socket.socketpair()
    peer.transport._extra["socket"] = near
    connection.connection_made(peer.transport)
    direct = connection.direct
    assert direct is not None
    assert direct.fileno() == near.fileno()
    for change, expected in (
        (connection.pause_writing, None),
        (connection.resume_writing, direct),
        (lambda: connection.abort("test"), None),
        (connection.resume_writing, None),
    ):
        before = changes.count
        change()
        assert connection.direct is expected
        assert changes.count > before
    assert direct.fileno() == -1
    near.send(b"the descriptor is the transport's to close")
    near.close()
    far.close()
    await turns()
    other = await Peer(gateway).log_in()
    before = changes.count
    other.connection.end(Close.GOING_AWAY, "bye", "shutdown")
    assert (other.connection.direct, changes.count > before) == (None, True)


async def test_a_reply_goes_past_the_transport_and_what_does_not_fit_through_it(
    gateway: Gateway,
) -> None:
    peer = await Peer(gateway).log_in()
    near, far = socket.socketpair()
    near.setblocking(False)
    peer.transport._extra["socket"] = near
    connection = peer.connection
    connection.connection_made(peer.transport)
    before = len(peer.transport.sent)
    connection.reply(b"1")
    assert (far.recv(100), len(peer.transport.sent) - before) == (b"\x81\x011", 0)
    connection.write(b"x" * 10_000_000)
    assert 0 < len(peer.transport.sent) - before < 10_000_000
    far.close()
    before = len(peer.transport.sent)
    connection.reply(b"2")
    assert bytes(peer.transport.sent[before:]) == b"\x81\x012", "the transport finds the error"
    connection.abort("test")
    near.close()
    await turns()
