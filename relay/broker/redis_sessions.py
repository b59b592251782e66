"""Sessions of calls in Redis: one hash a session, one of its departures, one order of all seats.

What belongs to a call lies in the call's partition. The order of seats is one key for all calls, so
it changes in a step of its own: a seat is marked before it is taken, and what is due is compared
with the session before anybody acts on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, TypeVar

import msgspec

from relay import wire
from relay.broker import scripts
from relay.broker.redis_broker import RedisBroker
from relay.broker.seats import Departure, Due, Joined, Seat, Taken
from relay.calls import Participant, Session
from relay.tasks import together

__all__ = ["RedisSessions"]

T = TypeVar("T")

LEASE_S: Final = 10.0
_SESSION: Final = "session"
_PARTICIPANT: Final = "u:"


class RedisSessions:
    """The sessions of a relay that runs on Redis; it speaks through the broker's connection."""

    def __init__(self, broker: RedisBroker, *, lease_s: float = LEASE_S) -> None:
        self._redis = broker.commands
        self._keyspace = broker.keyspace
        self._node = broker.node
        self._lease_ms = int(lease_s * 1000)
        self._has_lease = False

    async def join(self, cid: str, session: Session, participant: Participant) -> Joined:
        """Take a seat."""
        kept, taken = await self._redis.run(
            scripts.JOIN,
            [self._keyspace.session(cid)],
            _PARTICIPANT + participant.user_id,
            wire.encode(participant),
            wire.encode(session),
        )
        return Joined(_read(kept, Session), _participant(taken))

    async def sessions(self, cids: Collection[str]) -> dict[str, Session]:
        """Return the sessions of calls."""
        wanted = list(dict.fromkeys(cids))
        replies = await together(
            self._redis.request("HGETALL", self._keyspace.session(cid)) for cid in wanted
        )
        return {cid: _session(flat) for cid, flat in zip(wanted, replies, strict=True) if flat}

    async def end(self, cid: str, session_id: str) -> None:
        """End a session, unless another one has begun since."""
        key = self._keyspace.session(cid)
        text = await self._redis.request("HGET", key, _SESSION)
        if text is not None and _read(text, Session).id == session_id:
            await self._redis.run(scripts.END, [key], text)

    async def mark(self, seats: Collection[Seat], after_s: float) -> None:
        """Make seats due in so many seconds."""
        await self._move([(_member(seat), "") for seat in seats], after_s)

    async def move(self, dues: Collection[Due], after_s: float | None) -> None:
        """Make seats due again later, or never, unless they were marked meanwhile."""
        await self._move([(_member(due.seat), due.mark) for due in dues], after_s)

    async def _move(self, marks: Sequence[tuple[str, str]], after_s: float | None) -> None:
        if marks:
            after_ms = "" if after_s is None else int(after_s * 1000)
            flat = [part for mark in marks for part in mark]
            await self._redis.run(scripts.SEATS, [self._keyspace.seats], after_ms, *flat)

    async def due(self, count: int, ahead: tuple[float, float] | None = None) -> list[Due]:
        """Return the seats that are due, else those that will be."""
        window = [] if ahead is None else [int(seconds * 1000) for seconds in ahead]
        flat = await self._redis.run(scripts.DUE, [self._keyspace.seats], count, *window)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [Due(_seat(member), mark.decode()) for member, mark in pairs]

    async def look(self, seats: Sequence[Seat]) -> list[Taken | Departure | None]:
        """Return what is in each seat."""
        return await together(self._look(seat) for seat in seats)

    async def _look(self, seat: Seat) -> Taken | Departure | None:
        field = _PARTICIPANT + seat.user_id
        [session, state], left = await asyncio.gather(
            self._redis.request("HMGET", self._keyspace.session(seat.cid), _SESSION, field),
            self._redis.request("HGET", self._keyspace.departures(seat.cid), seat.user_id),
        )
        if left is not None:
            return _departure(left)
        if session is None or state is None:
            return None
        return Taken(Joined(_read(session, Session), _participant(state)), state)

    async def leave(self, seat: Seat, taken: Taken, left_at: int) -> Departure | None:
        """Make a participant leave, unless the seat changed.

        After an unknown outcome None: what happened is found when the seat is looked at again.
        """
        session, participant = taken.joined
        departure = Departure(participant, session, left_at)
        reply = await self._redis.run(
            scripts.LEAVE,
            [self._keyspace.session(seat.cid), self._keyspace.departures(seat.cid)],
            _PARTICIPANT + seat.user_id,
            taken.state,
            seat.user_id,
            wire.encode(departure),
        )
        return None if reply is None else _departure(reply)

    async def settle(self, seat: Seat) -> None:
        """Forget a departure."""
        await self._redis.request("HDEL", self._keyspace.departures(seat.cid), seat.user_id)

    async def lead(self) -> bool:
        """Take or renew the lease."""
        self._has_lease = await self._lease(self._lease_ms)
        return self._has_lease

    async def aclose(self) -> None:
        """Give the lease back, so that another process takes over at once."""
        if self._has_lease:
            self._has_lease = False
            await self._lease(0)

    async def _lease(self, milliseconds: int) -> bool:
        held = await self._redis.run(
            scripts.LEASE, [self._keyspace.seats_lease], self._node, milliseconds
        )
        return bool(held)


def _member(seat: Seat) -> str:
    """Return a seat as the order names it: neither part may hold a space."""
    return f"{seat.cid} {seat.user_id}"


def _seat(member: bytes) -> Seat:
    cid, _, user_id = member.decode().partition(" ")
    return Seat(cid, user_id)


def _read(text: bytes, kind: type[T]) -> T:
    return msgspec.convert(wire.decode(text), kind)


def _participant(state: bytes) -> Participant:
    """Read what stands in a seat: how often its user has joined, a colon, the participant."""
    return _read(state.partition(b":")[2], Participant)


def _departure(text: bytes) -> Departure:
    """Read a departure: whether it was the last one (0 or 1), and then the rest."""
    return msgspec.structs.replace(_read(text[1:], Departure), was_last=text[:1] == b"1")


def _session(flat: list[bytes]) -> Session:
    """Read a whole session."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    session = _read(fields.pop(_SESSION.encode()), Session)
    there = sorted(map(_participant, fields.values()), key=lambda one: (one.joined_at, one.user_id))
    return msgspec.structs.replace(session, participants=tuple(there))
