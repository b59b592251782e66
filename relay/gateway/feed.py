"""Put one call's publications in order, or report that it cannot be done.

Pure: the hub feeds it what arrives live and the pages of history it asks for; what comes out is
contiguous, or ``lost`` says that it is not. Broker delivery is at most once, so this is the one
place that thinks about gaps.

    following ──a jump, an interruption──► repairing ──a page that reaches the top──► following
                                             ▲   │ another jump among what was held
                                             └───┘
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from relay.broker import Entry, History
from relay.events import Position

HOLD_LIMIT: Final = 512
"""Publications held while history is read; more than that are read from history instead."""


class Verdict(Enum):
    """What to do with a publication that arrived live."""

    DELIVER = "deliver"
    DROP = "drop"
    HOLD = "hold"
    REPAIR = "repair"


class Filled(NamedTuple):
    """What a page brought: bodies to deliver in order.

    ``lost`` is None, or the position after which they continue: something before it is missing.
    ``done``: following again; otherwise another page is needed.
    """

    bodies: list[bytes]
    lost: Position | None
    done: bool


class Feed:
    """The order of one call on one process, from ``position`` on, the last one delivered."""

    __slots__ = ("_before_read", "_held", "_overflowed", "position", "repairing")

    def __init__(self, position: Position) -> None:
        self.position = position
        self.repairing = False
        self._held: list[tuple[Position, bytes]] = []
        self._before_read = 0
        self._overflowed = False

    def live(self, position: Position, body: bytes) -> Verdict:
        """Take a publication that arrived; the caller delivers it on ``DELIVER``.

        ``REPAIR`` means: it was held, start reading history.
        """
        if self.repairing:
            self._hold(position, body)
            return Verdict.HOLD
        if position.epoch == self.position.epoch:
            if position.offset == self.position.offset + 1:
                self.position = position
                return Verdict.DELIVER
            if position.offset <= self.position.offset:
                return Verdict.DROP
        self.repairing = True
        self._hold(position, body)
        return Verdict.REPAIR

    def reading(self) -> int:
        """Note that history is read from now on; return the offset to read after."""
        self.repairing = True
        self._before_read = len(self._held)
        self._overflowed = False
        return self.position.offset

    def page(self, history: History) -> Filled:
        """Take the page that was read after the offset that ``reading`` gave."""
        lost = None
        if not history.continues(self.position):
            lost = self.position = _resumption(history, self.position)
        fresh = _joined(history, self.position.offset)
        bodies = [entry.body for entry in fresh]
        if fresh:
            self.position = Position(history.top.epoch, fresh[-1].offset)
        elif lost is None:
            self.position = Position(history.top.epoch, self.position.offset)
        done = self.position.offset >= history.top.offset and self._replay(bodies)
        self.repairing = not done
        return Filled(bodies, lost, done)

    def _hold(self, position: Position, body: bytes) -> None:
        if len(self._held) < HOLD_LIMIT:
            self._held.append((position, body))
        else:
            self._overflowed = True

    def _replay(self, bodies: list[bytes]) -> bool:
        """Append what was held and follows; return False when history has to be read again."""
        held, self._held = self._held, []
        for index, (position, body) in enumerate(held):
            if position.offset <= self.position.offset:
                continue
            if position == (self.position.epoch, self.position.offset + 1):
                self.position = position
                bodies.append(body)
            elif index >= self._before_read:
                self._held = held[index:]
                return False
            # Else it arrived before the read, and history did not have it: a failover lost it.
        return not self._overflowed


def _resumption(history: History, seen: Position) -> Position:
    """Return the position from which on history is news to who had seen all up to ``seen``.

    Where it lies below what was seen, the page does not reach down to it.
    """
    at = min(seen.offset, history.top.offset)
    if not history.is_good(seen):
        names = [epoch.name for epoch in history.epochs]
        following = names.index(seen.epoch) + 1 if seen.epoch in names else 0
        if following < len(names):
            at = min(at, history.epochs[following].start - 1)
    if at == seen.offset:
        kept = history.after(at)
        at = kept[0].offset - 1 if kept else history.top.offset
    return Position(history.top.epoch, at)


def _joined(history: History, offset: int) -> tuple[Entry, ...]:
    """Return the entries above ``offset``, none when the page begins higher."""
    fresh = history.after(offset)
    return fresh if fresh and fresh[0].offset == offset + 1 else ()
