"""What a pong says about the calls of a socket, without any socket."""

from __future__ import annotations

import random

import pytest

from relay.events import Position
from relay.gateway.trail import TICKS_KEPT, Marks, Trail
from tests.gateway.fakes import CID, at

OTHER = "default:other"


class Stage:
    """A call that moves, and a socket that is pinged and answers when told to."""

    def __init__(self, start: int = 0, *, replayed_from: int | None = None) -> None:
        self.marks = Marks()
        self.marks.follow(CID)
        self.top = start
        self.trail = Trail(self.marks.tick)
        begin = start if replayed_from is None else replayed_from
        self.trail.begin(CID, at(begin), replayed=replayed_from is not None)
        self.is_live = replayed_from is None

    def publish(self, count: int = 1) -> None:
        self.top += count

    def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.marks.note(CID, at(self.top))
            self.marks.complete()

    def ping(self) -> int:
        self.trail.pinging(self.marks.tick, lambda _: self.is_live)
        return self.trail.pinged

    def pong(self, ping: int) -> None:
        self.trail.ponged(ping)

    @property
    def position(self) -> Position:
        return self.trail.ticket("node", self.marks).positions[CID]


def test_what_was_not_acknowledged_is_not_had() -> None:
    stage = Stage(5)
    stage.publish(3)
    stage.tick()
    stage.ping()
    stage.publish()
    stage.tick()
    assert stage.position == at(5)


def test_a_pong_acknowledges_what_came_before_its_ping() -> None:
    stage = Stage(5)
    stage.publish(3)
    stage.tick()
    first = stage.ping()
    stage.publish()
    stage.tick()
    second = stage.ping()
    stage.publish()
    stage.tick()
    stage.pong(first)
    assert stage.position == at(8)
    stage.pong(second)
    assert stage.position == at(9)


@pytest.mark.parametrize("forged", [0, 10**9])
def test_a_pong_to_no_ping_says_nothing(forged: int) -> None:
    stage = Stage(5)
    stage.tick()
    first = stage.ping()
    stage.publish()
    stage.tick(2)
    second = stage.ping()
    stage.publish()
    stage.tick()
    stage.pong(second)
    stage.pong(first)  # it comes late: what is had stays so
    stage.pong(forged)
    assert stage.position == at(6)


def test_an_acknowledgement_from_before_the_watch_does_not_count_for_it() -> None:
    stage = Stage(5)
    stage.tick()
    stage.pong(stage.ping())
    stage.publish(10)
    stage.tick()
    ping = stage.ping()
    stage.marks.follow(OTHER)
    stage.trail.begin(OTHER, at(40), replayed=False)
    stage.pong(ping)
    assert stage.trail.ticket("node", stage.marks).positions == {CID: at(15), OTHER: at(40)}


def test_a_mark_from_before_the_watch_does_not_lower_it() -> None:
    stage = Stage(5)
    stage.tick()
    stage.publish(4)
    stage.trail.begin(CID, at(9), replayed=False)
    stage.pong(stage.ping())
    assert stage.position == at(9)


def test_what_was_acknowledged_in_a_later_epoch_counts() -> None:
    stage = Stage(5)
    stage.tick()
    stage.pong(stage.ping())
    stage.marks.note(CID, at(50, "e2"))
    stage.marks.complete()
    stage.pong(stage.ping())
    assert stage.position == at(50, "e2")


def test_what_is_being_replayed_is_not_had() -> None:
    stage = Stage(100, replayed_from=5)
    for _ in range(5):
        stage.tick()
        stage.pong(stage.ping())
        assert stage.trail.is_behind(0)
        assert stage.position == at(5)
    stage.is_live = True
    stage.pong(stage.ping())  # a second one of the tick: its pong may be the first one's
    assert stage.position == at(5)
    stage.tick()
    ping = stage.ping()
    assert stage.trail.is_behind(0)
    stage.pong(ping)
    assert not stage.trail.is_behind(0)
    assert stage.position == at(100)


