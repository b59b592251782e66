"""Sockets on other processes: two gateways whose brokers know each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay import metrics, wire
from relay.broker.seats import Seat
from relay.errors import BadInput, NotAllowed, NotFound, Unavailable, UnknownConnection
from tests.gateway.conftest import NOW_NS, Gateway, MakeGateway, closed, token
from tests.gateway.fakes import CID, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio

OTHER = "default:other"
NOW_S = NOW_NS // 10**9

Two = tuple[Gateway, Gateway]


async def started(make: MakeGateway, **more: object) -> Two:
    here, there = make(node="here", **more), make(node="there", **more)
    here.broker.joins(there.broker)
    for gateway in (here, there):
        await gateway.sockets.start()
        await gateway.hub.start()
    return here, there


@pytest.fixture
async def two(make_gateway: MakeGateway) -> AsyncIterator[Two]:
    yield await started(make_gateway)


def connection_id(peer: Peer) -> str:
    return peer.texts[0]["connection_id"]


# -- attaching ------------------------------------------------------------------------------------


async def test_a_socket_of_another_process_watches_once_its_owner_confirmed(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    gate = there.broker.gates["subscribe"] = asyncio.Event()
    attaching = asyncio.create_task(here.sockets.attach(connection_id(peer), "john", [CID, OTHER]))
    await turns()
    assert not attaching.done()
    gate.set()
    await attaching
    there.broker.send(cid=CID)
    there.broker.send(cid=OTHER)
    await turns()
    assert peer.types.count("custom") == 2
    assert here.hub._calls == {}


async def test_many_calls_are_one_question_and_a_bounded_number_is_joined_at_once(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    cids = [f"default:{n}" for n in range(300)]
    gate = there.broker.gates["subscribe"] = asyncio.Event()
    attaching = asyncio.create_task(
        here.sockets.attach(connection_id(peer), "john", [*cids, *cids])
    )
    await turns()
    assert len(there.broker.asked("subscribe")) == 64
    gate.set()
    await attaching
    assert len(here.broker.asked("ask")) == 1
    assert sorted(there.broker.asked("subscribe")) == sorted(cids)
    assert metrics.WATCHES._value.get() == 300


async def test_an_owner_that_is_gone_is_not_asked(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    here.broker.alive = frozenset({"here"})
    with pytest.raises(UnknownConnection, match="reconnect"):
        await here.sockets.attach(connection_id(peer), "john", [CID])
    assert here.broker.asked("ask") == []


async def test_an_owner_that_does_not_answer_is_ours_to_apologise_for(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    here.broker.away["ask"] = 1
    with pytest.raises(Unavailable):
        await here.sockets.attach(connection_id(peer), "john", [CID])
    await here.sockets.attach(connection_id(peer), "john", [CID])


async def test_a_socket_that_closed_on_its_process_is_unknown_everywhere(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    peer.transport.abort()
    await turns()
    with pytest.raises(UnknownConnection):
        await here.sockets.attach(connection_id(peer), "john", [])


async def test_another_users_socket_is_not_even_asked_for(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    with pytest.raises(UnknownConnection):
        await here.sockets.attach(connection_id(peer), "jane", [CID])
    assert here.broker.asked("ask") == []


async def test_the_owners_refusal_is_told_as_it_is(make_gateway: MakeGateway) -> None:
    here, there = await started(make_gateway, limits={"watch_limit": 2}, strict_calls=True)
    peer = await Peer(there).log_in()
    with pytest.raises(BadInput, match="at most 2 calls") as too_many:
        await here.sockets.attach(connection_id(peer), "john", ["a:1", "a:2", "a:3"])
    assert too_many.value.reason == "too_many_watches"
    with pytest.raises(NotFound, match="a:1 was never created"):
        await here.sockets.attach(connection_id(peer), "john", ["a:1"])


async def test_an_owner_whose_broker_is_away_is_unavailable(two: Two) -> None:
    here, there = two
    peer = await Peer(there).log_in()
    there.broker.away["subscribe"] = 1
    with pytest.raises(Unavailable):
        await here.sockets.attach(connection_id(peer), "john", [CID])


@pytest.mark.parametrize("text", [b"", b"[]", b'{"type":"attach"}', b'{"type":"fly"}', b"\xff"])
async def test_what_is_not_understood_is_answered_as_unavailable(two: Two, text: bytes) -> None:
    here, there = two
    assert there.broker.receiver is not None
    answer = wire.decode(await there.broker.receiver.on_question(text))
    assert answer["error"] == "Unavailable"
    there.broker.receiver.on_notice(text)
    here.broker.others["there"].receiver = Babbler(text)
    peer = await Peer(there).log_in()
    with pytest.raises(Unavailable):
        await here.sockets.attach(connection_id(peer), "john", [CID])


class Babbler:
    """A receiver of another version: its answers are not understood."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer if answer != b'{"type":"attach"}' else b'{"error":7}'

    def on_told(self, *_: object) -> None: ...

    def on_notice(self, *_: object) -> None: ...

    async def on_question(self, _: bytes) -> bytes:
        return self._answer if self._answer != b'{"type":"fly"}' else b'{"error":"Odd"}'


