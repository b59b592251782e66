"""Sockets that watch over HTTP, break, and come back without a position."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping

import pytest

from relay.broker.memory_tickets import MemoryTickets
from relay.broker.tickets import Ticket
from relay.errors import Close, Unavailable, UnknownConnection
from relay.events import Position
from relay.gateway.returns import NOTED_AT_ONCE, PROBE_S, WAITING_MOST, _Ended
from tests.gateway.conftest import NOW_NS, Gateway, MakeGateway, closed, counted
from tests.gateway.fakes import CID, at, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio

OTHER = "default:other"
CLOSE = 8


class Tickets(MemoryTickets):
    """Tickets that are away when told so, and write down what they are asked."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW_NS + int(asyncio.get_running_loop().time() * 1e9))
        self.away: Counter[str] = Counter()
        self.trouble: type[Exception] = Unavailable
        self.is_slow = False
        self.claiming: asyncio.Event | None = None
        self.log: list[tuple[str, Ticket | None]] = []
        self.marked: dict[str, Position] = {}

    def _asked(self, what: str, ticket: Ticket | None = None) -> None:
        if self.away[what]:
            self.away[what] -= 1
            raise self.trouble("away")
        self.log.append((what, ticket))

    async def hold(self, user_id: str, name: str, ticket: Ticket) -> None:
        self._asked("hold", ticket)
        await super().hold(user_id, name, ticket)

    async def leave(self, user_id: str, name: str, ticket: Ticket) -> None:
        self._asked("leave", ticket)
        if self.is_slow:
            await turns()
        await super().leave(user_id, name, ticket)

    async def drop(self, user_id: str, name: str) -> None:
        self._asked("drop")
        await super().drop(user_id, name)

    async def mark(self, positions: Mapping[str, Position], ended: Collection[str]) -> None:
        self._asked("mark")
        self.marked.update(positions)
        for cid in ended:
            del self.marked[cid]
        await super().mark(positions, ended)

    async def claim(
        self, user_id: str, cids: Collection[str], gone: Collection[str], heir: str, node: str
    ) -> dict[str, Position]:
        if self.claiming is not None:
            await self.claiming.wait()
        return await super().claim(user_id, cids, gone, heir, node)

    def of(self, what: str) -> list[Ticket | None]:
        return [ticket for said, ticket in self.log if said == what]


@pytest.fixture
def tickets() -> Tickets:
    return Tickets()


@pytest.fixture
async def gateway(make_gateway: MakeGateway, tickets: Tickets) -> Gateway:
    return await started(make_gateway, tickets)


async def started(make: MakeGateway, tickets: Tickets, **more: object) -> Gateway:
    gateway = make(tickets=tickets, **more)
    await gateway.sockets.start()
    await gateway.hub.start()
    return gateway


def name(peer: Peer) -> str:
    return str(peer.texts[0]["connection_id"])


async def attach(gateway: Gateway, peer: Peer, *cids: str, returning: bool = False) -> None:
    await gateway.sockets.attach(name(peer), "john", cids or [CID], returning=returning)
    await asyncio.sleep(0.3)  # a history read


async def watching(gateway: Gateway, *cids: str, answers: bool = False) -> Peer:
    peer = await Peer(gateway).log_in()
    if answers:
        peer.answer_pings()
    await attach(gateway, peer, *cids)
    return peer


async def returned(gateway: Gateway, *cids: str) -> Peer:
    peer = await Peer(gateway).log_in()
    peer.answer_pings()
    await attach(gateway, peer, *cids, returning=True)
    return peer


async def breaks(peer: Peer) -> None:
    peer.transport.close()
    await turns()


def offsets(peer: Peer, cid: str = CID) -> list[int]:
    return [t["offset"] for t in peer.texts if t["type"] == "custom"]


# -- what is acknowledged -------------------------------------------------------------------------