def test_a_socket_is_behind_that_has_not_acknowledged_in_time() -> None:
    stage = Stage()
    stage.tick(2)
    assert not stage.trail.is_behind(0)
    assert stage.trail.is_behind(stage.trail.began)
    stage.pong(stage.ping())
    assert not stage.trail.is_behind(stage.marks.tick)
    assert stage.trail.is_behind(stage.marks.tick + 1)


def test_one_that_came_later_is_not_behind() -> None:
    marks = Marks()
    marks.complete()
    assert not Trail(marks.tick).is_behind(marks.tick - 1)


def test_what_is_forgotten_is_in_no_ticket() -> None:
    stage = Stage(5, replayed_from=3)
    assert stage.trail.forget(CID)
    assert not stage.trail.forget(CID)
    assert stage.trail.ticket("node", stage.marks).positions == {}
    stage.tick()
    stage.pong(stage.ping())
    assert not stage.trail.is_behind(stage.marks.tick)


def test_marks_are_kept_for_as_long_as_a_socket_may_be_silent() -> None:
    marks = Marks()
    marks.follow(CID)
    for offset in range(3 * TICKS_KEPT):
        marks.note(CID, at(offset))
        marks.complete()
    assert marks.at(CID, marks.tick) == at(3 * TICKS_KEPT - 1)
    assert marks.at(CID, marks.tick - TICKS_KEPT + 1) == at(2 * TICKS_KEPT)
    assert marks.at(CID, 2) is None
    assert len(marks._marks[CID]) <= TICKS_KEPT + 2


def test_a_quiet_call_has_one_mark() -> None:
    marks = Marks()
    marks.follow(CID)
    for _ in range(3 * TICKS_KEPT):
        marks.note(CID, at(7))
        marks.complete()
    assert marks._marks[CID] == [(2, at(7))]
    assert marks.at(CID, marks.tick) == marks.at(CID, 2) == at(7)


def test_a_call_is_noted_for_as_long_as_anybody_follows_it() -> None:
    marks = Marks()
    marks.note(CID, at(1))
    for _ in range(2):
        marks.follow(CID)
    marks.note(CID, at(2))
    marks.complete()
    marks.unfollow(CID)
    assert CID in marks
    assert marks.at(CID, marks.tick) == at(2)
    marks.unfollow(CID)
    assert list(marks) == []
    assert marks.at(CID, marks.tick) is None


@pytest.mark.parametrize("seed", range(100))
def test_nothing_is_ever_had_that_did_not_arrive(seed: int) -> None:
    """Against a line that keeps the order, delays at will and breaks: the ticket never skips.

    Every other socket begins with a replay, of which it gets a little at a time.
    """
    print("seed", seed)
    rng = random.Random(seed)
    stage = Stage(20, replayed_from=rng.randrange(20) if seed % 2 else None)
    line: list[tuple[str, int]] = []
    arrived = written = stage.trail.starts[CID].offset
    for _ in range(300):
        match rng.choice(["publish", "replay", "tick", "ping", "ping", "arrive", "arrive"]):
            case "publish":
                stage.publish()
            case "replay" if not stage.is_live:
                written += 1
                line.append(("event", written))
                stage.is_live = written >= stage.top
            case "tick":
                stage.tick()
            case "ping":
                line.append(("ping", stage.ping()))
            case "arrive" if line:
                kind, number = line.pop(0)
                if kind == "event":
                    arrived = number
                else:
                    stage.pong(number)
        if stage.is_live and written < stage.top:
            written = stage.top
            line.append(("event", written))
        assert stage.position.offset <= arrived
    while line:
        kind, number = line.pop(0)
        if kind == "ping":
            stage.pong(number)
    if stage.is_live:
        for _ in range(2):
            stage.tick()
            stage.pong(stage.ping())
        assert stage.position.offset == stage.top
