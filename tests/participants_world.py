"""Participants with their collaborators: an embedded broker, sockets that are said to be there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

from relay import wire
from relay.announcer import Announcer
from relay.broker import Limits
from relay.broker.memory import MemoryBroker, MemoryStore
from relay.broker.memory_sessions import MemorySessions
from relay.broker.seats import Seat
from relay.errors import Unavailable
from relay.events import Event, Publication
from relay.participants import Participants
from relay.users import Profile
from tests.contract.harness import CID, OTHER, Recorder

ANN, BOB = Seat(CID, "ann"), Seat(CID, "bob")


def running(cid: str, session_id: str) -> dict[str, Any]:
    """Return the call as ``World`` describes it while that session runs."""
    return {"cid": cid, "current_session_id": session_id, "session": {"id": session_id}}


class Broker(MemoryBroker):
    """A broker of a relay whose processes are ``alive``; publishing fails ``failing`` times."""

    alive = frozenset({"here", "there"})
    failing = 0

    async def nodes(self) -> frozenset[str]:
        return self.alive

    async def publish(self, event: Event) -> Publication:
        if self.failing:
            self.failing -= 1
            raise Unavailable("away")
        return await super().publish(event)


class Sockets:
    """Which seats sockets occupy; ``meanwhile`` runs while that is being asked."""

    def __init__(self) -> None:
        self.taken: set[Seat] = set()
        self.asked: list[list[Seat]] = []
        self.failing = 0
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def occupied(self, seats: Sequence[Seat]) -> set[Seat]:
        self.asked.append(list(seats))
        if self.failing:
            self.failing -= 1
            raise Unavailable("a process does not answer")
        found = self.taken & set(seats)
        if self.meanwhile is not None:
            await self.meanwhile()
        return found


class World:
    """The service with its collaborators, and a clock in nanoseconds that goes with the loop's."""

    def __init__(self) -> None:
        self.broker = Broker(Limits(), self.clock, "here")
        self.recorder = Recorder()
        self.sessions = MemorySessions(self.clock)
        self.store = MemoryStore()
        self.sockets = Sockets()
        self.created = {CID, OTHER}
        self.describe_error: Exception | None = None
        self.numbers = itertools.count(1)
        self.service = self.make()

    def make(self) -> Participants:
        return Participants(
            sessions=self.sessions,
            broker=self.broker,
            store=self.store,
            announcer=Announcer(self.broker, clock=self.clock, new_id=self.new_id),
            occupancy=self.sockets,
            describe=self.describe,
            clock=self.clock,
            new_id=self.new_id,
            rng=Random(7),
        )

    @staticmethod
    def clock() -> int:
        return 10**18 + int(asyncio.get_running_loop().time() * 1e9)

    def new_id(self) -> str:
        return f"id-{next(self.numbers)}"

    async def describe(self, cid: str) -> dict[str, Any] | None:
        if self.describe_error is not None:
            raise self.describe_error
        if cid not in self.created:
            return None
        session = (await self.sessions.sessions([cid])).get(cid)
        if session is None:
            return {"cid": cid, "current_session_id": ""}
        return running(cid, session.id)

    async def join(self, user_id: str = "ann", cid: str = CID) -> Any:
        """Let a user's socket watch a call, and the user join it."""
        self.sockets.taken.add(Seat(cid, user_id))
        user = await self.store.save_user(user_id, Profile(name=user_id.title()), self.clock())
        return await self.service.join(cid, user, "user")

    def leave(self, seat: Seat = ANN) -> None:
        """Close the last socket of a user, as its process notices."""
        self.sockets.taken.discard(seat)
        self.service.vacated(seat)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [wire.decode(body) for _, _, body in self.recorder.publications]

    @property
    def said(self) -> list[tuple[str, str]]:
        """The types that were announced, and of whom."""
        return [
            (e["type"], e["participant"]["user"]["id"] if "participant" in e else "")
            for e in self.events
        ]

    async def hear_after(self, seconds: float) -> list[tuple[str, str]]:
        """Return what was announced by the end of some time, from now on."""
        before = len(self.recorder.publications)
        await asyncio.sleep(seconds)
        return self.said[before:]
