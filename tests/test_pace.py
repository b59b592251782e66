"""Work in slices of the turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from relay.pace import ADMITTED_S, SLICE_S, Pace
from tests.gateway.fakes import turns

pytestmark = pytest.mark.anyio


class Clock:
    """Goes on by a part of a slice each time it is looked at twice: around one step."""

    def __init__(self, part: float) -> None:
        self._step_s = SLICE_S * part
        self._now = 0.0
        self._looks = 0

    def __call__(self) -> float:
        self._looks += 1
        self._now += self._step_s if self._looks % 2 == 0 else 0.0
        return self._now


def steps(count: int, name: str, done: list[str]) -> Callable[[], bool]:
    """Return a job of so many steps, each of which writes its name down."""
    rest = iter(range(count - 1, -1, -1))

    def step() -> bool:
        done.append(name)
        return next(rest) > 0

    return step


async def test_a_small_job_is_done_at_once() -> None:
    done: list[str] = []
    assert Pace(Clock(0.1)).do(steps(3, "a", done))
    assert done == ["a", "a", "a"]


async def test_a_turn_has_time_for_a_slice_and_the_next_one_for_another() -> None:
    pace, done = Pace(Clock(0.5)), list[str]()
    assert not pace.do(steps(5, "a", done))
    assert len(done) == 2
    assert len(pace) == 1
    await turns(1)
    assert len(done) == 4
    await turns(1)
    assert len(done) == 5
    assert len(pace) == 0


async def test_jobs_take_turns_step_by_step() -> None:
    pace, done = Pace(Clock(1.0)), list[str]()
    pace.do(steps(4, "a", done))
    assert not pace.do(steps(2, "b", done))
    assert not pace.do(steps(1, "c", done))
    await turns(10)
    assert "".join(done) == "aabcaba"


async def test_each_turn_has_a_slice_of_its_own() -> None:
    pace, done = Pace(Clock(1.0)), list[str]()
    assert pace.do(steps(1, "a", done))
    await turns(2)
    assert pace.do(steps(1, "b", done))


async def test_whoever_comes_while_others_wait_does_not_overtake_them() -> None:
    pace, done = Pace(Clock(1.0)), list[str]()
    pace.do(steps(2, "a", done))
    pace.do(steps(1, "b", done))
    await turns(1)
    assert not pace.do(steps(1, "c", done))
    await turns(10)
    assert "".join(done) == "aabc"


async def test_a_job_that_fails_is_logged_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> bool:
        raise ValueError("a bug")

    pace, done = Pace(Clock(1.0)), list[str]()
    pace.do(steps(1, "a", done))
    pace.do(fail)
    pace.do(steps(1, "b", done))
    await turns(5)
    assert done == ["a", "b"]
    assert "job failed" in capsys.readouterr().out


async def test_what_a_job_begins_is_in_the_line_and_each_turn_still_has_one_slice() -> None:
    """As when a request's connection becomes a socket, which has a request of its own."""
    now, done = 0.0, 0
    pace = Pace(lambda: now)

    def step() -> bool:
        nonlocal now, done
        now, done = now + SLICE_S, done + 1
        return done < 8

    def begin() -> None:
        step()
        pace.do(step)

    pace.do(step)
    pace.do(begin)
    for most in range(3, 8):
        await turns(1)
        assert done <= most
    await turns(10)
    assert done >= 8
    assert len(pace) == 0


async def test_of_what_is_admitted_a_turn_has_time_for_so_many() -> None:
    pace, admitted = Pace(lambda: 0.0), list[int]()

    async def enter(number: int) -> None:
        await pace.admit()
        admitted.append(number)

    entering = [asyncio.create_task(enter(number)) for number in range(30)]
    at_once = round(SLICE_S / ADMITTED_S)
    for turn in range(10):
        before = len(admitted)
        await turns(1)
        assert len(admitted) - before <= at_once, f"in turn {turn}"
        entering[29].cancel()  # it waits, and is passed over
    assert admitted == list(range(29))
    assert len(pace) == 0
