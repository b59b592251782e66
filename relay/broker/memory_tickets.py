"""Tickets for as long as the process lives: after its end nobody knows how far anybody had come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from relay.broker.tickets import LIFE_S, Entry, Ticket, bounded, held_by, resolve, thinned
from relay.events import Position

__all__ = ["MemoryTickets"]


class MemoryTickets:
    """Tickets in this process. ``clock`` returns nanoseconds and never goes back."""

    def __init__(self, clock: Callable[[], int], *, life_s: float = LIFE_S) -> None:
        self._clock = clock
        self._life_ms = int(life_s * 1000)
        # Users in the order in which something was said of them, so that what expired is in front.
        self._users: OrderedDict[str, dict[str, Entry]] = OrderedDict()
        self._marks: dict[str, Position] = {}

    async def hold(self, user_id: str, name: str, ticket: Ticket) -> None:
        """Keep the ticket of an open socket."""
        self._put(user_id, {name: Entry(0, bounded(ticket))})

    async def leave(self, user_id: str, name: str, ticket: Ticket) -> None:
        """Leave the ticket of a socket that broke."""
        self._put(user_id, {name: Entry(self._now() + self._life_ms, bounded(ticket))})

    async def drop(self, user_id: str, name: str) -> None:
        """Forget the ticket of a socket."""
        self._put(user_id, {name: None})

    def _put(self, user_id: str, changes: Mapping[str, Entry | None]) -> None:
        entries = self._users.pop(user_id, {})
        for name, entry in changes.items():
            entries.pop(name, None)
            if entry is not None:
                entries[name] = entry
                thinner = thinned(entries, name, now=self._now(), life_ms=self._life_ms)
                for changed, one in thinner.items():
                    entries.pop(changed, None)
                    if one is not None:
                        entries[changed] = one
        if entries:
            self._users[user_id] = entries
        self._expire()

    def _expire(self) -> None:
        """Forget what nobody can claim any more: of a few users each time."""
        now = self._now()
        for user_id in list(self._users)[:2]:
            entries = self._users[user_id]
            for name in [name for name, one in entries.items() if 0 < one.until <= now]:
                del entries[name]
            if entries:
                self._users.move_to_end(user_id)
            else:
                del self._users[user_id]

    async def mark(self, positions: Mapping[str, Position], ended: Collection[str]) -> None:
        """Say how far the sockets here have come."""
        self._marks.update(positions)
        for cid in ended:
            self._marks.pop(cid, None)

    async def held(self, user_id: str, cids: Collection[str]) -> dict[str, str]:
        """Return the sockets that are open, as far as is known, and watch any of the calls."""
        return held_by(self._users.get(user_id, {}), cids)

    async def claim(
        self, user_id: str, cids: Collection[str], gone: Collection[str], heir: str, node: str
    ) -> dict[str, Position]:
        """Use up one ticket for each call and return where to go on."""
        entries = self._users.get(user_id, {})
        marks = {entry.ticket.node: self._marks for entry in entries.values()}
        claim = resolve(entries, cids, gone, heir=heir, node=node, now=self._now(), marks=marks)
        self._put(user_id, claim.changes)
        return claim.positions

    def _now(self) -> int:
        return self._clock() // 1_000_000
