"""Who takes part in a call: joined by a request, and there while a socket of theirs watches it.

A user who joins takes a seat in the call's session. What is announced: ``call.session_started`` and
``call.session_participant_joined`` at once; ``call.session_participant_left`` and, after the last
one, ``call.session_ended`` when no socket of the user has watched the call for the grace.

One process of all (it holds a lease) looks at the seats that are due. A seat is due a grace after
it was taken and after the last socket of a process has left it; every seat is looked at anew, for
sockets that went without a word, when a process has died and when another one takes the lease.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any, Final, Protocol

import msgspec

from relay import logs, users
from relay.announcer import REPEATS_S, Announcer, is_recent
from relay.broker import Broker, Store
from relay.broker.seats import Departure, Due, Joined, Seat, Sessions, Taken
from relay.calls import Participant, Session
from relay.errors import Unavailable
from relay.retry import backoff
from relay.tasks import Tasks, together
from relay.users import User

log = logs.get(__name__)

GRACE_S: Final = 5.0
"""How long a user may be without a socket: Stream's clients are back and watch within three."""
TICK_S: Final = 1.0
AT_ONCE: Final = 200
RECHECK_S: Final = 600.0
"""After that long a seat is looked at although nobody said anything."""
LEASE_CHECK_S: Final = 3.0

Describe = Callable[[str], Awaitable[dict[str, Any] | None]]
"""Returns a call as events show it, its times in nanoseconds; None when it was never created."""


class Occupancy(Protocol):
    """The sockets, of all processes."""

    async def occupied(self, seats: Sequence[Seat]) -> set[Seat]:
        """Return the seats whose user has a socket that watches the call.

        Raises ``Unavailable`` when that cannot be told.
        """
        ...


