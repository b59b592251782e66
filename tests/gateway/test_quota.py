"""How many sockets a user may hold: counted over all processes, and without ghosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.gateway.conftest import Gateway, MakeGateway, refused
from tests.gateway.fakes import turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio

Two = tuple[Gateway, Gateway]


@pytest.fixture
async def two(make_gateway: MakeGateway) -> AsyncIterator[Two]:
    """Two processes where a user may hold three sockets."""
    limits = {"user_connections": 3}
    here, there = make_gateway(limits, node="here"), make_gateway(limits, node="there")
    here.broker.joins(there.broker)
    for gateway in (here, there):
        await gateway.sockets.start()
    yield here, there


async def opened(gateway: Gateway, user_id: str = "john") -> Peer:
    peer = Peer(gateway)
    await peer.log_in(user_id)
    await turns(20)
    return peer


def is_welcome(peer: Peer) -> bool:
    return peer.types[0] == "connection.ok"


async def test_sockets_count_on_all_processes(two: Two) -> None:
    here, there = two
    before = refused("too_many_sockets")
    peers = [await opened(here), await opened(there), await opened(here)]
    assert all(map(is_welcome, peers))
    for gateway in two:
        late = await opened(gateway)
        [error] = late.texts
        assert (error["type"], error["error"]["code"]) == ("connection.error", 9)
        assert "3 open sockets" in error["error"]["message"]
    assert refused("too_many_sockets") - before == 2
    assert is_welcome(await opened(there, "jane"))


async def test_a_socket_that_closes_makes_room_on_the_others(two: Two) -> None:
    here, there = two
    first, _, _ = [await opened(here), await opened(here), await opened(there)]
    first.transport.abort()
    await turns(20)
    assert (here.broker.counts, there.broker.counts) == ({"john": 1}, {"john": 1})
    assert is_welcome(await opened(there))
    assert not is_welcome(await opened(there))


async def test_a_refused_login_does_not_count(two: Two) -> None:
    here, there = two
    for _ in range(3):
        await opened(here)
    for _ in range(3):
        assert not is_welcome(await opened(there))
    assert there.broker.counts == {"john": 0}
    assert there.sockets._quota._arriving == {}


async def test_only_numbers_that_would_refuse_are_asked_for(two: Two) -> None:
    here, there = two
    for _ in range(3):
        await opened(here)
    assert here.broker.asked("ask") == there.broker.asked("ask") == []
    await opened(there)
    assert len(there.broker.asked("ask")) == 1


async def test_a_number_that_is_out_of_date_refuses_nobody(two: Two) -> None:
    here, there = two
    here.broker.counts["john"] = 3  # it has closed them and could not say so yet
    assert is_welcome(await opened(there))


async def test_a_process_that_does_not_answer_does_not_count(two: Two) -> None:
    here, there = two
    for _ in range(3):
        await opened(here)
    here.broker.receiver = None
    assert is_welcome(await opened(there))


async def test_two_that_come_at_once_do_not_both_take_the_last_place(two: Two) -> None:
    here, _ = two
    await opened(here)
    await opened(here)
    gate = here.broker.gates["set_connections"] = asyncio.Event()
    late = [await opened(here), await opened(here)]
    gate.set()
    await turns(20)
    assert sorted(map(is_welcome, late)) == [False, True]


async def test_one_that_goes_while_it_is_counted_gives_its_place_back(two: Two) -> None:
    here, _ = two
    gate = here.broker.gates["set_connections"] = asyncio.Event()
    peer = await opened(here)
    peer.transport.abort()
    await turns()
    del here.broker.gates["set_connections"]
    gate.set()
    await turns(20)
    assert here.broker.counts == {"john": 0}
    assert here.sockets._quota._arriving == {}


async def test_while_redis_is_away_the_login_is_to_be_tried_again(two: Two) -> None:
    here, _ = two
    here.broker.away["set_connections"] = 1
    peer = await opened(here)
    assert peer.close is not None
    assert peer.close[0] == 1013


@pytest.mark.parametrize("trouble", ["away", "bugs"])
async def test_what_closed_while_redis_was_away_is_told_later(two: Two, trouble: str) -> None:
    here, _ = two
    peers = [await opened(here) for _ in range(2)]
    getattr(here.broker, trouble)["set_connections"] = 3
    for peer in peers:
        peer.transport.abort()
    await turns()
    assert here.broker.counts == {"john": 2}
    await asyncio.sleep(10)
    assert here.broker.counts == {"john": 0}


async def test_without_a_limit_nothing_is_counted(make_gateway: MakeGateway) -> None:
    gateway = make_gateway({"user_connections": 0})
    peers = [await opened(gateway) for _ in range(5)]
    assert all(map(is_welcome, peers))
    peers[0].transport.abort()
    await turns()
    assert gateway.broker.asked("set_connections") == []