async def test_who_watches_over_http_is_pinged_every_few_seconds(gateway: Gateway) -> None:
    john = await watching(gateway, answers=True)
    plain = await Peer(gateway).log_in()
    await plain.watch(CID)
    await asyncio.sleep(35)
    assert 5 <= len(john.pings) <= 8
    assert all(len(payload) == 4 for payload in john.pings)
    assert plain.pings == [b""]
    assert john.types.count("health.check") == plain.types.count("health.check") == 1


async def test_what_was_missed_comes_in_order_and_before_what_is_live(gateway: Gateway) -> None:
    john = await watching(gateway)
    gateway.broker.send(2)
    await turns()
    await breaks(john)
    gateway.broker.send(3)
    again = await Peer(gateway).log_in()
    returning = asyncio.create_task(attach(gateway, again, returning=True))
    await turns()
    gateway.broker.send()
    await returning
    gateway.broker.send()
    await turns()
    assert offsets(john) == [1, 2]
    assert offsets(again) == [1, 2, 3, 4, 5, 6, 7]


async def test_what_was_acknowledged_is_not_repeated(gateway: Gateway) -> None:
    john = await watching(gateway)
    gateway.broker.send(2)
    await asyncio.sleep(12)
    john.pong()
    gateway.broker.send()  # written, but who knows whether it arrived
    await turns()
    await breaks(john)
    gateway.broker.send()
    assert offsets(await returned(gateway)) == [3, 4]


async def test_a_pong_that_comes_in_pieces_counts_as_well(gateway: Gateway) -> None:
    john = await watching(gateway)
    gateway.broker.send(2)
    await asyncio.sleep(12)
    pong = john.frame(10, john.pings[-1])  # type: ignore[arg-type]
    john.raw(pong[:3])
    john.raw(pong[3:])
    await breaks(john)
    gateway.broker.send()
    assert offsets(await returned(gateway)) == [3]


async def test_what_gathered_in_this_turn_is_written_before_it_is_noted(gateway: Gateway) -> None:
    john = await watching(gateway)
    gateway.broker.send()
    assert offsets(john) == []
    assert gateway.hub.place(CID) == at(1)
    assert offsets(john) == [1]
    assert gateway.hub.place("default:nobody") is None


async def test_a_return_that_breaks_in_the_middle_is_continued(gateway: Gateway) -> None:
    john = await watching(gateway)
    await breaks(john)
    gateway.broker.send(3)
    gate = gateway.broker.gates["history"] = asyncio.Event()
    again = await Peer(gateway).log_in()
    returning = asyncio.create_task(attach(gateway, again, returning=True))
    await asyncio.sleep(0.3)
    await breaks(again)
    gate.set()
    with pytest.raises(UnknownConnection):
        await returning
    assert offsets(await returned(gateway)) == [1, 2, 3]


async def test_a_slow_replay_is_not_taken_for_had(gateway: Gateway, tickets: Tickets) -> None:
    john = await watching(gateway)
    await breaks(john)
    gateway.broker.send(3)
    again = await Peer(gateway).log_in()
    again.transport.stuck = True
    again.transport.buffer.extend(bytes(300_000))  # above the soft bound
    await attach(gateway, again, returning=True)
    await asyncio.sleep(7)
    held = tickets.of("hold")[-1]
    assert held is not None
    assert (held.positions, held.exact) == ({CID: at(0)}, True)
    again.transport.abort()
    await turns()
    assert offsets(await returned(gateway)) == [1, 2, 3]


async def test_calls_beyond_the_room_of_a_ticket_are_told(gateway: Gateway) -> None:
    cids = [f"default:{n:0100}" for n in range(300)]
    claimed = counted("relay_tickets_total", what="lost")
    await breaks(await watching(gateway, *cids))
    for cid in cids:
        gateway.broker.send(1, cid)
    john = await returned(gateway, *cids)
    told = {t["call_cid"]: t["recovered"] for t in john.texts if t["type"] == "call.position"}
    assert 0 < len(told) < len(cids)
    assert set(told.values()) == {False}
    assert len(offsets(john)) == len(cids) - len(told), "the others get what they missed"
    assert counted("relay_tickets_total", what="lost") == claimed + len(told)


