"""How far sockets had come: who comes back gets each thing once at least, and no more than that."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Broker
from relay.broker.tickets import LOST, TICKET_BYTES, TICKETS_MOST, Ticket, Tickets
from relay.events import Position
from tests.contract.harness import CID, OTHER, Rig

pytestmark = pytest.mark.anyio

THIRD = "livestream:third"


@pytest.fixture
def tickets(rig: Rig, broker: Broker) -> Tickets:
    return rig.tickets(broker)


def at(offset: int, epoch: str = "e1") -> Position:
    return Position(epoch, offset)


class User:
    """One user's sockets on the process of ``broker``."""

    def __init__(self, tickets: Tickets, broker: Broker, user_id: str = "jöhn") -> None:
        self._tickets = tickets
        self._node = broker.node
        self._id = user_id

    def ticket(self, positions: dict[str, Position], *, exact: bool = True) -> Ticket:
        return Ticket(self._node, positions, exact)

    async def hold(self, name: str, exact: bool = True, **offsets: int) -> None:
        await self._tickets.hold(self._id, name, self.ticket(_positions(offsets), exact=exact))

    async def leave(self, name: str, **offsets: int) -> None:
        await self._tickets.leave(self._id, name, self.ticket(_positions(offsets)))

    async def drop(self, name: str) -> None:
        await self._tickets.drop(self._id, name)

    async def held(self, *cids: str) -> dict[str, str]:
        return await self._tickets.held(self._id, cids)

    async def claim(
        self, *cids: str, heir: str = "new", gone: tuple[str, ...] = ()
    ) -> dict[str, Position]:
        return await self._tickets.claim(self._id, cids, gone, heir, self._node)


CIDS = {"demo": CID, "other": OTHER, "third": THIRD}


def _positions(offsets: dict[str, int]) -> dict[str, Position]:
    return {CIDS[name]: at(offset) for name, offset in offsets.items()}


@pytest.fixture
def john(tickets: Tickets, broker: Broker) -> User:
    return User(tickets, broker)


# -- once -----------------------------------------------------------------------------------------


async def test_a_ticket_that_was_left_is_claimed_once(john: User) -> None:
    await john.leave("old", demo=7, other=2**53)
    assert await john.claim(CID, OTHER, THIRD) == {CID: at(7), OTHER: at(2**53)}
    assert await john.claim(CID, OTHER, heir="newer") == {}


async def test_a_ticket_is_one_users(john: User, tickets: Tickets, broker: Broker) -> None:
    await john.leave("old", demo=7)
    jane = User(tickets, broker, "jane")
    assert await jane.claim(CID) == {}
    assert await john.claim(CID) == {CID: at(7)}


async def test_what_was_not_claimed_of_it_can_be_later(john: User) -> None:
    await john.leave("old", demo=7, other=8)
    assert await john.claim(OTHER) == {OTHER: at(8)}
    assert await john.claim(CID, OTHER, heir="newer") == {CID: at(7)}


async def test_of_many_who_claim_at_once_one_gets_it(john: User) -> None:
    await john.leave("old", demo=7)
    claims = await asyncio.gather(*(john.claim(CID, heir=f"new{n}") for n in range(10)))
    assert sorted(map(len, claims)) == [0] * 9 + [1]


async def test_a_ticket_is_good_for_a_limited_time(rig: Rig, broker: Broker) -> None:
    john = User(rig.tickets(broker, life_s=2.0), broker)
    await john.leave("old", demo=7)
    await john.leave("older", other=7)
    assert await john.claim(OTHER) == {OTHER: at(7)}
    await rig.pass_time(2.05)
    assert await john.claim(CID) == {}


# -- several --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [(5, 10), (10, 5)])
async def test_of_two_tickets_each_gives_the_lower_position(
    john: User, rig: Rig, offsets: tuple[int, int]
) -> None:
    for name, offset in zip(("a", "b"), offsets, strict=True):
        await john.leave(name, demo=offset)
        await rig.pass_time(0.002)
    assert await john.claim(CID) == {CID: at(5)}
    assert await john.claim(CID, heir="newer") == {CID: at(5)}
    assert await john.claim(CID, heir="newest") == {}


