"""The upgrade and the login of one socket, and what is refused on the way."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from websockets.frames import Opcode

from relay import metrics
from relay.broker import Unavailable
from relay.broker.memory import MemoryOutbox, MemoryStore
from relay.errors import Close
from relay.users import Profile, User
from tests.bad_input import SIX_KEYS
from tests.gateway.conftest import Gateway, MakeGateway, closed, refused, token
from tests.gateway.fakes import turns
from tests.gateway.peer import CONNECT, HANDSHAKE, Peer

pytestmark = pytest.mark.anyio


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
    assert peer.close == (Close.SERVICE_RESTART, "this process makes room for another: reconnect")
    peer.raw(peer.frame(Opcode.CLOSE, b"\x03\xe9"))
    await draining
    assert peer.transport.closing
    assert not peer.transport.aborted


async def test_a_drain_does_not_wait_for_one_who_does_not_answer(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    peer = await Peer(gateway).log_in()
    before = closed("drained"), closed("drain_timeout")
    await gateway.sockets.drain(1.0)
    assert peer.transport.aborted
    assert (closed("drained"), closed("drain_timeout")) == (before[0] + 1, before[1])


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


async def test_a_revoked_token_opens_no_socket_and_says_to_get_a_new_one(gateway: Gateway) -> None:
    revoked = gateway.now_ns() - 5 * 10**9
    await gateway.store.save_user("john", Profile(revoked_before=revoked), gateway.now_ns())
    old = await Peer(gateway).log_in(given=token(iat=revoked // 10**9 - 1))
    assert old.texts[0]["error"]["code"] == 40
    assert "revoked" in old.texts[0]["error"]["message"]
    new = await Peer(gateway).log_in(given=token(iat=revoked // 10**9 + 1))
    assert new.types == ["connection.ok"]


@pytest.mark.parametrize("whose", ["john", None])
async def test_a_token_that_is_revoked_during_its_login_opens_no_socket(
    make_gateway: MakeGateway, whose: str | None
) -> None:
    """Its user is read by then, and the socket is none of those that are closed."""
    gateway = make_gateway(limits={"user_connections": 1})
    gate = gateway.broker.gates["set_connections"] = asyncio.Event()
    issued = gateway.now_ns() // 10**9
    peer = await Peer(gateway).log_in(given=token(iat=issued))
    assert peer.types == []
    gateway.sockets.revoke_here("jane", issued + 5)
    gateway.sockets.revoke_here(whose, issued + 1)
    gate.set()
    await turns(20)
    assert peer.texts[0]["error"]["code"] == 40
    assert gateway.sockets.count_here("john") == 0


async def test_a_token_revoked_before_it_was_issued_logs_in(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"user_connections": 1})
    gate = gateway.broker.gates["set_connections"] = asyncio.Event()
    issued = gateway.now_ns() // 10**9
    peer = await Peer(gateway).log_in(given=token(iat=issued))
    gateway.sockets.revoke_here("john", issued)
    gate.set()
    await turns(20)
    assert peer.types == ["connection.ok"]


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
    store = BrokenStore(MemoryOutbox(time.time_ns))
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
    store = BrokenStore(MemoryOutbox(time.time_ns))
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