async def test_what_cannot_be_recovered_is_told(gateway: Gateway) -> None:
    john = await watching(gateway)
    await breaks(john)
    gateway.broker.send(5)
    gateway.broker.trim(3)
    again = await returned(gateway)
    [told] = [text for text in again.texts if text["type"] == "call.position"]
    assert (told["offset"], told["recovered"]) == (5, False)
    await breaks(again)
    gateway.broker.send()
    assert offsets(await returned(gateway)) == [6]


# -- which ends leave a ticket --------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001])
async def test_who_says_goodbye_leaves_nothing(
    gateway: Gateway, tickets: Tickets, code: int
) -> None:
    john = await watching(gateway)
    john.raw(john.frame(CLOSE, code.to_bytes(2)))  # type: ignore[arg-type]
    await turns()
    assert tickets.of("drop") == [None]
    gateway.broker.send()
    assert offsets(await returned(gateway)) == []
    assert tickets.of("leave") == []


@pytest.mark.parametrize(
    "way", ["no code", "4000", "the relay's", "answered", "cut off", "bad frame"]
)
async def test_every_other_end_leaves_a_ticket(gateway: Gateway, way: str) -> None:
    john = await watching(gateway)
    match way:
        case "no code":  # what Stream's clients do with a line that they take for dead
            john.raw(john.frame(CLOSE))  # type: ignore[arg-type]
        case "4000":
            john.raw(john.frame(CLOSE, (4000).to_bytes(2)))  # type: ignore[arg-type]
        case "the relay's":
            john.connection.end(Close.GOING_AWAY, "bye", "shutdown")
        case "answered":
            john.connection.end(Close.GOING_AWAY, "bye", "shutdown")
            john.raw(john.frame(CLOSE, (1001).to_bytes(2)))  # type: ignore[arg-type]
        case "cut off":
            john.connection.abort("slow")
        case "bad frame":
            john.raw(b"\xf1\x80\0\0\0\0")
    await turns()
    gateway.broker.send()
    assert offsets(await returned(gateway)) == [1]


async def test_who_was_expelled_or_watches_no_more_has_no_ticket_for_it(
    gateway: Gateway, tickets: Tickets
) -> None:
    john = await watching(gateway, CID, OTHER, "default:third")
    await gateway.sockets.expel("john", CID)
    john.say(type="call.unwatch", id=1, call_cid=OTHER)
    await asyncio.sleep(6)
    held = tickets.of("hold")[-1]
    assert held is not None
    assert held.positions == {"default:third": at(0)}
    await breaks(john)
    assert [ticket.positions for ticket in tickets.of("leave") if ticket] == [
        {"default:third": at(0)}
    ]


async def test_who_names_positions_itself_needs_no_ticket(
    gateway: Gateway, tickets: Tickets
) -> None:
    john = await watching(gateway)
    await john.watch(CID)
    other = await Peer(gateway).log_in()
    await other.watch(OTHER)
    await breaks(john)
    await breaks(other)
    assert tickets.of("leave") == []


async def test_who_only_watches_again_gets_no_replay(gateway: Gateway) -> None:
    await breaks(await watching(gateway))
    gateway.broker.send()
    assert offsets(await watching(gateway)) == []


async def test_a_ticket_is_good_for_a_minute(gateway: Gateway) -> None:
    await breaks(await watching(gateway))
    await breaks(await watching(gateway, OTHER))
    gateway.broker.send()
    gateway.broker.send(cid=OTHER)
    await asyncio.sleep(58)
    assert offsets(await returned(gateway)) == [1]
    await asyncio.sleep(3)
    assert offsets(await returned(gateway, OTHER)) == []


