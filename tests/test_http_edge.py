"""HTTP connections that are slow, endless or too many: each ends in time, told why in six keys."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from prometheus_client import REGISTRY
from uvicorn.server import ServerState

from relay import wire
from relay.http_edge import HEAD_MAX_BYTES, Bounds, HttpProtocol
from relay.pace import Pace
from tests.bad_input import SIX_KEYS
from tests.garbage import no_garbage
from tests.gateway.fakes import FAKE_TIME, FakeTransport, turns
from tests.test_pace import Clock

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nhost: relay\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: relay\r\ncontent-length: 1000\r\n\r\n"
UPGRADE = (
    b"GET /video/connect HTTP/1.1\r\nhost: relay\r\nupgrade: websocket\r\n"
    b"connection: upgrade\r\n\r\n"
)


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return FAKE_TIME


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads no bodies."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


class Transport(FakeTransport):
    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol


class Socket(asyncio.Protocol):
    """What an upgraded connection is handed to."""

    def __init__(self, **_: Any) -> None:
        self.heard = b""

    def data_received(self, data: bytes) -> None:
        self.heard += data


class Doors:
    """A server's state, and connections that come to it."""

    def __init__(self, bounds: Bounds, pace: Pace | None = None) -> None:
        self._config = uvicorn.Config(hello, lifespan="off", log_config=None, ws=Socket)  # type: ignore[arg-type]
        self._config.load()
        self._state = ServerState()
        self._bounds = bounds
        self._pace = Pace(clock=lambda: 0.0) if pace is None else pace

    def connect(self) -> Transport:
        protocol = HttpProtocol(
            config=self._config,
            server_state=self._state,
            app_state={},
            bounds=self._bounds,
            pace=self._pace,
        )
        transport = Transport({"peername": ("192.0.2.1", 4711)})
        transport.protocol = protocol
        protocol.connection_made(transport)
        return transport

    def say(self, transport: Transport, data: bytes) -> None:
        if not transport.closing:
            protocol = transport.get_protocol()
            assert isinstance(protocol, asyncio.Protocol)
            protocol.data_received(data)


@pytest.fixture
def doors() -> Doors:
    return Doors(Bounds(connections=3, head_s=10.0))


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("relay_refused_total", {"door": "http", "reason": reason}) or 0


def status(transport: Transport) -> int:
    return int(bytes(transport.sent).split()[1])


def check_refusal(transport: Transport, code: int) -> None:
    head, _, body = bytes(transport.sent).partition(b"\r\n\r\n")
    assert status(transport) == code
    assert f"content-length: {len(body)}".encode() in head
    assert set(wire.decode(body)) == SIX_KEYS
    assert transport.closing


async def test_what_is_not_http_is_answered_in_six_keys(doors: Doors) -> None:
    transport = doors.connect()
    doors.say(transport, b"\x16\x03\x01\x02\x00\x01 this is TLS")
    check_refusal(transport, 400)


async def test_one_byte_a_second_is_no_request(doors: Doors) -> None:
    """Slow-loris: each byte keeps nothing alive; only a whole head counts."""
    before = refused("too_slow")
    transport = doors.connect()
    for second in range(9):
        doors.say(transport, REQUEST[second : second + 1])
        await asyncio.sleep(1)
    assert not transport.closing
    await asyncio.sleep(2)
    check_refusal(transport, 408)
    assert refused("too_slow") == before + 1


async def test_one_that_never_says_a_word_is_closed_without_one(doors: Doors) -> None:
    before = refused("idle")
    transport = doors.connect()
    await asyncio.sleep(11)
    assert transport.closing
    assert transport.sent == b""
    assert refused("idle") == before + 1


async def test_a_request_in_time_is_served_and_the_next_one_has_its_own_time(doors: Doors) -> None:
    transport = doors.connect()
    for _ in range(3):
        doors.say(transport, REQUEST[:5])
        await asyncio.sleep(9)
        doors.say(transport, REQUEST[5:])
        await turns()
        assert status(transport) == 200
        transport.sent.clear()
        await asyncio.sleep(4)
    assert not transport.closing
    doors.say(transport, REQUEST[:5])
    await asyncio.sleep(11)
    check_refusal(transport, 408)


async def test_heads_that_follow_one_another_are_measured_one_by_one(doors: Doors) -> None:
    transport = doors.connect()
    for _ in range(100):
        doors.say(transport, b"GET / HTTP/1.1\r\nx-padding: " + b"x" * 1000)
        doors.say(transport, b"\r\nhost: relay\r\n\r\n")
        await turns()
        assert status(transport) == 200
        transport.sent.clear()