async def test_the_oldest_is_used_up_first(rig: Rig, broker: Broker) -> None:
    john = User(rig.tickets(broker, life_s=2.0), broker)
    await john.leave("b", demo=5)
    await rig.pass_time(1.0)
    await john.leave("a", demo=9)
    assert await john.claim(CID) == {CID: at(5)}
    await rig.pass_time(1.2)
    assert await john.claim(CID, heir="newer") == {CID: at(5)}


async def test_two_pages_with_calls_in_common_do_not_take_each_others(john: User) -> None:
    await john.leave("a", demo=5, third=6)
    await john.leave("b", demo=8, other=9)
    assert await john.claim(CID, OTHER, heir="b2") == {CID: at(5), OTHER: at(9)}
    assert await john.claim(CID, THIRD, heir="a2") == {CID: at(5), THIRD: at(6)}


# -- open sockets ---------------------------------------------------------------------------------


async def test_what_is_held_cannot_be_claimed_unless_its_socket_is_gone(
    john: User, tickets: Tickets, broker: Broker
) -> None:
    await tickets.mark({}, [])
    await john.hold("old", demo=7)
    assert await john.held(CID, OTHER) == {"old": broker.node}
    assert await john.held(OTHER) == {}
    assert await john.claim(CID) == {}
    assert await john.claim(CID, gone=("old",)) == {CID: at(7)}
    assert await john.held(CID) == {"new": broker.node}


async def test_marks_say_how_far_sockets_without_an_exact_ticket_have_come(
    john: User, tickets: Tickets
) -> None:
    await tickets.mark({CID: at(20), OTHER: at(3), THIRD: at(9)}, [])
    await tickets.mark({CID: at(21)}, [THIRD])
    await john.hold("a", exact=False, demo=7, other=7, third=7)
    await john.hold("b", exact=True, demo=7)
    assert await john.claim(CID, OTHER, THIRD, gone=("a",)) == {
        CID: at(21), OTHER: at(7), THIRD: at(7),
    }  # fmt: skip
    assert await john.claim(CID, gone=("b",), heir="newer") == {CID: at(7)}


async def test_between_two_epochs_the_lower_offset_is_the_safe_one(
    john: User, tickets: Tickets
) -> None:
    await tickets.mark({CID: at(5, "e2"), OTHER: at(9, "e2")}, [])
    await john.hold("a", exact=False, demo=7, other=7)
    claimed = await john.claim(CID, OTHER, gone=("a",))
    assert claimed == {CID: at(5, "e2"), OTHER: at(7, "e1")}


async def test_many_marks_are_kept(john: User, tickets: Tickets) -> None:
    calls = {f"default:{n}": at(n) for n in range(1200)}
    await tickets.mark(calls | {CID: at(20)}, [])
    await tickets.mark({}, list(calls))
    await john.hold("a", exact=False, demo=7)
    assert await john.claim(CID, gone=("a",)) == {CID: at(20)}


async def test_the_last_word_on_a_socket_counts(john: User) -> None:
    await john.hold("a", demo=1)
    await john.leave("a", demo=2)
    await john.hold("b", demo=3)
    await john.leave("b", demo=4)
    await john.drop("b")
    await john.leave("c", demo=5)
    await john.hold("c", other=5)
    await john.drop("never there")
    assert await john.claim(CID) == {CID: at(2)}
    assert await john.claim(CID, heir="newer") == {}
    assert (await john.held(OTHER)).keys() == {"c"}


# -- the heir -------------------------------------------------------------------------------------


async def test_what_was_claimed_is_held_for_the_heir_in_the_same_step(
    john: User, tickets: Tickets
) -> None:
    await tickets.mark({}, [])
    await john.leave("old", demo=7)
    await john.hold("new", other=3)
    assert await john.claim(CID) == {CID: at(7)}
    claimed = await john.claim(CID, OTHER, heir="newer", gone=("new",))
    assert claimed == {CID: at(7), OTHER: at(3)}


