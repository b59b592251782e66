"""Peers that do not read: bounded memory, neighbours served, cut off in time."""

from __future__ import annotations

import asyncio

import pytest
from websockets.frames import Opcode

from relay import metrics
from relay.errors import Close
from relay.gateway.bounds import NOISE_LIMIT
from tests.gateway.conftest import MakeGateway, closed
from tests.gateway.fakes import CID, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio


SOFT, HARD = 10_000, 50_000
SMALL = {"soft_buffer_bytes": SOFT, "hard_buffer_bytes": HARD, "slow_timeout_s": 30.0}


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


async def test_a_login_of_one_byte_a_second_is_closed_at_its_deadline(
    make_gateway: MakeGateway,
) -> None:
    """Bytes keep nothing alive: only a whole first frame counts."""
    gateway = make_gateway()
    await gateway.sockets.start()
    before = closed("no_authentication")
    peer = Peer(gateway).connect()
    frame = peer.frame(Opcode.TEXT, b"x" * 100)
    for byte in frame[:12]:
        peer.raw(bytes([byte]))
        await asyncio.sleep(1)
    assert peer.close == (Close.NO_AUTHENTICATION, "no token within 10 s")
    assert closed("no_authentication") == before + 1


async def test_a_message_of_one_byte_a_second_costs_its_sender_alone(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway()
    await gateway.sockets.start()
    slow, other = await Peer(gateway).log_in("slow"), await Peer(gateway).log_in()
    await other.watch(CID)
    await slow.watch(CID)
    for byte in slow.frame(Opcode.TEXT, b'{"type":"health.check","id":1}' + b" " * 60):
        slow.raw(bytes([byte]))
        gateway.broker.send()
        await asyncio.sleep(1)
        other.raw(other.frame(Opcode.PONG))
    assert slow.types.count("custom") == other.types.count("custom") == 96
    assert slow.close is other.close is None
