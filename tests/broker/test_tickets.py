"""The rules of a claim where both keepers share them, and what the embedded one forgets."""

from __future__ import annotations

import pytest

from relay import wire
from relay.broker.memory_tickets import MemoryTickets
from relay.broker.tickets import (
    LOST,
    NUMBERS_MOST,
    OVERFLOW,
    TICKETS_MOST,
    Entry,
    Ticket,
    bounded,
    further,
    lower,
    resolve,
    superfluous,
    thinned,
)
from relay.events import Position
from tests.contract.harness import CID, OTHER


def entry(until: int = 0, offset: int = 5, *, exact: bool = True) -> Entry:
    return Entry(until, Ticket("node", {CID: Position("e1", offset)}, exact))


def test_the_ticket_that_was_just_written_is_never_too_many() -> None:
    entries = {"new": entry(until=1)} | {f"s{n}": entry(until=2 + n) for n in range(TICKETS_MOST)}
    assert superfluous(entries, "new") == ["s0"]
    assert superfluous(entries, "s0") == ["new"]


def test_what_can_still_be_claimed_goes_before_what_is_held() -> None:
    entries = {f"s{n}": entry() for n in range(TICKETS_MOST)} | {"left": entry(until=7)}
    assert superfluous(entries, "s3") == ["left"]


def test_what_the_others_have_become_is_not_too_many() -> None:
    entries = {f"s{n}": entry(until=7) for n in range(TICKETS_MOST)} | {OVERFLOW: entry(until=9)}
    assert superfluous(entries, "s0") == []
    assert thinned(entries, "s0", now=1, life_ms=10) == {}


def test_the_oldest_become_one_with_the_lowest_positions() -> None:
    entries = {f"s{n}": entry(until=50 + n, offset=9 - n) for n in range(TICKETS_MOST + 2)}
    entries[OVERFLOW] = Entry(60, Ticket("", {OTHER: Position("e1", 3)}, lost=(7,)))
    assert thinned(entries, "new", now=1, life_ms=100) == {
        "s0": None,
        "s1": None,
        OVERFLOW: Entry(
            101, Ticket("", {CID: Position("e1", 8), OTHER: Position("e1", 3)}, lost=(7,))
        ),
    }


def test_what_can_no_longer_be_claimed_becomes_nothing() -> None:
    entries = {f"s{n}": entry(until=7) for n in range(TICKETS_MOST + 1)}
    assert thinned(entries, "new", now=7, life_ms=100) == {"s0": None}


def test_what_the_others_have_become_is_good_for_a_minute() -> None:
    entries = {OVERFLOW: entry(until=100)}
    for now, positions, changes in (
        (99, {CID: Position("e1", 5)}, {"new"}),
        (100, {}, {OVERFLOW}),
    ):
        claim = resolve(entries, [CID], [], heir="new", node="node", now=now, marks={})
        assert (claim.positions, claim.changes.keys()) == (positions, changes)


def test_a_position_that_was_not_kept_is_lower_than_all() -> None:
    for position in (Position("e1", 0), Position("e2", 7)):
        assert lower(LOST, position) == lower(position, LOST) == LOST
        assert further(LOST, position) == LOST
    assert lower(Position("e2", 3), Position("e1", 4)) == Position("e2", 3)


def test_numbers_are_bounded_and_each_is_kept_once() -> None:
    positions = {f"default:{n}": Position("e1", n) for n in range(3 * NUMBERS_MOST)}
    large = bounded(Ticket("node", positions))
    assert len(large.lost) == NUMBERS_MOST
    small = Ticket("node", {}, lost=(1, 2, 1))
    assert bounded(small).lost == (1, 2)


def test_a_ticket_without_lost_calls_reads_as_before() -> None:
    ticket = entry().ticket
    assert wire.decode(wire.encode(ticket)).keys() == {"node", "positions"}


def test_nobody_inherits_from_itself() -> None:
    claim = resolve(
        {"new": entry(exact=False)}, [CID], ["new"], heir="new", node="node", now=1,
        marks={"node": {}},
    )  # fmt: skip
    assert claim == ({}, {})


def test_a_large_claim_fits_the_heirs_ticket() -> None:
    held = {f"default:{n}": Position("e1", n) for n in range(1000)}
    entries = {"new": Entry(0, bounded(Ticket("node", held))), "old": entry(until=9)}
    claim = resolve(entries, [CID], [], heir="new", node="node", now=1, marks={})
    heir = claim.changes["new"]
    assert heir is not None
    assert heir.ticket.positions[CID] == Position("e1", 5)
    assert len(heir.ticket.positions) < 1000


@pytest.mark.anyio
async def test_users_whose_tickets_are_over_are_forgotten() -> None:
    now = [0]
    tickets = MemoryTickets(lambda: now[0])
    for n in range(100):
        await tickets.leave(f"user{n}", "old", entry().ticket)
    await tickets.hold("anna", "open", entry().ticket)
    now[0] = 61 * 10**9
    for n in range(60):
        await tickets.leave(f"late{n}", "old", entry().ticket)
    assert "anna" in tickets._users
    assert not any(user.startswith("user") for user in tickets._users)
    assert len(tickets._users) == 61


@pytest.mark.anyio
async def test_time_alone_costs_an_open_socket_nothing() -> None:
    now = [0]
    tickets = MemoryTickets(lambda: now[0])
    await tickets.hold("john", "open", entry(exact=False).ticket)
    now[0] = 10**15
    claimed = await tickets.claim("john", [CID], ["open"], "new", "node")
    assert claimed == {CID: Position("e1", 5)}
