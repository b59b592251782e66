"""The rules of a claim where both keepers share them, and what the embedded one forgets."""

from __future__ import annotations

import pytest

from relay.broker.memory_tickets import MemoryTickets
from relay.broker.tickets import TICKETS_MOST, Entry, Ticket, bounded, resolve, superfluous
from relay.events import Position
from tests.contract.harness import CID


def entry(until: int = 0, offset: int = 5, *, exact: bool = True) -> Entry:
    return Entry(until, Ticket("node", {CID: Position("e1", offset)}, exact))


def test_the_ticket_that_was_just_written_is_never_too_many() -> None:
    entries = {"new": entry(until=1)} | {f"s{n}": entry(until=2 + n) for n in range(TICKETS_MOST)}
    assert superfluous(entries, "new") == ["s0"]
    assert superfluous(entries, "s0") == ["new"]


def test_what_can_still_be_claimed_goes_before_what_is_held() -> None:
    entries = {f"s{n}": entry() for n in range(TICKETS_MOST)} | {"left": entry(until=7)}
    assert superfluous(entries, "s3") == ["left"]


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
