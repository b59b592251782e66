"""How far sockets have come, by what they acknowledged: pure.

The process counts *ticks*, one every few seconds. At each it notes where every followed call stands
(``Marks``). A ping to a socket carries the tick, and its pong says that everything written before
has arrived (``Trail``). So a publication costs nothing here, a socket one number, and its positions
are looked up only when a ticket is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from relay.broker.tickets import Ticket, further
from relay.events import Position

TICKS_KEPT: Final = 16
"""Longer than a socket may be silent before it is cut off (bounds.SILENCE_S)."""

SETTLED: Final = 2
"""Ticks after which a healthy socket has acknowledged: its ping and its pong lie in between."""


class Marks:
    """Where calls stood at the last ticks; ``tick`` is the last one that is complete."""

    def __init__(self) -> None:
        self.tick = 1
        self._followers: dict[str, int] = {}
        self._marks: dict[str, list[tuple[int, Position]]] = {}

    def __contains__(self, cid: object) -> bool:
        return cid in self._followers

    def __iter__(self) -> Iterator[str]:
        return iter(self._followers)

    def follow(self, cid: str) -> None:
        """Note where a call stands, from now on and as often as it is followed."""
        self._followers[cid] = self._followers.get(cid, 0) + 1
        self._marks.setdefault(cid, [])

    def unfollow(self, cid: str) -> None:
        """Follow a call once less."""
        self._followers[cid] -= 1
        if not self._followers[cid]:
            del self._followers[cid], self._marks[cid]

    def note(self, cid: str, position: Position) -> None:
        """Note where a followed call stands at the tick that is about to be complete."""
        if (marks := self._marks.get(cid)) is None:
            return
        if not marks or marks[-1][1] != position:
            marks.append((self.tick + 1, position))
        while len(marks) > 1 and marks[1][0] <= self.tick - TICKS_KEPT:
            del marks[0]

    def complete(self) -> None:
        """End the tick: pings carry it from now on."""
        self.tick += 1

    def at(self, cid: str, tick: int) -> Position | None:
        """Return where a call stood at a tick, None when that is not known."""
        marks = self._marks.get(cid, ())
        return next((at for noted, at in reversed(marks) if noted <= tick), None)


class Trail:
    """What one socket has of the calls that were attached to it.

    ``acked`` is the tick up to which it has everything, ``began`` when its first call was attached.
    ``is_exact`` and ``held_at`` say what is kept of it: a ticket with its own positions or the
    process's, and since which tick; None when that is out of date.
    """

    __slots__ = ("_live_from", "_replayed", "acked", "began", "held_at", "is_exact", "pinged",
                 "starts")  # fmt: skip

    def __init__(self, tick: int) -> None:
        self.acked = self.pinged = 0
        self.began = tick
        self.is_exact = False
        self.held_at: int | None = None
        self.starts: dict[str, Position] = {}
        self._live_from: dict[str, int] = {}
        self._replayed: set[str] = set()

    def promise(self, cid: str, start: Position) -> None:
        """Note where a watch will begin that does not stand yet, with a replay."""
        self.starts[cid] = start
        self._replayed.add(cid)
        self._live_from.pop(cid, None)

    def begin(self, cid: str, start: Position, *, replayed: bool) -> None:
        """Note a watch: the socket has everything up to ``start``, what follows is written to it.

        ``replayed``: from history first, so that it lags behind the process's other sockets.
        """
        self.promise(cid, start)
        if not replayed:
            self._replayed.discard(cid)
        self.held_at = None

    def forget(self, cid: str) -> bool:
        """Forget a call; tell whether there was anything to forget."""
        self._replayed.discard(cid)
        self._live_from.pop(cid, None)
        if self.starts.pop(cid, None) is None:
            return False
        self.held_at = None
        return True

    def pinging(self, tick: int, is_live: Callable[[str], bool]) -> None:
        """Note that a ping leaves: behind everything of the calls that the socket gets live."""
        # What went live since the last ping of the same tick is not what that one acknowledges.
        first = tick if self.pinged < tick else tick + 1
        self.pinged = tick
        if len(self._live_from) < len(self.starts):
            for cid in self.starts.keys() - self._live_from.keys():
                if is_live(cid):
                    self._live_from[cid] = first

    def ponged(self, tick: int) -> None:
        """Note that a pong has come."""
        if self.acked < tick <= self.pinged:
            self.acked = tick
            for cid in list(self._replayed):
                if self._live_from.get(cid, self.pinged + 1) <= tick:
                    self._replayed.discard(cid)

    def is_behind(self, tick: int) -> bool:
        """Tell whether it may lack something that the process's sockets had at a tick."""
        return bool(self._replayed) or (self.acked < tick and self.began <= tick)

    def ticket(self, node: str, marks: Marks) -> Ticket:
        """Return how far the socket has come."""
        positions = {cid: self._position(cid, start, marks) for cid, start in self.starts.items()}
        return Ticket(node, positions, exact=self.is_exact)

    def _position(self, cid: str, start: Position, marks: Marks) -> Position:
        live_from = self._live_from.get(cid)
        if live_from is None or self.acked < live_from:
            return start
        mark = marks.at(cid, self.acked)
        # A mark of the tick in which the watch began may be older than its start.
        return mark if mark is not None and self.acked > live_from else further(start, mark)