async def test_a_keep_alive_connection_may_rest_longer_than_a_head_may_take() -> None:
    config_keep_alive = 5.0  # uvicorn's default, in the tests
    doors = Doors(Bounds(head_s=1.0))
    transport = doors.connect()
    doors.say(transport, REQUEST)
    await asyncio.sleep(config_keep_alive - 1)
    assert not transport.closing
    await asyncio.sleep(2)
    assert transport.closing


async def test_a_head_without_an_end_is_too_large(doors: Doors) -> None:
    before = refused("head_too_large")
    transport = doors.connect()
    doors.say(transport, b"GET / HTTP/1.1\r\n")
    for number in range(HEAD_MAX_BYTES // 1000 + 2):
        doors.say(transport, b"x-%04d: %b\r\n" % (number, b"x" * 1000))
    check_refusal(transport, 413)
    assert refused("head_too_large") == before + 1


async def test_a_body_that_trickles_in_after_its_answer_has_a_deadline(doors: Doors) -> None:
    transport = doors.connect()
    doors.say(transport, b"POST / HTTP/1.1\r\nhost: relay\r\ncontent-length: 1000000\r\n\r\n")
    await turns()
    assert status(transport) == 200
    for _ in range(12):
        doors.say(transport, b"x")
        await asyncio.sleep(1)
    assert transport.closing


async def test_one_connection_too_many_is_told_to_come_back(doors: Doors) -> None:
    before = refused("too_many_connections")
    crowd = [doors.connect() for _ in range(3)]
    transport = doors.connect()
    check_refusal(transport, 503)
    assert b"retry-after: 5\r\n" in transport.sent
    assert refused("too_many_connections") == before + 1
    await turns()
    crowd[0].close()
    await turns()
    welcome = doors.connect()
    doors.say(welcome, REQUEST)
    await turns()
    assert status(welcome) == 200


async def test_an_upgraded_connection_is_no_longer_watched(doors: Doors) -> None:
    transport = doors.connect()
    doors.say(transport, UPGRADE)
    assert isinstance(transport.get_protocol(), Socket)
    await asyncio.sleep(60)
    assert not transport.closing
    for _ in range(3):
        assert not doors.connect().closing, "it counts no more"


# -- turns -----------------------------------------------------------------------------------------


@pytest.fixture
def crowded() -> Doors:
    """A request fills a turn of the loop."""
    return Doors(Bounds(head_s=10.0), Pace(Clock(1.0)))


async def test_requests_that_come_at_once_wait_for_their_turn_unread(crowded: Doors) -> None:
    first, second, third = (crowded.connect() for _ in range(3))
    for transport in (first, second, third):
        crowded.say(transport, REQUEST)
    assert [t.is_reading() for t in (first, second, third)] == [True, False, False]
    await turns(1)
    assert [t.is_reading() for t in (first, second, third)] == [True, True, False]
    await turns()
    assert [status(t) for t in (first, second, third)] == [200, 200, 200]
    assert third.is_reading()


async def test_what_comes_meanwhile_is_behind_what_waits(crowded: Doors) -> None:
    transport = crowded.connect()
    crowded.say(crowded.connect(), REQUEST)
    for start in range(0, len(REQUEST), 7):
        crowded.say(transport, REQUEST[start : start + 7])
    assert not transport.sent
    await turns()
    assert status(transport) == 200


async def test_each_request_of_a_connection_waits_for_a_turn_but_no_body_does(
    crowded: Doors,
) -> None:
    transport = crowded.connect()
    for _ in range(2):
        crowded.say(crowded.connect(), REQUEST)
        crowded.say(transport, POST)
        assert not transport.is_reading()
        await turns()
        assert status(transport) == 200
        crowded.say(crowded.connect(), REQUEST)
        crowded.say(transport, bytes(1000))
        assert transport.is_reading()
        await turns()
        transport.sent.clear()


async def test_an_end_does_not_swallow_what_waits(crowded: Doors) -> None:
    """Over TLS it is told although reading is paused."""
    transport = crowded.connect()
    crowded.say(crowded.connect(), REQUEST)
    crowded.say(transport, REQUEST)
    protocol = transport.get_protocol()
    assert isinstance(protocol, asyncio.Protocol)
    protocol.eof_received()
    await turns()
    assert status(transport) == 200


async def test_who_left_while_it_waited_is_forgotten(crowded: Doors) -> None:
    transport = crowded.connect()
    crowded.say(crowded.connect(), REQUEST)
    crowded.say(transport, REQUEST)
    transport.close()
    await turns()
    assert not transport.sent


async def test_a_connection_that_is_handed_over_leaves_nothing_to_a_collection() -> None:
    doors = Doors(Bounds(head_s=10.0))
    doors.say(doors.connect(), UPGRADE)  # what is made once is made
    with no_garbage():
        doors.say(doors.connect(), UPGRADE)
