"""What peers say and how they end: nobody waits for more than a slice of each other one."""

from __future__ import annotations

import asyncio

import pytest
from websockets.frames import Opcode

from relay.errors import Close
from relay.gateway.bounds import SLICE_BYTES
from relay.gateway.connection import Connection
from relay.pace import Pace
from tests.gateway.conftest import MakeGateway, closed, token
from tests.gateway.fakes import CID, turns
from tests.gateway.peer import Peer
from tests.test_pace import Clock

pytestmark = pytest.mark.anyio


async def test_a_flood_is_parsed_in_slices_and_not_read_meanwhile(
    make_gateway: MakeGateway,
) -> None:
    """Each turn answers the pings of one slice; the text after them is not overtaken or lost."""
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peer = await Peer(gateway).log_in()
    ping = peer.frame(Opcode.PING, bytes(122))
    count = 3 * SLICE_BYTES // len(ping)
    text = peer.frame(Opcode.TEXT, b'{"type":"health.check"}')
    peer.raw(ping * count + text)
    answered = len([1 for opcode, _ in peer.frames if opcode == Opcode.PONG])
    assert answered == SLICE_BYTES // len(ping)
    assert not peer.transport.reading
    peer.raw(text)  # what the transport had taken before it was paused
    await turns(1)
    assert len([1 for opcode, _ in peer.frames if opcode == Opcode.PONG]) == 2 * answered
    await turns(10)
    assert len([1 for opcode, _ in peer.frames if opcode == Opcode.PONG]) == count
    assert peer.types == ["connection.ok", "health.check", "health.check"]
    assert peer.transport.reading


async def test_a_command_of_another_does_not_wait_for_a_flood(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    flooding = await Peer(gateway).log_in("flooding")
    other = await Peer(gateway).log_in()
    flooding.raw(flooding.frame(Opcode.PING, bytes(122)) * 200)
    other.say(type="health.check")
    assert other.types == ["connection.ok", "health.check"]
    await turns(30)


async def test_logins_that_come_at_once_are_taken_in_turn(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peers = [Peer(gateway).connect() for _ in range(5)]
    await turns(10)
    before = closed("bad_token")
    for peer in peers:
        peer.say(token="x", user_details={"id": "john"})
    assert closed("bad_token") == before + 1
    await turns(1)
    assert closed("bad_token") == before + 2
    await turns(3)
    assert {peer.close and peer.close[0] for peer in peers} == {Close.REFUSED}


async def test_what_waits_is_dropped_when_the_flood_is_over(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peer = await Peer(gateway).log_in()
    before = closed("flood")
    peer.raw(peer.frame(Opcode.PING) * 100_000)
    await turns(12)
    assert peer.close == (Close.FLOOD, "too many frames: slow down")
    assert closed("flood") == before + 1
    assert len(peer.connection._unread) == 0
    assert not peer.transport.reading
    await turns(5)
    assert len(gateway.sockets.pace) == 0


async def test_a_peer_that_is_cut_off_is_not_parsed_any_more(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peer = await Peer(gateway).log_in()
    send = peer.frame(
        Opcode.TEXT, b'{"type":"call.send","call_cid":"%b","custom":{}}' % CID.encode()
    )
    peer.raw(send * 90)
    published = len(gateway.broker.log)
    peer.connection.abort("slow")
    await turns(10)
    assert len(gateway.broker.log) == published
    assert len(gateway.sockets.pace) == 0


async def test_all_that_a_peer_said_before_it_left_counts(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peer = await Peer(gateway).log_in()
    peer.raw(peer.frame(Opcode.TEXT, b'{"type":"health.check"}') * 90)
    peer.connection.eof_received()
    assert not peer.transport.closing
    await turns(10)
    assert peer.types.count("health.check") == 90
    assert peer.transport.closing


async def test_a_peer_that_is_gone_before_its_end_had_its_turn_is_not_heard(
    make_gateway: MakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peers = [await Peer(gateway).log_in() for _ in range(3)]
    await turns(10)
    for peer in peers:
        peer.connection.eof_received()
    peers[2].connection.abort("slow")
    await turns(10)
    assert len(gateway.sockets.pace) == 0
    assert "failed" not in capsys.readouterr().out


async def test_who_leave_at_once_are_let_go_in_turn(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peers = [Peer(gateway).connect() for _ in range(5)]
    await turns(10)
    for peer in peers:
        assert peer.connection.eof_received(), "else the transport closes itself at once"
    gone = [sum(peer.transport.closing for peer in peers)]
    for _ in range(5):
        await turns(1)
        gone.append(sum(peer.transport.closing for peer in peers))
    assert gone == [1, 2, 3, 4, 5, 5]


async def test_sockets_whose_tokens_are_revoked_are_closed_in_turn(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(pace=Pace(Clock(1.0)))
    peers = [await Peer(gateway).log_in(f"user{n}", token(f"user{n}", iat=1)) for n in range(4)]
    await turns(10)
    gateway.sockets.revoke_here(None, 2.0)
    assert sum(peer.close is not None for peer in peers) == 1
    await turns(5)
    assert {peer.close and peer.close[0] for peer in peers} == {Close.TOKEN_EXPIRED}


async def test_a_peer_whose_machine_does_not_answer_has_vanished(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    peer, other = await Peer(gateway).log_in(), await Peer(gateway).log_in("jane")
    before = closed("vanished"), closed("left")
    peer.transport.closing = other.transport.closing = True
    peer.connection.connection_lost(TimeoutError(110, "Connection timed out"))
    other.connection.connection_lost(ConnectionResetError())
    assert (closed("vanished"), closed("left")) == (before[0] + 1, before[1] + 1)
    await asyncio.sleep(0)


async def test_a_mistake_in_a_later_slice_ends_the_socket_instead_of_leaving_it_deaf(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await Peer(make_gateway(pace=Pace(Clock(1.0)))).log_in()
    await turns(5)
    before = closed("internal")

    def fail(*_: object) -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(Connection, "_text", fail)
    peer.raw(peer.frame(Opcode.PING) * 500 + peer.frame(Opcode.TEXT, b"{}"))
    assert not peer.transport.aborted
    await turns(20)
    assert peer.transport.aborted
    assert closed("internal") == before + 1
