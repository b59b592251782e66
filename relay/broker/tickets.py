"""What a keeper of tickets promises, and the rules of a claim. Memory and Redis keep it.

Whoever watches a call over HTTP names no position when it comes back, as Stream's SDKs do not: the
relay has to know how far its socket had come. A *ticket* says that. While the socket is open its
process *holds* the ticket, lest the process be killed; a socket that breaks *leaves* it behind for
a minute; the same user's next socket *claims* what it watches again.

Tickets count: each claim of a call uses one up, gets the lowest position that any of them has, and
lowers the others to it. So whoever of several comes first, each gets everything that it missed, and
perhaps something twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from itertools import islice
from typing import Final, NamedTuple, Protocol

import msgspec

from relay.events import Position

LIFE_S: Final = 60.0
"""How long a ticket that was left can be claimed; after a kill, from the last sign of life on."""

BEAT_S: Final = 5.0
"""How often a process says how far its sockets have come."""

HELD_LIFE_S: Final = 86_400.0
"""How long tickets are kept of a user of whom no process says anything."""

TICKETS_MOST: Final = 50
"""Tickets of a user; beyond that the oldest become one, which is good for everybody."""

TICKET_BYTES: Final = 16_384
"""Of the positions in one ticket, some 200 calls; of those watched last only a number is kept."""

NUMBERS_MOST: Final = 2000

OVERFLOW: Final = ""
"""The name of the ticket that others have become. It is not used up."""

LOST: Final = Position("", 0)
"""Stands for a position that was not kept: from here nothing can be continued, and that is told."""


class Ticket(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a socket of the process ``node`` had come in the calls it watches.

    Not ``exact``: at least so far; the marks of its process may say more. ``lost`` has the numbers
    of calls whose positions there was no room for.
    """

    node: str
    positions: dict[str, Position]
    exact: bool = True
    lost: tuple[int, ...] = ()


class Tickets(Protocol):
    """Each method raises ``Unavailable`` when Redis is away. ``name`` is the socket's id."""

    async def hold(self, user_id: str, name: str, ticket: Ticket) -> None:
        """Keep the ticket of an open socket, instead of what was kept of it before."""
        ...

    async def leave(self, user_id: str, name: str, ticket: Ticket) -> None:
        """Leave the ticket of a socket that broke: it can be claimed from now on."""
        ...

    async def drop(self, user_id: str, name: str) -> None:
        """Forget the ticket of a socket that was closed, or watches nothing any more."""
        ...

    async def mark(self, positions: Mapping[str, Position], ended: Collection[str]) -> None:
        """Say how far all sockets here have come, but for those with an exact ticket.

        ``positions`` is what has changed, ``ended`` the calls that nobody here watches so any more.
        Whoever does not say it for a minute, and be it that nothing changed, is dead.
        """
        ...

    async def held(self, user_id: str, cids: Collection[str]) -> dict[str, str]:
        """Return the sockets that are open, as far as is known, and watch any of the calls.

        By their names; the values are their processes.
        """
        ...

    async def claim(
        self, user_id: str, cids: Collection[str], gone: Collection[str], heir: str, node: str
    ) -> dict[str, Position]:
        """Use up one ticket for each call and return where to go on; calls without one are absent.

        Also those are claimed that are held for a socket in ``gone``. In the same step they become
        the held ticket of ``heir``, a socket of the process ``node``.
        """
        ...


class Entry(msgspec.Struct, frozen=True):
    """A ticket as it is kept: until when (ms, by the keeper's clock), 0 while it is held."""

    until: int
    ticket: Ticket


class Claim(NamedTuple):
    """What a claim gets, and which entries it changes (None: gone)."""

    positions: dict[str, Position]
    changes: dict[str, Entry | None]


Marks = Mapping[str, Mapping[str, Position] | None]
"""By process: how far its sockets have come; None of one that said nothing for a minute."""


def bounded(ticket: Ticket) -> Ticket:
    """Return a ticket that is not too large: of what does not fit, the numbers are kept."""
    room, fits = TICKET_BYTES, {}
    for cid, position in ticket.positions.items():
        room -= len(cid) + len(position.epoch) + 32
        if room < 0:
            break
        fits[cid] = position
    lost = (*ticket.lost, *map(_number, islice(ticket.positions, len(fits), None)))
    return msgspec.structs.replace(
        ticket, positions=fits, lost=tuple(dict.fromkeys(lost))[:NUMBERS_MOST]
    )


def _number(cid: str) -> int:
    """Return what stands for a call where its name would take too much room."""
    return zlib.crc32(cid.encode())


def _unfolded(ticket: Ticket, cids: Iterable[str]) -> Ticket:
    """Return a ticket with positions, be they ``LOST``, for those of the calls that it is for."""
    if not ticket.lost:
        return ticket
    numbers = set(ticket.lost)
    lost = {cid: LOST for cid in cids if _number(cid) in numbers}
    rest = numbers - {_number(cid) for cid in lost}
    return msgspec.structs.replace(
        ticket, positions=ticket.positions | lost, lost=tuple(n for n in ticket.lost if n in rest)
    )