async def test_it_is_claimed_once(gateway: Gateway) -> None:
    await breaks(await watching(gateway))
    gateway.broker.send()
    assert offsets(await returned(gateway)) == [1]
    assert offsets(await returned(gateway)) == []


async def test_other_users_do_not_claim_it(gateway: Gateway) -> None:
    await breaks(await watching(gateway))
    gateway.broker.send()
    jane = await Peer(gateway).log_in("jane")
    await gateway.sockets.attach(name(jane), "jane", [CID], returning=True)
    await asyncio.sleep(0.3)
    assert offsets(jane) == []


# -- two pages, dead lines ------------------------------------------------------------------------


async def test_two_pages_that_return_both_get_everything(gateway: Gateway) -> None:
    early, late = await watching(gateway), await watching(gateway)
    gateway.broker.send(2)
    await asyncio.sleep(12)
    late.pong()
    await breaks(early)
    await breaks(late)
    gateway.broker.send()
    assert offsets(await returned(gateway)) == [1, 2, 3]
    assert offsets(await returned(gateway)) == [1, 2, 3]
    assert offsets(await returned(gateway)) == []


async def test_a_page_that_is_alive_keeps_its_socket(gateway: Gateway) -> None:
    tab = await watching(gateway)
    again = await Peer(gateway).log_in()
    attaching = asyncio.create_task(attach(gateway, again, returning=True))
    await turns()
    tab.pong()
    began = asyncio.get_running_loop().time()
    await attaching
    assert asyncio.get_running_loop().time() - began < PROBE_S / 2
    gateway.broker.send()
    await turns()
    assert offsets(tab) == offsets(again) == [1]


async def test_who_is_back_before_its_line_was_found_dead_gets_what_was_written_to_it(
    gateway: Gateway, tickets: Tickets
) -> None:
    """A phone changes its network: nobody closes the old socket, and it takes all in."""
    tickets.is_slow = True
    before = closed("silent")
    john = await watching(gateway)
    gateway.broker.send(3)
    await turns()
    again = await returned(gateway)
    gateway.broker.send()
    await turns()
    assert offsets(john) == [1, 2, 3]
    assert offsets(again) == [1, 2, 3, 4]
    assert john.transport.aborted
    assert closed("silent") == before + 1
    assert offsets(await returned(gateway)) == []


async def test_who_asks_is_not_asked_for_a_sign_of_life(gateway: Gateway) -> None:
    john = await watching(gateway)
    await attach(gateway, john, returning=True)
    assert not john.transport.aborted
    assert john.pings == []


async def test_one_that_is_not_listened_to_is_not_taken_for_dead(gateway: Gateway) -> None:
    john = await watching(gateway)
    john.transport.pause_reading()
    await returned(gateway)
    assert not john.transport.aborted


async def test_one_that_ends_while_it_is_asked_is_gone(gateway: Gateway, tickets: Tickets) -> None:
    tickets.is_slow = True
    john = await watching(gateway)
    gateway.broker.send()
    again = await Peer(gateway).log_in()
    attaching = asyncio.create_task(attach(gateway, again, returning=True))
    await turns()
    await breaks(john)
    began = asyncio.get_running_loop().time()
    await attaching
    assert asyncio.get_running_loop().time() - began < PROBE_S / 2
    assert offsets(again) == [1]


# -- two processes --------------------------------------------------------------------------------


async def pair(make: MakeGateway, tickets: Tickets) -> tuple[Gateway, Gateway]:
    here = await started(make, tickets, node="here")
    there = await started(make, tickets, node="there")
    here.broker.joins(there.broker)
    there.broker.calls = here.broker.calls  # one Redis
    return here, there


