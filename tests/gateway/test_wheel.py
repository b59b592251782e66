"""One timer for all sockets: everyone is visited in time, and nobody stops the clock."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.wheel import Wheel
from relay.pace import SLICE_S

pytestmark = pytest.mark.anyio


class Entry:
    def __init__(self, on_due: Callable[[], None] = lambda: None) -> None:
        self.slot = 0
        self.visits: list[float] = []
        self._on_due = on_due

    def on_due(self, now: float) -> None:
        self.visits.append(now)
        self._on_due()


def test_an_entry_is_visited_in_the_second_after_its_time() -> None:
    wheel, entry = Wheel(), Entry()
    wheel.advance(100.0)
    wheel.schedule(entry, 105.2)
    wheel.advance(105.9)
    assert entry.visits == []
    wheel.advance(106.0)
    assert entry.visits == [106.0]
    wheel.advance(200.0)
    assert entry.visits == [106.0]


def test_scheduling_again_replaces_the_time() -> None:
    wheel, entry = Wheel(), Entry()
    wheel.schedule(entry, 10.0)
    wheel.schedule(entry, 20.0)
    wheel.advance(15.0)
    assert entry.visits == []
    wheel.advance(21.0)
    assert entry.visits == [21.0]


def test_what_is_overdue_is_visited_at_the_next_turn() -> None:
    wheel, entry = Wheel(), Entry()
    wheel.advance(100.0)
    wheel.schedule(entry, 3.0)
    wheel.advance(100.9)
    assert entry.visits == []
    wheel.advance(101.0)
    assert entry.visits == [101.0]


def test_a_cancelled_entry_is_not_visited() -> None:
    wheel, entry = Wheel(), Entry()
    wheel.schedule(entry, 10.0)
    wheel.cancel(entry)
    wheel.cancel(entry)
    wheel.advance(20.0)
    assert entry.visits == []


def test_an_entry_may_schedule_itself_and_cancel_others_while_it_is_visited() -> None:
    wheel = Wheel()
    other = Entry()
    entry = Entry(lambda: (wheel.schedule(entry, 30.0), wheel.cancel(other)))  # type: ignore[func-returns-value, arg-type]
    wheel.schedule(entry, 10.0)
    wheel.schedule(other, 30.0)
    wheel.advance(11.0)
    wheel.advance(31.0)
    assert entry.visits == [11.0, 31.0]
    assert other.visits == []


def test_one_that_fails_does_not_keep_the_others_from_their_visit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    wheel, first, last = Wheel(), Entry(fail), Entry()
    wheel.schedule(first, 10.0)
    wheel.schedule(last, 10.0)
    wheel.advance(11.0)
    assert last.visits == [11.0]
    assert "visit failed" in capsys.readouterr().out


@given(st.lists(st.floats(0, 60), min_size=1, max_size=30), st.integers(1, 5))
def test_everyone_is_visited_once_neither_early_nor_late(times: list[float], stride: int) -> None:
    wheel = Wheel()
    entries = [(at, Entry()) for at in times]
    for at, entry in entries:
        wheel.schedule(entry, at)
    for now in range(0, 70, stride):
        wheel.advance(float(now))
    for at, entry in entries:
        [visited] = entry.visits
        assert at <= visited <= at + 1 + stride
    assert not wheel._slots


async def test_many_visits_leave_turns_to_others() -> None:
    """A visit takes a tenth of a slice here: ten of them in a turn, and not one more."""
    spent, loop = [0.0], asyncio.get_running_loop()
    wheel = Wheel(clock=lambda: spent[0])
    seen: list[int] = []

    def visit() -> None:
        spent[0] += SLICE_S / 10 + 1e-9

    def look(turns_left: int = 10) -> None:
        seen.append(sum(len(entry.visits) for entry in entries))
        if turns_left:
            loop.call_soon(look, turns_left - 1)

    entries = [Entry(visit) for _ in range(35)]
    for entry in entries:
        wheel.schedule(entry, loop.time())
    wheel.schedule(Entry(lambda: look()), loop.time())  # what was hung up last is visited first
    turning = asyncio.create_task(wheel.run())
    await asyncio.sleep(3)
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)
    assert [count for count, _ in itertools.groupby(seen)] == [0, 10, 20, 30, 35]
    assert all(len(entry.visits) == 1 for entry in entries)


async def test_who_leaves_between_two_slices_is_not_visited() -> None:
    spent, loop = [0.0], asyncio.get_running_loop()
    wheel = Wheel(clock=lambda: spent[0])
    leaving = Entry()

    def visit() -> None:
        spent[0] += SLICE_S
        loop.call_soon(wheel.cancel, leaving)

    wheel.schedule(leaving, loop.time())
    wheel.schedule(first := Entry(visit), loop.time())
    turning = asyncio.create_task(wheel.run())
    await asyncio.sleep(3)
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)
    assert len(first.visits) == 1
    assert leaving.visits == []


async def test_it_turns_once_a_second() -> None:
    wheel, entry = Wheel(), Entry()
    turning = asyncio.create_task(wheel.run())
    now = asyncio.get_running_loop().time()
    wheel.schedule(entry, now + 5)
    await asyncio.sleep(7.5)
    assert len(entry.visits) == 1
    assert now + 5 <= entry.visits[0] <= now + 7
    turning.cancel()
    await asyncio.gather(turning, return_exceptions=True)
