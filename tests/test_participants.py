"""Who takes part in calls, on a loop where a minute takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay import participants, wire
from relay.broker.memory_sessions import MemorySessions
from relay.broker.seats import Departure, Seat, Taken
from relay.errors import Unavailable
from relay.users import User
from tests.contract.harness import CID, OTHER
from tests.gateway.fakes import FAKE_TIME, turns
from tests.participants_world import ANN, BOB, World, running

pytestmark = pytest.mark.anyio

JOINED, LEFT = "call.session_participant_joined", "call.session_participant_left"
STARTED, ENDED = "call.session_started", "call.session_ended"


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return FAKE_TIME


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.broker.start(world.recorder, world.recorder.on_live)
    for cid in (CID, OTHER):
        await world.broker.subscribe(cid)
    world.service.start()
    await asyncio.sleep(7)  # the first look at all is over
    yield world
    await world.service.aclose()
    await world.broker.aclose()


# -- joining --------------------------------------------------------------------------------------


async def test_the_first_one_starts_the_session_and_everybody_is_announced(world: World) -> None:
    session = await world.join()
    await world.join("bob")
    await turns()
    assert world.said == [(STARTED, ""), (JOINED, "ann"), (JOINED, "bob")]
    started, joined, other = world.events
    assert started["session_id"] == joined["session_id"] == other["session_id"] == session.id
    assert started["call"] == running(CID, session.id)
    shown = joined["participant"]
    [kept] = session.participants
    assert shown["user"]["name"] == "Ann"
    assert (shown["user_session_id"], shown["role"]) == (kept.user_session_id, "user")
    assert shown["joined_at"] == wire.rfc3339(kept.joined_at)
    found = await world.service.sessions([CID, OTHER])
    assert [one.user_id for one in found[CID].participants] == ["ann", "bob"]
    assert OTHER not in found


async def test_joining_again_is_no_news(world: World) -> None:
    first = await world.join()
    again = await world.join()
    assert again == first
    await asyncio.sleep(120)
    assert await world.join() == first
    await turns()
    assert world.said == [(STARTED, ""), (JOINED, "ann")]


async def test_a_join_that_could_not_be_announced_is_announced_by_the_next(world: World) -> None:
    world.broker.failing = 1
    with pytest.raises(Unavailable):
        await world.join()
    world.broker.failing = 0
    await world.join()
    await turns()
    assert world.said == [(STARTED, ""), (JOINED, "ann")]


async def test_a_start_that_could_not_be_announced_is_announced_by_who_joins_next(
    world: World,
) -> None:
    world.broker.failing = 1
    with pytest.raises(Unavailable):
        await world.join()
    await world.join("bob")
    await turns()
    assert world.said == [(STARTED, ""), (JOINED, "bob")]


@pytest.mark.parametrize(("waits_s", "start"), [(7000, [(STARTED, "")]), (7300, [])])
async def test_a_start_is_made_up_for_as_long_as_its_id_is_remembered(
    world: World, waits_s: float, start: list[tuple[str, str]]
) -> None:
    world.broker.failing = 1
    with pytest.raises(Unavailable):
        await world.join()
    await asyncio.sleep(waits_s)
    await world.join("bob")
    await turns()
    assert world.said == [*start, (JOINED, "bob")]


async def test_a_start_that_is_known_to_be_announced_is_not_made_up_again(world: World) -> None:
    await world.join()
    world.describe_error = RuntimeError("nobody has to describe the call for the others")
    await world.join("bob")
    await turns()
    assert world.said == [(STARTED, ""), (JOINED, "ann"), (JOINED, "bob")]


async def test_half_a_join_is_completed_by_the_next(world: World) -> None:
    await world.join("bob")
    await asyncio.sleep(120)
    world.broker.failing = 1
    with pytest.raises(Unavailable):
        await world.join()
    await world.join()
    await turns()
    assert world.said == [(STARTED, ""), (JOINED, "bob"), (JOINED, "ann")]


async def test_a_call_that_was_never_created_has_participants_but_no_start(world: World) -> None:
    world.created.clear()
    await world.join()
    world.leave()
    await asyncio.sleep(10)
    assert world.said == [(JOINED, "ann"), (LEFT, "ann")]


# -- leaving --------------------------------------------------------------------------------------


async def test_who_has_no_socket_left_leaves_after_the_grace(world: World) -> None:
    session = await world.join()
    await world.join("bob")
    await asyncio.sleep(60)
    world.leave()
    assert await world.hear_after(4.9) == []
    assert await world.hear_after(1.3) == [(LEFT, "ann")]
    left = world.events[-1]
    assert left["session_id"] == session.id
    assert left["participant"]["user"]["name"] == "Ann"
    assert 65 <= left["duration_seconds"] <= 66
    assert left["reason"] == "disconnected"
    [there] = (await world.service.sessions([CID])).values()
    assert [one.user_id for one in there.participants] == ["bob"]


async def test_the_last_one_out_ends_the_session(world: World) -> None:
    session = await world.join()
    await world.join("bob")
    world.leave(BOB)
    world.leave(ANN)
    heard = await world.hear_after(10)
    assert sorted(heard[-3:-1]) == [(LEFT, "ann"), (LEFT, "bob")]
    assert heard[-1] == (ENDED, "")
    assert world.events[-1]["session_id"] == session.id
    assert world.events[-1]["call"] == {"cid": CID, "current_session_id": ""}
    assert await world.service.sessions([CID]) == {}
    assert world.sessions._marks == {}
    assert (await world.join()).id != session.id


async def test_who_is_back_within_the_grace_has_not_left(world: World) -> None:
    await world.join()
    await asyncio.sleep(60)
    world.leave()
    await asyncio.sleep(3)
    world.sockets.taken.add(ANN)
    assert await world.hear_after(30) == []


async def test_who_joins_and_has_no_socket_leaves_too(world: World) -> None:
    await world.join()
    world.sockets.taken.clear()
    assert await world.hear_after(7) == [(LEFT, "ann"), (ENDED, "")]


async def test_who_joins_while_being_looked_at_stays(world: World) -> None:
    await world.join()
    await asyncio.sleep(20)
    world.leave()
    world.sockets.meanwhile = world.join
    assert await world.hear_after(7) == []
    world.sockets.meanwhile = None
    assert await world.hear_after(20) == []
    world.leave()
    assert await world.hear_after(7) == [(LEFT, "ann"), (ENDED, "")]


async def test_a_process_that_dies_takes_its_participants_with_it(world: World) -> None:
    await world.join()
    await world.join("bob", OTHER)
    await asyncio.sleep(60)
    world.sockets.taken = {Seat(OTHER, "bob")}
    assert await world.hear_after(30) == []  # nobody said a word
    world.broker.alive = frozenset({"here"})
    assert await world.hear_after(4.9) == []
    assert await world.hear_after(4) == [(LEFT, "ann"), (ENDED, "")]


async def test_a_look_at_all_keeps_everybodys_grace(world: World) -> None:
    await world.join()
    await asyncio.sleep(60)
    world.broker.alive = frozenset({"here"})
    await asyncio.sleep(4)
    world.leave()  # one second before the look begins
    assert await world.hear_after(4.5) == []
    assert await world.hear_after(2) == [(LEFT, "ann"), (ENDED, "")]


async def test_a_seat_is_looked_at_now_and_then_although_nobody_says_anything(
    world: World,
) -> None:
    await world.join()
    await asyncio.sleep(60)
    world.sockets.taken.clear()
    assert await world.hear_after(500) == []
    assert await world.hear_after(100) == [(LEFT, "ann"), (ENDED, "")]


async def test_a_look_at_all_is_done_in_pieces_and_once(world: World) -> None:
    seats = [Seat(CID, f"user{n}") for n in range(450)]
    for seat in seats:
        await world.join(seat.user_id)
    await asyncio.sleep(60)
    world.sockets.asked.clear()
    world.broker.alive = frozenset({"here"})
    await asyncio.sleep(60)
    assert [len(asked) for asked in world.sockets.asked] == [200, 200, 50]
    assert {seat for asked in world.sockets.asked for seat in asked} == set(seats)


# -- trouble --------------------------------------------------------------------------------------


async def test_nobody_leaves_while_a_process_does_not_answer(world: World) -> None:
    await world.join()
    await asyncio.sleep(60)
    world.sockets.failing = 3
    world.leave()
    assert await world.hear_after(15) == []
    assert await world.hear_after(30) == [(LEFT, "ann"), (ENDED, "")]


async def test_a_mistake_in_describing_a_call_stops_nothing(world: World) -> None:
    await world.join()
    await world.join("bob", OTHER)
    await asyncio.sleep(60)
    world.describe_error = RuntimeError("a mistake")
    world.leave()
    world.leave(Seat(OTHER, "bob"))
    await asyncio.sleep(10)
    world.describe_error = None
    await asyncio.sleep(30)
    assert sorted(world.said[4:]) == [(ENDED, ""), (ENDED, ""), (LEFT, "ann"), (LEFT, "bob")]


@pytest.mark.parametrize("failing", [1, 2, 5])
async def test_leaving_is_announced_once_although_the_broker_was_away(
    world: World, failing: int
) -> None:
    await world.join()
    await asyncio.sleep(60)
    world.leave()
    world.broker.failing = failing
    assert await world.hear_after(120) == [(LEFT, "ann"), (ENDED, "")]
    assert world.sessions._marks == {}
    assert world.sessions._departures == {}


async def test_a_departure_that_somebody_left_half_done_is_finished(world: World) -> None:
    await world.join()
    await asyncio.sleep(20)
    [taken] = await world.sessions.look([ANN])
    assert isinstance(taken, Taken)
    assert isinstance(await world.sessions.leave(ANN, taken, world.clock()), Departure)
    session = await world.join()  # back before that was noticed
    world.leave()
    world.sockets.taken.add(ANN)
    assert (await world.hear_after(60))[-2:] == [(LEFT, "ann"), (ENDED, "")]
    assert [e["session_id"] == session.id for e in world.events[-2:]] == [False, False]
    assert (await world.service.sessions([CID]))[CID].id == session.id
    world.leave()
    assert await world.hear_after(10) == [(LEFT, "ann"), (ENDED, "")]
    assert world.events[-1]["session_id"] == session.id


async def test_an_end_that_is_said_late_does_not_hide_the_session_that_runs(world: World) -> None:
    first = await world.join()
    await asyncio.sleep(60)
    world.leave()
    world.broker.failing = 1
    await asyncio.sleep(6)  # ann has left, and that could not be said
    second = await world.join("bob")
    heard = await world.hear_after(30)
    assert heard[-2:] == [(LEFT, "ann"), (ENDED, "")]
    assert world.events[-1]["session_id"] == first.id
    assert world.events[-1]["call"] == running(CID, second.id)


async def test_one_that_takes_the_lease_looks_at_all_after_the_grace(world: World) -> None:
    await world.join()
    await asyncio.sleep(20)
    await world.service.aclose()
    world.sockets.taken.clear()
    world.service = world.make()
    world.service.start()
    assert await world.hear_after(4.9) == []
    assert await world.hear_after(3) == [(LEFT, "ann"), (ENDED, "")]


async def test_seats_that_are_due_at_a_restart_have_the_grace_to_be_taken_again(
    world: World,
) -> None:
    await world.join()
    await asyncio.sleep(20)
    await world.service.aclose()
    world.sockets.taken.clear()
    await asyncio.sleep(3600)
    world.service = world.make()
    world.service.start()
    await asyncio.sleep(3)
    world.sockets.taken.add(ANN)
    assert await world.hear_after(60) == []


async def test_what_was_left_is_marked_although_the_service_stops(world: World) -> None:
    await world.join()
    await asyncio.sleep(20)
    world.leave()
    await world.service.aclose()
    await asyncio.sleep(6)
    assert [due.seat for due in await world.sessions.due(10)] == [ANN]
    world.service = world.make()


class Forgetful(MemorySessions):
    """Sessions in a Redis that is away a few times when seats are marked."""

    failing = 0
    trouble: type[Exception] = Unavailable

    async def mark(self, seats: Any, after_s: float) -> None:
        if self.failing:
            self.failing -= 1
            raise self.trouble("away")
        await super().mark(seats, after_s)


@pytest.mark.parametrize("trouble", [Unavailable, ValueError])
async def test_a_vacated_seat_is_marked_when_redis_is_back(
    world: World, monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]
) -> None:
    await world.service.aclose()
    monkeypatch.setattr(participants, "AT_ONCE", 2)
    world.sessions = Forgetful(world.clock)
    world.sessions.trouble = trouble
    world.service = world.make()
    world.service.start()
    for user_id in ("ann", "bob", "joe"):
        await world.join(user_id)
    await asyncio.sleep(20)
    world.sessions.failing = 3
    for user_id in ("ann", "bob", "joe"):
        world.leave(Seat(CID, user_id))
    heard = await world.hear_after(15)
    assert sorted(heard[:3]) == [(LEFT, "ann"), (LEFT, "bob"), (LEFT, "joe")]
    assert heard[3:] == [(ENDED, "")]


# -- the end of a call ----------------------------------------------------------------------------


async def test_a_call_that_ends_takes_its_session_along(world: World) -> None:
    session = await world.join()
    await world.join("bob")
    await turns()
    await world.service.end(CID)
    await world.service.end(OTHER)
    await turns()
    assert world.said[3:] == [(ENDED, "")]
    assert world.events[-1]["session_id"] == session.id
    assert await world.service.sessions([CID]) == {}
    assert await world.hear_after(700) == []
    assert world.sessions._marks == {}


async def test_an_end_that_could_not_be_announced_can_be_repeated(world: World) -> None:
    await world.join()
    world.broker.failing = 1
    with pytest.raises(Unavailable):
        await world.service.end(CID)
    await world.service.end(CID)
    await turns()
    assert world.said[2:] == [(ENDED, "")]


async def test_a_user_that_the_store_has_forgotten_leaves_by_its_id(world: World) -> None:
    nobody = User(id="nobody", created_at=1, updated_at=1)
    await world.service.join(CID, nobody, "guest")
    assert (await world.hear_after(8))[-2:] == [(LEFT, "nobody"), (ENDED, "")]