async def test_the_request_the_old_and_the_new_socket_may_each_be_elsewhere(
    make_gateway: MakeGateway, tickets: Tickets
) -> None:
    here, there = await pair(make_gateway, tickets)
    third = await started(make_gateway, tickets, node="third")
    third.broker.joins(there.broker)
    here.broker.joins(third.broker)
    john = await watching(there)
    here.broker.lose(2)
    again = await Peer(here).log_in()
    await third.sockets.attach(name(again), "john", [CID], returning=True)
    await asyncio.sleep(0.3)
    assert john.transport.aborted
    assert offsets(again) == [1, 2]


@pytest.mark.parametrize("death", ["known", "unknown"])
async def test_of_a_process_that_died_counts_what_it_said_last(
    make_gateway: MakeGateway, tickets: Tickets, death: str
) -> None:
    here, there = await pair(make_gateway, tickets)
    await watching(there, answers=True)
    there.broker.send(2)
    await asyncio.sleep(25)
    assert tickets.marked == {CID: at(2)}
    there.broker.send(1)
    there.broker.receiver = None
    if death == "known":
        here.broker.alive = frozenset({"here"})
    here.broker.lose(1)
    assert offsets(await returned(here)) == [3, 4]
    assert len(here.broker.asked("ask")) == (0 if death == "known" else 1)
    here.broker.alive = frozenset({"here"})


# -- what is kept for a process that dies ---------------------------------------------------------


async def test_the_watch_is_kept_before_it_is_confirmed(gateway: Gateway, tickets: Tickets) -> None:
    gateway.broker.lose(4)
    john = await Peer(gateway).log_in()
    tickets.away["hold"] = 1
    with pytest.raises(Unavailable):
        await gateway.sockets.attach(name(john), "john", [CID])
    await gateway.sockets.attach(name(john), "john", [CID])
    await gateway.sockets.attach(name(john), "john", [CID])
    assert tickets.of("hold") == [Ticket("here", {CID: at(4)}, exact=False)]


async def test_marks_are_what_every_socket_had_time_to_acknowledge(
    gateway: Gateway, tickets: Tickets
) -> None:
    john = await watching(gateway)
    gateway.broker.send()
    await asyncio.sleep(6)
    john.pong()
    assert tickets.marked == {CID: at(0)} or tickets.marked == {}
    await asyncio.sleep(6)
    john.pong()
    await asyncio.sleep(6)
    assert tickets.marked == {CID: at(1)}
    assert all(ticket is not None and not ticket.exact for ticket in tickets.of("hold"))
    john.raw(john.frame(CLOSE, b"\x03\xe8"))  # type: ignore[arg-type]
    await asyncio.sleep(6)
    assert tickets.marked == {}
    await watching(gateway, answers=True)
    await asyncio.sleep(20)
    assert tickets.marked == {CID: at(1)}


async def test_where_many_calls_stand_is_noted_a_few_at_a_time(gateway: Gateway) -> None:
    returns = gateway.sockets.returns
    for n in range(3 * NOTED_AT_ONCE):
        returns._marks.follow(f"default:{n}")
    noting, tick = asyncio.create_task(returns._note()), returns._marks.tick
    for _ in range(3):
        await asyncio.sleep(0)
        assert returns._marks.tick == tick
    await noting
    assert returns._marks.tick == tick + 1


async def test_a_watch_that_begins_meanwhile_is_no_reason_to_go_without(
    gateway: Gateway, tickets: Tickets
) -> None:
    """The call is got by itself while the calls are watched again."""
    await breaks(await watching(gateway))
    gateway.broker.send()
    again = await Peer(gateway).log_in()
    gate = tickets.claiming = asyncio.Event()
    returning = asyncio.create_task(attach(gateway, again, returning=True))
    await turns()
    await attach(gateway, again)
    gate.set()
    await returning
    assert offsets(again) == [1]


