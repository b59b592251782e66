"""One socket over a fake transport: handshake, frames, slowness, time, and the end."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode

from relay import metrics
from relay.broker import Unavailable
from relay.broker.memory import MemoryStore
from relay.errors import Close, UnknownConnection
from relay.gateway.connection import CLOSE_TIMEOUT_S, NOISE_LIMIT, SILENCE_S, SLICE_BYTES
from relay.users import Profile, User
from tests.bad_input import SIX_KEYS
from tests.gateway.conftest import Gateway, MakeGateway, closed, gateways, refused, token
from tests.gateway.fakes import CID, FAKE_TIME, FakeTimeLoop, turns
from tests.gateway.peer import CONNECT, HANDSHAKE, Peer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return FAKE_TIME


SOFT, HARD = 10_000, 50_000
SMALL = {"soft_buffer_bytes": SOFT, "hard_buffer_bytes": HARD, "slow_timeout_s": 30.0}


# -- the handshake --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CONNECT, "/api/v2/connect?api_key=key", "/video/connect"])
async def test_both_paths_are_upgraded(gateway: Gateway, path: str) -> None:
    peer = Peer(gateway).connect(path)
    status, headers, _ = peer.response
    assert status == 101
    assert headers["sec-websocket-accept"] == "icx+yqv66kxgm0fcwalwlflwtai="


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        ("/video/connected", (), 404, "not_found"),
        ("/", (), 404, "not_found"),
        ("//[", (), 404, "not_found"),
        ("/\xff\xfe", (), 400, "handshake"),
        (CONNECT, ("Origin: https://evil.example",), 403, "origin"),
        (CONNECT, ("Origin: https://good.example", "Origin: https://evil.example"), 403, "origin"),
        (CONNECT + "&a=1" * 21, (), 400, "bad_input"),
        (CONNECT, ("Sec-WebSocket-Key: another",), 400, "handshake"),
        (CONNECT, ("Content-Length: nonsense",), 400, "handshake"),
        (CONNECT, ("X: " + "y" * 10_000,), 400, "handshake"),
        (CONNECT, ("\xff\xfe",), 400, "handshake"),
    ],
)  # fmt: skip
async def test_a_refused_handshake_has_the_six_keys(
    make_gateway: MakeGateway, path: str, headers: tuple[str, ...], status: int, reason: str
) -> None:
    gateway = make_gateway(origins=("https://good.example",))
    before = refused(reason)
    peer = Peer(gateway).connect(path, *headers)
    told, told_headers, body = peer.response
    assert told == status
    assert told_headers["content-type"] == "application/json"
    assert set(json.loads(body)) == SIX_KEYS
    assert json.loads(body)["StatusCode"] == status
    assert refused(reason) == before + 1
    assert peer.transport.closing
    await turns()
    assert not gateway.sockets._open


async def test_two_origins_are_no_reason_to_fail_where_any_is_allowed(gateway: Gateway) -> None:
    peer = Peer(gateway).connect(CONNECT, "Origin: https://a.example", "Origin: https://b.example")
    assert peer.response[0] == 400, "it is no handshake, but answered"


@pytest.mark.parametrize(
    ("method", "drop"),
    [("POST", ""), ("GET", "Sec-WebSocket-Version: 13\r\n"), ("GET", "Upgrade: websocket\r\n")],
)
async def test_what_is_no_handshake_is_told_so(gateway: Gateway, method: str, drop: str) -> None:
    peer = Peer(gateway)
    text = HANDSHAKE.format(path=CONNECT, key="AAAAAAAAAAAAAAAAAAAAAA==", more="")
    peer.raw(text.replace("GET", method).replace(drop, "").encode())
    status, _, body = peer.response
    assert status == 400
    assert "not a WebSocket handshake" in json.loads(body)["message"]


async def test_an_allowed_origin_and_none_are_welcome(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(origins=("https://good.example",))
    assert Peer(gateway).connect(CONNECT, "Origin: https://good.example").response[0] == 101
    assert Peer(gateway).connect(CONNECT).response[0] == 101


async def test_a_draining_process_refuses_and_closes_what_is_open(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    draining = asyncio.create_task(gateway.sockets.drain(10.0))
    await turns()
    late = Peer(gateway).connect()
    status, _, body = late.response
    assert (status, json.loads(body)["StatusCode"]) == (503, 503)
    assert peer.close == (Close.GOING_AWAY, "the relay is shutting down: reconnect")
    peer.raw(peer.frame(Opcode.CLOSE, b"\x03\xe9"))
    await draining
    assert peer.transport.closing
    assert not peer.transport.aborted


async def test_a_drain_does_not_wait_for_one_who_does_not_answer(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    peer = await Peer(gateway).log_in()
    before = closed("shutdown"), closed("drain_timeout")
    await gateway.sockets.drain(1.0)
    assert peer.transport.aborted
    assert (closed("shutdown"), closed("drain_timeout")) == (before[0] + 1, before[1])


@pytest.mark.parametrize(
    ("address", "forwarded", "peer_address"),
    [
        ("127.0.0.1", "X-Forwarded-For: 203.0.113.7", "203.0.113.7"),
        ("192.0.2.1", "X-Forwarded-For: 203.0.113.7", "192.0.2.1"),
    ],
)
async def test_the_client_is_who_a_trusted_proxy_says(
    gateway: Gateway, address: str, forwarded: str, peer_address: str
) -> None:
    peer = Peer(gateway, address).connect(CONNECT, forwarded)
    assert peer.connection.peer == peer_address


# -- logging in -----------------------------------------------------------------------------------


async def test_a_login_is_answered_with_the_id_and_the_profile_is_saved(gateway: Gateway) -> None:
    peer = Peer(gateway).connect()
    peer.say(token=token(), user_details={"id": "john", "name": "John"})
    await turns()
    [ok] = peer.texts
    assert ok["type"] == "connection.ok"
    assert ok["connection_id"].startswith("here-")
    assert ok["me"]["name"] == "John"
    saved = await gateway.store.user("john")
    assert saved is not None
    assert saved.name == "John"
    assert metrics.CONNECTIONS._value.get() == 1
    peer.transport.abort()
    await turns()
    assert metrics.CONNECTIONS._value.get() == 0


async def test_a_refused_login_is_told_and_closed(gateway: Gateway) -> None:
    before = closed("token_expired")
    peer = Peer(gateway).connect()
    peer.say(token=token(exp=1), user_details={"id": "john"})
    assert peer.types == ["connection.error"]
    assert peer.close is not None
    assert peer.close[0] == Close.REFUSED
    assert closed("token_expired") == before + 1


async def test_a_user_has_a_limit_of_sockets(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"user_connections": 2})
    first = await Peer(gateway).log_in()
    await Peer(gateway).log_in()
    third = await Peer(gateway).log_in()
    assert third.texts[0]["error"]["code"] == 9
    assert "2 open sockets" in third.texts[0]["error"]["message"]
    assert (await Peer(gateway).log_in("jane")).types == ["connection.ok"]
    first.transport.abort()
    await turns()
    assert (await Peer(gateway).log_in()).types == ["connection.ok"]


class BrokenStore(MemoryStore):
    error: Exception = Unavailable("away")
    gate: asyncio.Event | None = None

    async def save_user(self, user_id: str, profile: Profile, now_ns: int) -> User:
        if self.gate is None:
            raise self.error
        await self.gate.wait()
        return await super().save_user(user_id, profile, now_ns)


async def test_trouble_of_ours_at_the_login_is_told_by_a_close_code_only(
    make_gateway: MakeGateway,
) -> None:
    store = BrokenStore()
    gateway = make_gateway(store=store)
    peer = await Peer(gateway).log_in()
    assert peer.texts == []
    assert peer.close == (Close.TRY_AGAIN_LATER, "away")
    store.error = ValueError("a bug")
    peer = await Peer(gateway).log_in()
    assert peer.close == (Close.INTERNAL_ERROR, "internal error")


async def test_one_who_leaves_during_its_login_leaves_nothing_behind(
    make_gateway: MakeGateway,
) -> None:
    store = BrokenStore()
    store.gate = asyncio.Event()
    gateway = make_gateway(store=store)
    peer = await Peer(gateway).log_in()
    peer.transport.abort()
    store.gate.set()
    await turns()
    assert gateway.sockets._by_id == {}
    assert len(gateway.sockets.tasks) == 0


async def test_a_first_frame_that_does_not_come_closes_the_socket(gateway: Gateway) -> None:
    peer = Peer(gateway).connect()
    await asyncio.sleep(12.5)
    assert peer.close == (Close.NO_AUTHENTICATION, "no token within 10 s")


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


# -- commands -------------------------------------------------------------------------------------


async def test_replies_carry_the_id_and_come_in_order(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={"a": 1})
    peer.say(type="call.send", id=3, call_cid=CID, custom={"a": 1}, volatile=True)
    peer.say(type="token.refresh", id=4, token=token())
    peer.say(type="call.unwatch", id=5, call_cid=CID)
    await turns(30)
    replies = [(text["type"], text["id"]) for text in peer.texts if "id" in text]
    assert replies == [
        ("call.watching", 1), ("call.sent", 2), ("call.sent", 3), ("token.refreshed", 4),
        ("call.unwatched", 5),
    ]  # fmt: skip
    assert [text["type"] for text in peer.texts if text["type"] in ("custom", "volatile")] != []


async def test_the_reply_to_a_watch_comes_before_what_is_watched(gateway: Gateway) -> None:
    gateway.broker.lose(3)
    peer = await Peer(gateway).log_in()
    peer.say(type="call.watch", id=1, call_cid=CID, since={"epoch": "e1", "offset": 1})
    await turns(5)
    gateway.broker.send()
    await asyncio.sleep(1)
    relevant = [t for t in peer.texts if t["type"] in ("call.watching", "custom")]
    assert relevant[0] == {
        "type": "call.watching", "id": 1, "call_cid": CID, "epoch": "e1",
        "offset": relevant[0]["offset"], "recovered": True,
    }  # fmt: skip
    assert [text["offset"] for text in relevant[1:]] == [2, 3, 4]


async def test_a_refused_publish_is_counted_once(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    before = (refused("unavailable"), metrics.ACCEPTED.labels("socket")._value.get())
    gateway.broker.away["publish"] = 1
    peer.say(type="call.send", id=7, call_cid=CID, custom={})
    await turns()
    assert peer.texts[-1]["id"] == 7
    assert peer.texts[-1]["error"]["StatusCode"] == 503
    assert refused("unavailable") == before[0] + 1
    assert metrics.ACCEPTED.labels("socket")._value.get() == before[1] + 1


async def test_a_refused_watch_is_told_and_counted(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    before = refused("unavailable")
    gateway.broker.away["subscribe"] = 1
    peer.say(type="call.watch", id=7, call_cid=CID)
    await turns()
    assert peer.texts[-1]["error"]["code"] == -1
    assert refused("unavailable") == before + 1
    assert (await peer.watch(CID))["offset"] == 0


async def test_a_call_that_was_never_created_is_refused_where_that_is_the_rule(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(strict_calls=True)
    peer = await Peer(gateway).log_in()
    before = refused("not_found")
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={})
    await turns(20)
    assert [text["error"]["code"] for text in peer.texts[1:]] == [16, 16]
    assert refused("not_found") == before + 2


async def test_a_socket_has_a_limit_of_watches(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"watch_limit": 2})
    peer = await Peer(gateway).log_in()
    await peer.watch("default:1")
    await peer.watch("default:2")
    await peer.watch("default:2")
    peer.say(type="call.watch", id=3, call_cid="default:3")
    await turns()
    assert "at most 2 calls" in peer.texts[-1]["error"]["message"]


async def test_a_token_for_fewer_calls_ends_the_watches_of_the_others(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    await peer.watch("default:other")
    peer.say(type="token.refresh", id=4, token=token(call_cids=[CID]))
    await turns()
    assert peer.connection.calls == {CID}
    gateway.broker.send(1, "default:other")
    gateway.broker.send(1, CID)
    await turns()
    assert peer.types.count("custom") == 1


async def test_a_token_that_ends_sooner_is_watched_from_its_refresh_on(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.say(type="token.refresh", id=4, token=token(exp=gateway.now_ns() // 10**9 + 5))
    await asyncio.sleep(8)
    assert peer.close is not None
    assert peer.close[0] == Close.TOKEN_EXPIRED


async def test_a_command_that_fails_for_a_reason_nobody_foresaw_closes_the_socket(
    gateway: Gateway,
) -> None:
    peer = await Peer(gateway).log_in()

    async def broken(_: object) -> Any:
        raise ValueError("a bug")

    gateway.broker.publish = broken  # type: ignore[method-assign, assignment]
    peer.say(type="call.send", id=1, call_cid=CID, custom={})
    await turns()
    assert peer.close == (Close.INTERNAL_ERROR, "internal error")


async def test_too_many_waiting_commands_stop_the_reading(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(rules={"command_rate": 0})
    peer = await Peer(gateway).log_in()
    gateway.broker.gates["publish"] = asyncio.Event()
    send = peer.frame(Opcode.TEXT, json.dumps(
        {"type": "call.send", "call_cid": CID, "custom": {}}).encode())  # fmt: skip
    peer.raw(send * 99)
    assert peer.transport.reading
    peer.raw(send * 2)
    assert not peer.transport.reading
    await asyncio.sleep(SILENCE_S + 30)
    assert not peer.transport.closing, "it was us who did not listen"
    gateway.broker.gates["publish"].set()
    await turns(500)
    assert peer.transport.reading
    assert peer.types.count("call.sent") == 101


async def test_a_flood_is_told_then_closed_and_no_longer_read(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    before = closed("flood")
    unwatch = peer.frame(Opcode.TEXT, json.dumps(
        {"type": "call.unwatch", "call_cid": CID}).encode())  # fmt: skip
    peer.raw(unwatch * 5000)
    assert peer.types.count("error") == 100
    assert peer.close is not None
    assert peer.close[0] == Close.FLOOD
    assert not peer.transport.reading
    assert closed("flood") == before + 1
    await asyncio.sleep(CLOSE_TIMEOUT_S + 2)
    assert peer.transport.aborted


@pytest.mark.parametrize("kind", ["ping", "pong", "fragment"])
async def test_a_flood_of_frames_without_a_message_is_closed(gateway: Gateway, kind: str) -> None:
    peer = await Peer(gateway).log_in()
    if kind == "fragment":
        peer.raw(peer.frame(Opcode.TEXT, b"", fin=False))
        one = peer.frame(Opcode.CONT, b"", fin=False)
    else:
        one = peer.frame(Opcode.PING if kind == "ping" else Opcode.PONG)
    peer.raw(one * 20_000)
    assert peer.close is not None
    assert peer.close[0] == Close.FLOOD
    assert len(peer.frames) < NOISE_LIMIT + SLICE_BYTES // 6 + 10
    assert not peer.transport.reading


async def test_pings_at_a_decent_pace_are_no_flood(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    for _ in range(100):
        peer.raw(peer.frame(Opcode.PING) * (NOISE_LIMIT // 30))
        await asyncio.sleep(1)
    assert peer.close is None


async def test_noise_after_the_close_is_cut_off(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.raw(BAD_FRAMES["binary"][0])
    peer.raw(peer.frame(Opcode.TEXT, b"x") * (NOISE_LIMIT + 10))
    assert peer.transport.aborted


# -- publications and slow peers ------------------------------------------------------------------


async def test_a_slow_peer_goes_without_the_volatile(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits=SMALL)
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    skipped = metrics.SKIPPED._value.get()
    peer.transport.stuck = True
    peer.transport.buffer += bytes(SOFT + 1)
    gateway.broker.volatile(CID)
    gateway.broker.send()
    await turns()
    assert metrics.SKIPPED._value.get() == skipped + 1
    assert b'"offset":1' in peer.transport.buffer
    assert b"volatile" not in peer.transport.buffer


async def test_one_beyond_the_hard_bound_is_cut_off_and_its_neighbours_are_served(
    make_gateway: MakeGateway,
) -> None:
    """The hub must survive that a watcher goes while it writes to all of them."""
    gateway = make_gateway(limits=SMALL)
    before = closed("slow")
    peers = [await Peer(gateway).log_in(f"user{number}") for number in range(5)]
    for peer in peers:
        await peer.watch(CID)
        await peer.watch("default:other")
    for peer in peers[1:4]:
        peer.transport.stuck = True
        peer.transport.buffer += bytes(HARD + 1)
    gateway.broker.send()
    gateway.broker.send(1, "default:other")
    await turns()
    assert [peer.transport.aborted for peer in peers] == [False, True, True, True, False]
    assert [peer.types.count("custom") for peer in (peers[0], peers[4])] == [2, 2]
    assert closed("slow") == before + 3
    assert metrics.WATCHES._value.get() == 4
    gateway.broker.send()
    await turns()
    assert peers[4].types.count("custom") == 3


async def test_one_who_asks_and_does_not_read_the_answers_is_cut_off(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(limits=SMALL, rules={"command_rate": 0})
    peer = await Peer(gateway).log_in()
    peer.transport.stuck = True
    for _ in range(1000):
        peer.text('{"type":"health.check"}')
    assert peer.transport.aborted
    pinging = await Peer(gateway).log_in()
    pinging.transport.stuck = True
    for _ in range(NOISE_LIMIT):
        pinging.raw(pinging.frame(Opcode.PING, bytes(125)))
    assert pinging.transport.aborted


async def test_one_above_the_soft_bound_for_too_long_is_cut_off(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits=SMALL)
    await gateway.sockets.start()
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    peer.transport.stuck = True
    peer.transport.buffer += bytes(SOFT + 1)
    gateway.broker.send()
    await turns()
    await asyncio.sleep(29)
    peer.raw(peer.frame(Opcode.PONG))  # it is there, it only does not read
    assert not peer.transport.aborted
    await asyncio.sleep(4)
    assert peer.transport.aborted


async def test_one_without_a_watch_that_does_not_read_is_cut_off_too(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(limits=SMALL)
    await gateway.sockets.start()
    peer = await Peer(gateway).log_in()
    peer.transport.stuck = True
    peer.transport.buffer += bytes(SOFT + 1)
    for _ in range(6):
        await asyncio.sleep(10)
        peer.raw(peer.frame(Opcode.PONG))
    assert peer.transport.aborted


async def test_one_that_drains_in_time_is_left_alone(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits=SMALL)
    await gateway.sockets.start()
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    for _ in range(5):
        peer.transport.stuck = True
        peer.transport.buffer += b"\x89\x00" * SOFT
        gateway.broker.send()
        await turns()
        await asyncio.sleep(20)
        peer.transport.drain()
        peer.raw(peer.frame(Opcode.PONG))
        await asyncio.sleep(15)
    assert not peer.transport.aborted


async def test_a_long_replay_waits_for_the_peer(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits=SMALL)
    gateway.broker.page_count = 100
    gateway.broker.lose(2000)
    peer = await Peer(gateway).log_in()
    peer.transport.stuck = True
    peer.say(type="call.watch", id=1, call_cid=CID, since={"epoch": "e1", "offset": 0})
    await asyncio.sleep(3)
    unsent = len(peer.transport.buffer)
    assert SOFT < unsent < HARD
    await asyncio.sleep(1)
    assert len(peer.transport.buffer) == unsent
    for _ in range(100):
        peer.transport.drain()
        peer.transport.stuck = True
        await asyncio.sleep(0.3)
    peer.transport.drain()
    assert [t["offset"] for t in peer.texts if t["type"] == "custom"] == list(range(1, 2001))


async def test_a_replay_to_one_who_does_not_read_is_given_up(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits=SMALL)
    await gateway.sockets.start()
    gateway.broker.lose(2000)
    peer = await Peer(gateway).log_in()
    peer.transport.stuck = True
    peer.say(type="call.watch", id=1, call_cid=CID, since={"epoch": "e1", "offset": 0})
    await asyncio.sleep(29)
    peer.raw(peer.frame(Opcode.PONG))
    assert not peer.transport.aborted
    await asyncio.sleep(5)
    assert peer.transport.aborted


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
    assert len(gateway.sockets.tasks) == 1, "the wheel's"
    assert metrics.WATCHES._value.get() == 0


async def test_what_was_gathered_is_not_written_after_the_close(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    gateway.broker.send()
    peer.raw(BAD_FRAMES["not masked"][0])
    await turns()
    assert peer.frames[-1][0] == 8


# -- attaching over HTTP --------------------------------------------------------------------------


async def test_a_watch_can_be_attached_by_the_id(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    connection_id = peer.texts[0]["connection_id"]
    await gateway.sockets.attach(connection_id, "john", CID)
    await gateway.sockets.attach(connection_id, "john", CID)
    gateway.broker.send()
    await turns()
    assert peer.types.count("custom") == 1
    assert metrics.WATCHES._value.get() == 1


async def test_only_the_user_of_an_open_socket_can_attach(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    connection_id = peer.texts[0]["connection_id"]
    for forged, user_id in (
        (connection_id, "jane"), ("", "john"), ("a-b-c", "john"), ("ö", "john"),
        (connection_id[:-1] + "x", "john"),
    ):  # fmt: skip
        with pytest.raises(UnknownConnection):
            await gateway.sockets.attach(forged, user_id, CID)
    peer.transport.abort()
    await turns()
    with pytest.raises(UnknownConnection):
        await gateway.sockets.attach(connection_id, "john", CID)


async def test_a_socket_that_closes_while_it_is_attached_is_told_as_gone(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    gate = gateway.broker.gates["subscribe"] = asyncio.Event()
    attaching = asyncio.create_task(
        gateway.sockets.attach(peer.texts[0]["connection_id"], "john", CID)
    )
    await turns()
    peer.transport.abort()
    await turns()
    gate.set()
    with pytest.raises(UnknownConnection):
        await attaching
    await asyncio.sleep(3)
    assert gateway.hub._calls == {}


# -- memory ---------------------------------------------------------------------------------------


async def test_an_idle_socket_costs_little(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"user_connections": 0})
    await Peer(gateway).log_in()
    transports = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            peer = await Peer(gateway).log_in()
            peer.transport.sent.clear()
            transports.append(peer.transport)
        cost = (tracemalloc.get_traced_memory()[0] - before) / 100
    finally:
        tracemalloc.stop()
    assert cost < 12_288, f"{cost:.0f} bytes"
    for transport in transports:
        transport.abort()
    await turns()
