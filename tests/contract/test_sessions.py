"""Who is in which call's session, which seats are due, and who left."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Broker
from relay.broker.seats import Departure, Seat, Sessions, Taken
from relay.calls import Participant, Session
from tests.contract.harness import CID, OTHER, Rig

pytestmark = pytest.mark.anyio

ANN, BOB = Seat(CID, "ann"), Seat(CID, "böb")


@pytest.fixture
def sessions(rig: Rig, broker: Broker) -> Sessions:
    return rig.sessions(broker)


def session(name: str = "one") -> Session:
    return Session(id=name, started_at=1_800_000_000_000_000_001)


def participant(user_id: str = "ann", name: str = "", joined_at: int = 10**18 + 7) -> Participant:
    return Participant(
        user_id=user_id, user_session_id=name or f"{user_id}-1", role="user", joined_at=joined_at
    )


async def taken(sessions: Sessions, seat: Seat) -> Taken:
    [found] = await sessions.look([seat])
    assert isinstance(found, Taken)
    return found


# -- joining --------------------------------------------------------------------------------------


async def test_the_first_one_to_join_begins_the_session(sessions: Sessions) -> None:
    assert await sessions.join(CID, session(), participant()) == (session(), participant())
    bob = participant("böb", joined_at=10**18)
    assert await sessions.join(CID, session("two"), bob) == (session(), bob)
    assert await sessions.sessions([CID, OTHER, CID]) == {
        CID: Session(id="one", started_at=session().started_at, participants=(bob, participant()))
    }


async def test_a_user_has_one_seat(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    again = await sessions.join(CID, session(), participant(name="ann-2"))
    assert again.participant == participant()
    [there] = (await sessions.sessions([CID])).values()
    assert there.participants == (participant(),)


async def test_calls_have_their_own_sessions(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    await sessions.join(OTHER, session("two"), participant())
    found = await sessions.sessions([OTHER, CID])
    assert {cid: one.id for cid, one in found.items()} == {CID: "one", OTHER: "two"}


async def test_a_session_ends_when_it_is_the_one_that_is_meant(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    await sessions.end(CID, "another")
    assert CID in await sessions.sessions([CID])
    await sessions.end(CID, "one")
    await sessions.end(OTHER, "none")
    assert await sessions.sessions([CID, OTHER]) == {}
    assert await sessions.look([ANN]) == [None]


# -- leaving --------------------------------------------------------------------------------------


async def test_who_leaves_is_a_departure_until_that_is_settled(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    await sessions.join(CID, session(), participant("böb"))
    departure = await sessions.leave(ANN, await taken(sessions, ANN), 7)
    assert departure == Departure(participant(), session(), 7, was_last=False)
    assert await sessions.look([ANN, BOB]) == [departure, await taken(sessions, BOB)]
    await sessions.settle(ANN)
    assert await sessions.look([ANN]) == [None]
    assert [p.user_id for p in (await sessions.sessions([CID]))[CID].participants] == ["böb"]


async def test_the_last_one_to_leave_ends_the_session(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    departure = await sessions.leave(ANN, await taken(sessions, ANN), 7)
    assert departure is not None
    assert departure.was_last
    assert await sessions.sessions([CID]) == {}
    assert await sessions.look([ANN]) == [departure]
    assert (await sessions.join(CID, session("two"), participant("böb"))).session.id == "two"


async def test_a_seat_is_left_once(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    seen = await taken(sessions, ANN)
    outcomes = await asyncio.gather(*(sessions.leave(ANN, seen, n) for n in range(5)))
    assert sum(outcome is not None for outcome in outcomes) == 1


async def test_who_joined_again_does_not_leave_by_an_older_look(sessions: Sessions) -> None:
    await sessions.join(CID, session(), participant())
    seen = await taken(sessions, ANN)
    await sessions.join(CID, session(), participant(name="ann-2"))
    assert await sessions.leave(ANN, seen, 7) is None
    assert CID in await sessions.sessions([CID])
    assert await sessions.leave(ANN, await taken(sessions, ANN), 7) is not None


async def test_who_came_back_leaves_again_after_the_first_time_is_settled(
    sessions: Sessions,
) -> None:
    await sessions.join(CID, session(), participant())
    first = await sessions.leave(ANN, await taken(sessions, ANN), 7)
    await sessions.join(CID, session("two"), participant(name="ann-2"))
    assert await sessions.look([ANN]) == [first]
    await sessions.settle(ANN)
    again = await taken(sessions, ANN)
    assert again.joined.participant.user_session_id == "ann-2"
    second = await sessions.leave(ANN, again, 8)
    assert second is not None
    assert second.session.id == "two"


# -- which seats are due --------------------------------------------------------------------------


async def test_a_seat_is_due_when_its_time_has_come(sessions: Sessions, rig: Rig) -> None:
    await sessions.mark([ANN], 2.0)
    await sessions.mark([BOB], 1000)
    assert await sessions.due(10) == []
    await rig.pass_time(2.05)
    assert [due.seat for due in await sessions.due(10)] == [ANN]


async def test_the_longest_due_come_first_and_not_more_than_asked(
    sessions: Sessions, rig: Rig
) -> None:
    seats = [Seat(f"default:{n}", "ann") for n in range(5)]
    for seat in reversed(seats):
        await sessions.mark([seat], 0.01)
        await rig.pass_time(0.002)
    await rig.pass_time(0.02)
    assert [due.seat for due in await sessions.due(3)] == seats[:1:-1]


async def test_without_any_that_are_due_those_ahead_are_given(sessions: Sessions, rig: Rig) -> None:
    await sessions.mark([ANN], 5)
    await sessions.mark([BOB], 100)
    far = Seat(OTHER, "ann")
    await sessions.mark([far], 700)
    assert [due.seat for due in await sessions.due(10, (50, 600))] == [BOB]
    assert [due.seat for due in await sessions.due(10, (1, 800))] == [ANN, BOB, far]
    assert await sessions.due(10, (200, 600)) == []
    assert await sessions.due(10, (200, 100)) == []
    await sessions.mark([far], 0.001)
    await rig.pass_time(0.005)
    assert [due.seat for due in await sessions.due(10, (50, 600))] == [far]


async def test_seats_are_due_again_later_or_never(sessions: Sessions, rig: Rig) -> None:
    await sessions.mark([ANN, BOB], 0.001)
    await rig.pass_time(0.005)
    first, second = await sessions.due(10)
    await sessions.move([first], 1000)
    await sessions.move([second], None)
    assert await sessions.due(10) == []
    assert [due.seat for due in await sessions.due(10, (500, 2000))] == [first.seat]
    assert await sessions.due(10, (0, 400)) == []


async def test_what_was_marked_meanwhile_stays_so(sessions: Sessions, rig: Rig) -> None:
    await sessions.mark([ANN, BOB], 0.001)
    await rig.pass_time(0.005)
    dues = await sessions.due(10)
    await sessions.mark([ANN, BOB], 0.02)
    await sessions.move(dues[:1], 1000)
    await sessions.move(dues[1:], None)
    await sessions.move([], 5)
    await rig.pass_time(0.03)
    assert {due.seat for due in await sessions.due(10)} == {ANN, BOB}


async def test_one_process_leads(sessions: Sessions) -> None:
    assert await sessions.lead()
    assert await sessions.lead()
    await sessions.aclose()