# -- telling users --------------------------------------------------------------------------------


async def test_users_are_told_on_every_process_unless_they_watch(two: Two) -> None:
    here, there = two
    john, jane = await Peer(here).log_in(), await Peer(there).log_in("jane")
    watching, stranger = await Peer(there).log_in("jane"), await Peer(here).log_in("joe")
    await watching.watch(CID)
    await here.broker.tell(["john", "jane", "nobody"], CID, b'{"type":"call.created"}')
    await turns()
    peers = (john, jane, watching, stranger)
    assert [peer.types.count("call.created") for peer in peers] == [1, 1, 0, 0]
    await there.broker.tell(["jane"], None, b'{"type":"user.updated"}')
    await turns()
    assert [peer.types.count("user.updated") for peer in peers] == [0, 1, 1, 0]


async def test_a_slow_socket_goes_without_what_is_told(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"soft_buffer_bytes": 10, "hard_buffer_bytes": 10_000})
    await gateway.sockets.start()
    peer = await Peer(gateway).log_in()
    peer.transport.stuck = True
    for _ in range(3):
        await gateway.broker.tell(["john"], None, b'{"type":"user.updated"}')
    peer.transport.drain()
    assert peer.types.count("user.updated") == 1


# -- expelling and revoking -----------------------------------------------------------------------


async def test_who_is_expelled_hears_why_and_then_nothing_more(two: Two) -> None:
    here, there = two
    john, jane = await Peer(here).log_in(), await Peer(here).log_in("jane")
    tab = await Peer(there).log_in()
    for peer in (john, jane, tab):
        await peer.watch(CID)
        await peer.watch(OTHER)
    here.broker.send()
    there.broker.send()
    await there.sockets.expel("john", CID)
    here.broker.send()
    there.broker.send()
    here.broker.send(cid=OTHER)
    await turns()
    assert [peer.types.count("custom") for peer in (john, jane, tab)] == [2, 3, 1]
    assert metrics.WATCHES._value.get() == 4


@pytest.mark.parametrize("user_id", ["john", None])
async def test_who_is_expelled_while_a_watch_begins_does_not_get_it(
    two: Two, user_id: str | None
) -> None:
    here, there = two
    peer, jane = await Peer(there).log_in(), await Peer(there).log_in("jane")
    gate = there.broker.gates["subscribe"] = asyncio.Event()
    attaching = asyncio.create_task(here.sockets.attach(connection_id(peer), "john", [CID]))
    peer.say(type="call.watch", id=1, call_cid=CID)
    jane.say(type="call.watch", id=1, call_cid=OTHER)
    await turns()
    await here.sockets.expel(user_id, CID)
    gate.set()
    with pytest.raises(NotAllowed) as refused:
        await attaching
    assert refused.value.reason == "expelled"
    await turns()
    assert [text["error"]["code"] for text in peer.texts if text["type"] == "error"] == [17]
    assert "call.watching" in jane.types
    there.broker.send()
    await turns()
    assert "custom" not in peer.types
    assert there.sockets._beginning == set()