class Participants:
    """The sessions of all calls, as this process sees and serves them."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        broker: Broker,
        store: Store,
        announcer: Announcer,
        occupancy: Occupancy,
        describe: Describe,
        clock: Callable[[], int],
        new_id: Callable[[], str],
        rng: Random,
        grace_s: float = GRACE_S,
        repeats_s: float = REPEATS_S,
    ) -> None:
        self._sessions = sessions
        self._broker = broker
        self._store = store
        self._announcer = announcer
        self._occupancy = occupancy
        self._describe = describe
        self._clock = clock
        self._new_id = new_id
        self._random = rng
        self._grace_s = grace_s
        self._repeats_s = repeats_s
        self._tasks = Tasks("participants")
        self._vacated: set[Seat] = set()
        self._news = asyncio.Event()
        self._alive: frozenset[str] = frozenset()
        self._look_from: float | None = None

    def start(self) -> None:
        """Begin to look after the seats."""
        self._tasks.keep(self._mark_vacated, "marking seats that were left")
        self._tasks.spawn(self._look_after())

    async def aclose(self) -> None:
        """Say what is left to say, and leave the seats to another process."""
        await self._tasks.aclose()
        try:
            await self._sessions.mark(self._vacated, self._grace_s)
            await self._sessions.aclose()
        except Unavailable as error:
            log.info("the seats are found by the next process", reason=error.message)

    # -- what the API asks for --------------------------------------------------------------------

    async def join(self, cid: str, user: User, role: str) -> Session:
        """Let a user take part whose socket watches the call; return the session it is in then.

        Without a socket, or without one any more, the participant leaves again after the grace.
        Raises ``Unavailable``; joining again is then safe.
        """
        now = self._clock()
        new = Session(id=self._new_id(), started_at=now)
        mine = Participant(
            user_id=user.id, user_session_id=self._new_id(), role=role, joined_at=now
        )
        await self._sessions.mark([Seat(cid, user.id)], self._grace_s)
        joined = await self._sessions.join(cid, new, mine)
        await self._announce_join(cid, user, joined, new.id, mine.user_session_id)
        found = await self.sessions([cid])
        alone = msgspec.structs.replace(joined.session, participants=(joined.participant,))
        return found.get(cid, alone)

    async def sessions(self, cids: Collection[str]) -> dict[str, Session]:
        """Return the sessions of those calls that have one."""
        return await self._sessions.sessions(cids)

    async def end(self, cid: str) -> None:
        """End the session of a call that is over, if it has one."""
        session = (await self.sessions([cid])).get(cid)
        if session is not None:
            await self._announce_end(cid, session)
            await self._sessions.end(cid, session.id)

    def vacated(self, seat: Seat) -> None:
        """Learn that the last socket of this process has left a seat."""
        self._vacated.add(seat)
        self._news.set()

    # -- announcing -------------------------------------------------------------------------------

    async def _announce_join(
        self, cid: str, user: User, joined: Joined, new_session: str, new_participant: str
    ) -> None:
        session, participant = joined
        repeated = participant.user_session_id != new_participant
        if session.id == new_session or self._may_lack_start(cid, session):
            await self._announce_with_call(cid, "call.session_started", session, "started")
        if not repeated or self._is_recent(participant.joined_at):
            fields = {"session_id": session.id, "participant": _shown(participant, user)}
            await self._announcer.announce(
                cid,
                "call.session_participant_joined",
                fields,
                event_id=f"{participant.user_session_id}-joined",
            )

    def _may_lack_start(self, cid: str, session: Session) -> bool:
        """Tell whether who began the session may not have come as far as to announce it."""
        if self._announcer.has_announced(cid, f"{session.id}-started"):
            return False
        return self._is_recent(session.started_at)

    def _is_recent(self, since: int) -> bool:
        return is_recent(since, self._clock(), self._repeats_s)

    async def _announce_departure(self, cid: str, departure: Departure) -> None:
        """Announce that somebody left, and the end of the session after the last one."""
        participant, session = departure.participant, departure.session
        user = await self._user(participant)
        seconds = max(0, departure.left_at - participant.joined_at) // 10**9
        fields = {
            "session_id": session.id,
            "participant": _shown(participant, user),
            "duration_seconds": seconds,
            "reason": "disconnected",
        }
        await self._announcer.announce(
            cid,
            "call.session_participant_left",
            fields,
            event_id=f"{participant.user_session_id}-left",
        )
        if departure.was_last:
            await self._announce_end(cid, session)

    async def _announce_end(self, cid: str, session: Session) -> None:
        await self._announce_with_call(cid, "call.session_ended", session, "ended")

    async def _announce_with_call(self, cid: str, kind: str, session: Session, what: str) -> None:
        """Announce what has a ``call`` in it; clients fail without one, so a call there must be."""
        call = await self._describe(cid)
        if call is not None:
            if what == "ended" and call["current_session_id"] == session.id:
                # It runs until this is said; when this comes late, another one may run already.
                call = {**call, "current_session_id": ""}
                call.pop("session", None)
            fields: Mapping[str, Any] = {"call": call, "session_id": session.id}
            await self._announcer.announce(cid, kind, fields, event_id=f"{session.id}-{what}")

    async def _user(self, participant: Participant) -> User:
        user = await self._store.user(participant.user_id)
        at = participant.joined_at
        return user or User(id=participant.user_id, created_at=at, updated_at=at)

    # -- looking after the seats ------------------------------------------------------------------

    async def _mark_vacated(self) -> None:
        """Make the seats that sockets of this process have left due, until it is done."""
        failures = 0
        while True:
            while batch := set(sorted(self._vacated)[:AT_ONCE]):
                try:
                    await self._sessions.mark(batch, self._grace_s)
                except Unavailable:
                    failures += 1
                    await asyncio.sleep(backoff(failures, self._random))
                else:
                    failures = 0
                    self._vacated -= batch
            await self._news.wait()
            self._news.clear()

    async def _look_after(self) -> None:
        """Look at seats whenever this process holds the lease; start over after any trouble."""
        failures = 0
        while True:
            try:
                await self._lead()
                # Perhaps everybody's sockets have just been closed, or nobody could be heard of.
                await asyncio.sleep(self._grace_s)
                self._alive = await self._broker.nodes()
                self._look_from = _now()
                while await self._sessions.lead():
                    await self._notice_deaths()
                    if not await self._look():
                        await asyncio.sleep(TICK_S)
                    failures = 0
            except Unavailable as error:
                failures += 1
                log.info("the seats have to wait", reason=error.message)
            except Exception:
                failures += 1
                log.exception("looking at seats failed")
            await asyncio.sleep(backoff(max(1, failures), self._random))

    async def _lead(self) -> None:
        """Return once this process holds the lease."""
        while True:
            if await self._sessions.lead():
                return
            await asyncio.sleep(LEASE_CHECK_S)

    async def _notice_deaths(self) -> None:
        """Look at every seat once the users of a process that died have had time to come back."""
        alive = await self._broker.nodes()
        if self._alive - alive:
            log.info("a process is gone: looking at every seat", nodes=sorted(self._alive - alive))
            self._look_from = _now() + self._grace_s
        self._alive = alive

    def _ahead(self) -> tuple[float, float] | None:
        """Return when those seats are due, in seconds from now, that a look at all still misses.

        What was looked at since it began is due a whole interval after that; what has only been
        left or taken is due within the grace, and keeps it.
        """
        if self._look_from is None or _now() < self._look_from:
            return None
        return self._grace_s, RECHECK_S - (_now() - self._look_from)

    async def _look(self) -> bool:
        """Look at the next seats; tell whether there were any."""
        ahead = self._ahead()
        dues = await self._sessions.due(AT_ONCE, ahead)
        if not dues:
            if ahead is not None:
                self._look_from = None
            return False
        states = await self._sessions.look([due.seat for due in dues])
        found = dict(zip(dues, states, strict=True))
        taken = [due.seat for due, state in found.items() if isinstance(state, Taken)]
        occupied = await self._occupancy.occupied(taken) if taken else set()
        stay = [due for due in dues if due.seat in occupied]
        await self._sessions.move(stay, RECHECK_S)  # ``_ahead`` reads from it who was looked at
        await self._sessions.move([due for due, state in found.items() if state is None], None)
        gone: defaultdict[str, dict[Due, Taken | Departure]] = defaultdict(dict)
        for due, state in found.items():
            if state is not None and due.seat not in occupied:
                gone[due.seat.cid][due] = state
        await together(self._let_go(states) for states in gone.values())
        return True

    async def _let_go(self, gone: Mapping[Due, Taken | Departure]) -> None:
        """Let participants of one call leave, one after another, so that the last one ends it."""
        for due, state in gone.items():
            if isinstance(state, Departure):  # somebody did not get further than that
                await self._finish(due.seat, state)
                await self._sessions.move([due], self._grace_s)  # the user may have come back
            elif departure := await self._sessions.leave(due.seat, state, self._clock()):
                await self._finish(due.seat, departure)
                await self._sessions.move([due], None)

    async def _finish(self, seat: Seat, departure: Departure) -> None:
        await self._announce_departure(seat.cid, departure)
        await self._sessions.settle(seat)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _shown(participant: Participant, user: User) -> dict[str, Any]:
    """Return Stream's CallParticipantResponse, its times as integer nanoseconds."""
    return {
        "user": users.response(user),
        "user_session_id": participant.user_session_id,
        "role": participant.role,
        "joined_at": participant.joined_at,
    }
