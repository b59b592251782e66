"""What a keeper of sessions promises. ``memory_sessions`` and ``redis_sessions`` keep it.

A *seat* is a user's place in the session of a call. Who takes one is in the session, and its seat
is *due* to be looked at some time later: is there still a socket? Whoever finds a seat due and
nobody there makes the participant leave in one step, which leaves a *departure* behind until the
departure was announced: so it is announced by somebody even when that somebody dies half-way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from relay.calls import Participant, Session


class Seat(NamedTuple):
    """A user's place in the session of a call."""

    cid: str
    user_id: str


class Due(NamedTuple):
    """A seat that is due, and since when; ``mark`` changes whenever somebody marks it anew."""

    seat: Seat
    mark: str


class Joined(NamedTuple):
    """The session (without its participants) and the participant as they are kept."""

    session: Session
    participant: Participant


class Taken(NamedTuple):
    """A seat with a participant in it; ``state`` changes when the user joins again."""

    joined: Joined
    state: bytes


class Departure(msgspec.Struct, frozen=True):
    """A participant who left, until that was announced; ``left_at`` in ns since 1970."""

    participant: Participant
    session: Session
    left_at: int
    was_last: bool = False


class Sessions(Protocol):
    """Who is in which call's session. Each method raises ``Unavailable`` when Redis is away."""

    async def join(self, cid: str, session: Session, participant: Participant) -> Joined:
        """Take a seat: ``session`` begins unless there is one, and so does ``participant``."""
        ...

    async def sessions(self, cids: Collection[str]) -> dict[str, Session]:
        """Return the sessions of calls, participants in the order in which they came."""
        ...

    async def end(self, cid: str, session_id: str) -> None:
        """End a session, unless another one has begun since."""
        ...

    async def mark(self, seats: Collection[Seat], after_s: float) -> None:
        """Make seats due in so many seconds, whatever they were marked with before."""
        ...

    async def due(self, count: int, ahead: tuple[float, float] | None = None) -> list[Due]:
        """Return the seats that are due, the longest first.

        When there are none: those that will be due between so many seconds from now.
        """
        ...

    async def move(self, dues: Collection[Due], after_s: float | None) -> None:
        """Make seats due again later, None: never; those that were marked meanwhile stay so."""
        ...

    async def look(self, seats: Sequence[Seat]) -> list[Taken | Departure | None]:
        """Return what is in each seat; a departure that was not settled comes first."""
        ...

    async def leave(self, seat: Seat, taken: Taken, left_at: int) -> Departure | None:
        """Make a participant leave; the last one ends the session. None when the seat changed."""
        ...

    async def settle(self, seat: Seat) -> None:
        """Forget a departure, for it was announced."""
        ...

    async def lead(self) -> bool:
        """Take or renew the lease of the one process that looks at seats; tell whether it holds."""
        ...

    async def aclose(self) -> None:
        """Give the lease back."""
        ...