async def test_what_is_claimed_counts_before_what_the_heir_had_begun_to_watch(
    john: User, tickets: Tickets
) -> None:
    await tickets.mark({}, [])
    await john.leave("old", demo=5)
    await john.hold("new", exact=False, demo=9, other=9)
    assert await john.claim(CID) == {CID: at(5)}
    claimed = await john.claim(CID, OTHER, heir="newer", gone=("new",))
    assert claimed == {CID: at(5), OTHER: at(9)}


async def test_who_claims_again_without_having_had_the_answer_gets_it_again(john: User) -> None:
    await john.leave("old", demo=7)
    await john.leave("older", demo=6)
    assert await john.claim(CID) == {CID: at(6)}
    assert await john.claim(CID) == {CID: at(6)}
    assert await john.claim(CID, heir="newer") == {CID: at(6)}


# -- bounds ---------------------------------------------------------------------------------------


async def test_a_user_has_so_many_tickets_and_the_oldest_go(john: User, rig: Rig) -> None:
    await john.hold("open", other=1)
    for n in range(TICKETS_MOST + 5):
        await john.leave(f"s{n}", demo=n)
        await rig.pass_time(0.001)
    assert "open" in await john.held(OTHER)
    claimed = [await john.claim(CID, heir=f"new{n}") for n in range(TICKETS_MOST + 5)]
    assert claimed == [{CID: at(0)}] * (TICKETS_MOST + 5), "what the oldest had is good for all"


async def test_what_has_no_room_in_a_ticket_is_told_to_be_lost(
    john: User, tickets: Tickets, broker: Broker
) -> None:
    calls = {f"default:{n:0128}": at(n + 1) for n in range(1000)}
    for put in (tickets.hold, tickets.leave):
        await put("jöhn", "old", john.ticket(calls))
    last = [*calls][-1]
    assert await tickets.claim("jöhn", [last], [], "first", broker.node) == {last: LOST}
    claimed = await tickets.claim("jöhn", [*calls, OTHER], [], "new", broker.node)
    kept = [cid for cid, position in claimed.items() if position != LOST]
    assert kept == [*calls][: len(kept)]
    assert 50 < len(kept) < TICKET_BYTES // 128
    assert claimed == {cid: calls[cid] if cid in kept else LOST for cid in [*calls][:-1]}
    assert await tickets.claim("jöhn", [*calls], [], "newer", broker.node) == {}


async def test_an_open_socket_is_found_by_calls_that_had_no_room(
    john: User, tickets: Tickets
) -> None:
    calls = {f"default:{n:0128}": at(n + 1) for n in range(1000)}
    await tickets.hold("jöhn", "open", john.ticket(calls))
    assert [*await tickets.held("jöhn", [[*calls][-1]])] == ["open"]
    assert await tickets.held("jöhn", [OTHER]) == {}


async def test_of_two_tickets_for_a_call_the_one_without_a_position_counts(
    john: User, tickets: Tickets, broker: Broker
) -> None:
    calls = {f"default:{n:0128}": at(n + 1) for n in range(1000)}
    last = [*calls][-1]
    await tickets.leave("jöhn", "large", john.ticket(calls))
    await tickets.leave("jöhn", "small", john.ticket({last: at(5)}))
    for heir in ("first", "second"):
        assert await tickets.claim("jöhn", [last], [], heir, broker.node) == {last: LOST}
    assert await tickets.claim("jöhn", [last], [], "third", broker.node) == {}


async def test_what_is_too_many_is_kept_as_one_that_is_not_used_up(
    tickets: Tickets, broker: Broker, rig: Rig
) -> None:
    last = TICKETS_MOST + 4
    for n in range(last + 1):
        if n in (1, last):  # else the first or the last may be as old as others, to the millisecond
            await rig.pass_time(0.01)
        await tickets.leave("jöhn", f"s{n}", Ticket(broker.node, {f"default:{n}": at(n)}))
    wanted = ["default:0", f"default:{last}"]
    first = await tickets.claim("jöhn", wanted, [], "new", broker.node)
    assert first == {"default:0": at(0), f"default:{last}": at(last)}
    again = await tickets.claim("jöhn", wanted, [], "newer", broker.node)
    assert again == {"default:0": at(0)}, "nobody knows how many had it"