async def test_a_call_that_is_over_expels_everybody(two: Two) -> None:
    here, there = two
    peers = [await Peer(here).log_in(), await Peer(there).log_in("jane")]
    for peer in peers:
        await peer.watch(CID)
    await here.sockets.expel(None, CID)
    assert metrics.WATCHES._value.get() == 0
    assert all(peer.close is None for peer in peers)


async def test_sockets_with_an_older_token_are_closed_on_every_process(two: Two) -> None:
    here, there = two
    before, revoked = NOW_S - 5, closed("token_revoked")
    old = await Peer(here).log_in(given=token(iat=before - 1))
    undated = await Peer(there).log_in(given=token())
    new = await Peer(there).log_in(given=token(iat=before))
    jane = await Peer(there).log_in("jane", given=token("jane", iat=before - 1))
    await there.sockets.revoke("john", before)
    await turns()
    codes = [peer.close and peer.close[0] for peer in (old, undated, new, jane)]
    assert codes == [4001, 4001, None, None]
    await here.sockets.revoke(None, before)
    await turns()
    assert jane.close is not None
    assert new.close is None
    assert closed("token_revoked") - revoked == 3


async def test_a_refreshed_token_counts_by_its_own_date(two: Two) -> None:
    here, _ = two
    peer = await Peer(here).log_in(given=token(iat=NOW_S - 100))
    peer.say(type="token.refresh", id=1, token=token(iat=NOW_S))
    await turns()
    await here.sockets.revoke("john", NOW_S - 5)
    await turns()
    assert peer.close is None


# -- who occupies a seat --------------------------------------------------------------------------


async def test_a_seat_is_occupied_by_a_socket_that_watches_anywhere(two: Two) -> None:
    here, there = two
    john, jane = await Peer(here).log_in(), await Peer(there).log_in("jane")
    await john.watch(CID)
    await jane.watch(CID)
    seats = [Seat(CID, "john"), Seat(CID, "jane"), Seat(OTHER, "john"), Seat(CID, "joe")]
    assert await here.sockets.occupied(seats) == set(seats[:2])
    assert await there.sockets.occupied(seats) == set(seats[:2])


async def test_whether_a_seat_is_occupied_is_unknown_while_a_process_is_silent(two: Two) -> None:
    here, there = two
    there.broker.receiver = None
    with pytest.raises(Unavailable):
        await here.sockets.occupied([Seat(CID, "john")])
    here.broker.alive = frozenset({"here"})
    assert await here.sockets.occupied([Seat(CID, "john")]) == set()


async def test_the_process_of_the_last_socket_says_when_it_goes(two: Two) -> None:
    here, there = two
    vacated: list[Seat] = []
    there.sockets.follow(vacated.append)
    seat = Seat(CID, "john")
    one, two_ = await Peer(there).log_in(), await Peer(there).log_in()
    await one.watch(CID)
    await two_.watch(CID)
    one.say(type="call.unwatch", id=1, call_cid=CID)
    await turns()
    assert vacated == []  # nobody had asked yet, and one still watches
    await here.sockets.occupied([seat])
    two_.transport.abort()
    await turns()
    assert vacated == [seat]
    assert there.sockets._occupied == set()


async def test_two_watches_at_once_do_not_pass_the_limit(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"watch_limit": 1})
    peer = await Peer(gateway).log_in()
    attach = gateway.sockets.attach
    outcomes = await asyncio.gather(
        attach(connection_id(peer), "john", [CID]),
        attach(connection_id(peer), "john", [OTHER]),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["BadInput", "NoneType"]
    assert metrics.WATCHES._value.get() == 1
    gateway.broker.send(cid=CID)
    gateway.broker.send(cid=OTHER)
    await turns()
    assert peer.types.count("custom") == 1
