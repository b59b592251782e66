"""Sessions of calls, for as long as the process lives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from heapq import nsmallest

import msgspec

from relay.broker.seats import Departure, Due, Joined, Seat, Taken
from relay.calls import Participant, Session

__all__ = ["MemorySessions"]


class _Kept:
    """A session and its participants; ``states`` counts how often each has joined."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.participants: dict[str, Participant] = {}
        self.states: dict[str, int] = {}


class MemorySessions:
    """Sessions in this process. ``clock`` returns nanoseconds and never goes back."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._departures: dict[Seat, Departure] = {}
        self._numbers = itertools.count()
        self._marks: dict[Seat, tuple[int, int]] = {}

    async def join(self, cid: str, session: Session, participant: Participant) -> Joined:
        """Take a seat."""
        kept = self._kept.setdefault(cid, _Kept(session))
        user_id = participant.user_id
        kept.participants.setdefault(user_id, participant)
        kept.states[user_id] = kept.states.get(user_id, 0) + 1
        return Joined(kept.session, kept.participants[user_id])

    async def sessions(self, cids: Collection[str]) -> dict[str, Session]:
        """Return the sessions of calls."""
        return {
            cid: msgspec.structs.replace(kept.session, participants=_in_order(kept.participants))
            for cid in cids
            if (kept := self._kept.get(cid)) is not None
        }

    async def end(self, cid: str, session_id: str) -> None:
        """End a session, unless another one has begun since."""
        kept = self._kept.get(cid)
        if kept is not None and kept.session.id == session_id:
            del self._kept[cid]

    async def mark(self, seats: Collection[Seat], after_s: float) -> None:
        """Make seats due in so many seconds."""
        at = self._clock() + int(after_s * 1e9)
        self._marks.update((seat, (at, next(self._numbers))) for seat in seats)

    async def due(self, count: int, ahead: tuple[float, float] | None = None) -> list[Due]:
        """Return the seats that are due, else those that will be."""
        now = self._clock()
        found = self._between(count, 0, now)
        if not found and ahead is not None:
            first, last = (now + int(seconds * 1e9) for seconds in ahead)
            found = self._between(count, first + 1, last - 1)
        return found

    def _between(self, count: int, first: int, last: int) -> list[Due]:
        marked = ((mark, seat) for seat, mark in self._marks.items() if first <= mark[0] <= last)
        return [Due(seat, str(number)) for (_, number), seat in nsmallest(count, marked)]

    async def move(self, dues: Collection[Due], after_s: float | None) -> None:
        """Make seats due again later, or never, unless they were marked meanwhile."""
        same = [due.seat for due in dues if str(self._marks.get(due.seat, (0, -1))[1]) == due.mark]
        if after_s is not None:
            await self.mark(same, after_s)
            return
        for seat in same:
            del self._marks[seat]

    async def look(self, seats: Sequence[Seat]) -> list[Taken | Departure | None]:
        """Return what is in each seat."""
        return [self._departures.get(seat) or self._taken(seat) for seat in seats]

    def _taken(self, seat: Seat) -> Taken | None:
        kept = self._kept.get(seat.cid)
        if kept is None or seat.user_id not in kept.participants:
            return None
        participant = kept.participants[seat.user_id]
        state = b"%d:%b" % (kept.states[seat.user_id], participant.user_session_id.encode())
        return Taken(Joined(kept.session, participant), state)

    async def leave(self, seat: Seat, taken: Taken, left_at: int) -> Departure | None:
        """Make a participant leave, unless the seat changed."""
        now = self._taken(seat)
        if now is None or now.state != taken.state or seat in self._departures:
            return None
        kept = self._kept[seat.cid]
        del kept.participants[seat.user_id], kept.states[seat.user_id]
        was_last = not kept.participants
        if was_last:
            del self._kept[seat.cid]
        session, participant = taken.joined
        departure = Departure(participant, session, left_at, was_last)
        self._departures[seat] = departure
        return departure

    async def settle(self, seat: Seat) -> None:
        """Forget a departure."""
        self._departures.pop(seat, None)

    async def lead(self) -> bool:
        """Return True: there is no other process."""
        return True

    async def aclose(self) -> None:
        """Do nothing: there is no lease."""


def _in_order(participants: dict[str, Participant]) -> tuple[Participant, ...]:
    return tuple(sorted(participants.values(), key=lambda one: (one.joined_at, one.user_id)))
