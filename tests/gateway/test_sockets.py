"""All sockets of a process: attaching over HTTP, and what an idle one costs."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from relay import metrics
from relay.errors import UnknownConnection
from tests.gateway.conftest import Gateway, MakeGateway
from tests.gateway.fakes import CID, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio


# -- attaching over HTTP --------------------------------------------------------------------------


async def test_a_watch_can_be_attached_by_the_id(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    connection_id = peer.texts[0]["connection_id"]
    await gateway.sockets.attach(connection_id, "john", [CID])
    await gateway.sockets.attach(connection_id, "john", [CID])
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
        await gateway.sockets.attach(connection_id, "john", [CID])


async def test_a_socket_that_closes_while_it_is_attached_is_told_as_gone(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    gate = gateway.broker.gates["subscribe"] = asyncio.Event()
    attaching = asyncio.create_task(
        gateway.sockets.attach(peer.texts[0]["connection_id"], "john", [CID])
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