def held_by(entries: Mapping[str, Entry], cids: Collection[str]) -> dict[str, str]:
    """Return the sockets that hold a ticket for any of the calls, with their processes."""
    return {
        name: entry.ticket.node
        for name, entry in entries.items()
        if not entry.until and not _unfolded(entry.ticket, cids).positions.keys().isdisjoint(cids)
    }


def superfluous(entries: Mapping[str, Entry], newest: str) -> list[str]:
    """Return which of a user's entries are too many, never the one that was just written."""
    others = sorted((name for name in _by_age(entries) if name != OVERFLOW), key=newest.__eq__)
    return others[: max(0, len(others) - TICKETS_MOST)]


def thinned(
    entries: Mapping[str, Entry], newest: str, *, now: int, life_ms: int
) -> dict[str, Entry | None]:
    """Return what to change where a user has too many entries.

    What the oldest say becomes one ticket, with the lowest position that any of them had.
    """
    excess = superfluous(entries, newest)
    positions: dict[str, Position] = {}
    numbers: dict[int, None] = {}
    for name in excess and (*excess, OVERFLOW):
        entry = entries.get(name)
        if entry is None or 0 < entry.until <= now:
            continue
        numbers.update(dict.fromkeys(entry.ticket.lost))
        for cid, position in entry.ticket.positions.items():
            positions[cid] = lower(positions.get(cid, position), position)
    changes: dict[str, Entry | None] = dict.fromkeys(excess)
    if positions or numbers:
        one = bounded(Ticket("", positions, lost=tuple(numbers)))
        changes[OVERFLOW] = Entry(now + life_ms, one)
    return changes


def _by_age(entries: Mapping[str, Entry]) -> list[str]:
    """Return the names of entries: those that were left, the oldest first, then those held."""
    return sorted(entries, key=lambda name: (entries[name].until == 0, entries[name].until))


def resolve(
    entries: Mapping[str, Entry],
    cids: Collection[str],
    gone: Collection[str],
    *,
    heir: str,
    node: str,
    now: int,
    marks: Marks,
    unread: Collection[str] = (),
) -> Claim:
    """Return what a claim comes to; see ``Tickets.claim``.

    ``unread`` are entries that cannot be read, of any of the calls perhaps: they are used up too,
    and where no other ticket says where to go on, something was lost.
    """
    changes: dict[str, Entry | None] = dict.fromkeys(unread)
    claimable: dict[str, dict[str, Position]] = {}
    unfolded = {name: _unfolded(entry.ticket, cids) for name, entry in entries.items()}
    for name in _by_age(entries):
        if name == heir or not (entries[name].until or name in gone):
            continue
        known = _known(Entry(entries[name].until, unfolded[name]), now, marks)
        if known is None:
            changes[name] = None
        else:
            claimable[name] = known
    own = unfolded.get(heir, Ticket(node, {}, exact=False))
    # What it holds so and asks for all the same it has claimed before, without learning of it.
    before = own.positions if own.exact else {}
    positions = {cid: before[cid] for cid in cids if cid in before}
    claimed, touched = _use_up(claimable, [cid for cid in cids if cid not in positions])
    if unread:
        claimed |= {cid: LOST for cid in cids if cid not in positions and cid not in claimed}
    for name in touched:
        left = bounded(Ticket(unfolded[name].node, claimable[name], lost=unfolded[name].lost))
        changes[name] = Entry(entries[name].until, left) if left.positions or left.lost else None
    if claimed:  # they come first, lest the bound take them, and count before what it held
        heirs = Ticket(node, claimed | own.positions | claimed, lost=own.lost)
        changes[heir] = Entry(0, bounded(heirs))
    return Claim(positions | claimed, changes)


def _known(entry: Entry, now: int, marks: Marks) -> dict[str, Position] | None:
    """Return how far a socket that is gone had come, None when that was too long ago."""
    ticket = entry.ticket
    if entry.until:
        return dict(ticket.positions) if entry.until > now else None
    said = marks.get(ticket.node)
    if said is None:
        return None
    if ticket.exact:
        return dict(ticket.positions)
    return {cid: further(at, said.get(cid)) for cid, at in ticket.positions.items()}


def further(start: Position, mark: Position | None) -> Position:
    """Return the further of two positions that both were reached.

    Of two epochs nobody can tell here which came later: the lower offset repeats, and loses
    nothing.
    """
    if mark is None:
        return start
    if start.epoch == mark.epoch:
        return max(start, mark)
    return min(start, mark, key=lambda position: position.offset)


def lower(one: Position, other: Position) -> Position:
    """Return the position from which on both miss nothing."""
    return min(one, other, key=lambda at: (at.offset, at != LOST))


def _use_up(
    claimable: Mapping[str, dict[str, Position]], cids: Collection[str]
) -> tuple[dict[str, Position], set[str]]:
    """Take one position of each call out of what can be claimed; also return what that changed."""
    positions: dict[str, Position] = {}
    touched: set[str] = set()
    for cid in cids:
        having = [name for name, known in claimable.items() if cid in known]
        if not having:
            continue
        lowest = positions[cid] = reduce(lower, (claimable[name][cid] for name in having))
        having = [name for name in having if name != OVERFLOW]
        for name in having[:1]:
            del claimable[name][cid]
        for name in having[1:]:
            claimable[name][cid] = lowest
        touched.update(having)
    return positions, touched