async def test_a_socket_that_is_behind_gets_a_ticket_of_its_own_before_the_marks_move_on(
    gateway: Gateway, tickets: Tickets
) -> None:
    john = await watching(gateway)
    gateway.broker.send()
    await asyncio.sleep(16)  # its line is dead: no pong
    exact = [n for n, (_, ticket) in enumerate(tickets.log) if ticket and ticket.exact]
    assert exact
    assert tickets.log[exact[0]][1] == Ticket("here", {CID: at(0)})
    assert tickets.marked[CID] == at(1)
    john.pong()
    await asyncio.sleep(6)
    last = tickets.of("hold")[-1]
    assert last is not None
    assert (last.positions, last.exact) == ({CID: at(1)}, False)


@pytest.mark.parametrize("trouble", [Unavailable, ValueError])
async def test_marks_that_could_not_be_said_are_said_later(
    gateway: Gateway, tickets: Tickets, trouble: type[Exception]
) -> None:
    tickets.trouble = trouble
    await watching(gateway, answers=True)
    gateway.broker.send()
    tickets.away["mark"] = 3
    await asyncio.sleep(30)
    assert tickets.away["mark"] == 0
    assert tickets.marked == {CID: at(1)}


async def test_what_is_kept_of_an_open_socket_does_not_expire(
    gateway: Gateway, tickets: Tickets
) -> None:
    await watching(gateway, answers=True)
    before = len(tickets.of("hold"))
    await asyncio.sleep(8 * 3600)
    assert len(tickets.of("hold")) == before + 1


@pytest.mark.parametrize("trouble", [Unavailable, ValueError])
async def test_a_ticket_that_could_not_be_held_is_held_later(
    gateway: Gateway, tickets: Tickets, trouble: type[Exception]
) -> None:
    john = await Peer(gateway).log_in()
    tickets.trouble, tickets.away["hold"] = trouble, 2
    with pytest.raises(trouble):
        await attach(gateway, john)
    await asyncio.sleep(20)
    assert await tickets.held("john", [CID]) == {name(john): "here"}


@pytest.mark.parametrize("trouble", [Unavailable, ValueError])
async def test_tickets_wait_for_redis(
    gateway: Gateway, tickets: Tickets, trouble: type[Exception]
) -> None:
    tickets.trouble = trouble
    john = await watching(gateway)
    tickets.away["leave"] = 3
    await breaks(john)
    gateway.broker.send()
    await asyncio.sleep(10)
    assert tickets.of("leave") == [Ticket("here", {CID: at(0)}, exact=False)]
    assert offsets(await returned(gateway)) == [1]


async def test_so_many_tickets_wait_for_redis_and_no_more(gateway: Gateway) -> None:
    returns = gateway.sockets.returns
    for n in range(WAITING_MOST + 5):
        returns._keep(f"s{n}", _Ended("john", None))
    assert len(returns._waiting) == WAITING_MOST
    assert "s4" not in returns._waiting
    returns._waiting.clear()


async def test_a_relay_that_stops_keeps_its_tickets(gateway: Gateway, tickets: Tickets) -> None:
    peers = [await watching(gateway) for _ in range(3)]
    tickets.is_slow = True
    await breaks(peers[0])  # it is being written
    for peer in peers[1:]:
        peer.transport.close()
    await gateway.sockets.aclose()
    names = {name(peer) for peer in peers}
    assert {one for one, entry in tickets._users["john"].items() if entry.until} == names


async def test_a_claim_for_a_socket_that_has_closed_is_left_for_the_next(
    gateway: Gateway, tickets: Tickets
) -> None:
    await breaks(await watching(gateway))
    gateway.broker.send()
    again = await Peer(gateway).log_in()
    again.transport.closing = True
    await gateway.sockets.returns.claim(again.connection, [CID], [])
    again.transport.closing = False
    await breaks(again)
    assert tickets.of("leave")[-1] == Ticket("here", {CID: at(0)})
    assert await tickets.held("john", [CID]) == {}
    assert offsets(await returned(gateway)) == [1]
