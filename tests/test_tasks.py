"""Tasks have an owner that ends them; waits have a limit."""

from __future__ import annotations

import asyncio

import pytest

from relay import metrics
from relay.errors import Unavailable
from relay.tasks import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    STEADY_AFTER_S,
    Tasks,
    together,
    within,
)
from tests.gateway.fakes import FAKE_TIME

pytestmark = pytest.mark.anyio


def failures() -> float:
    return metrics.BACKGROUND_FAILURES._value.get()


async def test_a_task_is_kept_until_it_ends() -> None:
    tasks, gate = Tasks("test"), asyncio.Event()

    async def work() -> int:
        await gate.wait()
        return 7

    task = tasks.spawn(work())
    assert len(tasks) == 1
    gate.set()
    assert await task == 7
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_closing_cancels_and_waits_for_the_clean_up() -> None:
    tasks, ended = Tasks("test"), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    for _ in range(3):
        tasks.spawn(work())
    await asyncio.sleep(0)
    await tasks.aclose()
    assert ended == [True] * 3
    assert len(tasks) == 0


async def test_closing_ends_what_is_started_by_what_ends() -> None:
    tasks = Tasks("test")
    before = asyncio.all_tasks()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(asyncio.sleep(3600))

    tasks.spawn(work())
    await asyncio.sleep(0)
    await tasks.aclose()
    assert asyncio.all_tasks() == before


async def test_a_task_may_close_its_own_owner() -> None:
    tasks = Tasks("test")

    async def work() -> str:
        await tasks.aclose()
        return "alive"

    assert await tasks.spawn(work()) == "alive"


async def test_a_failure_is_logged_unless_it_is_for_whoever_waits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = Tasks("the test")

    async def fail(error: Exception) -> None:
        raise error

    await asyncio.gather(
        tasks.spawn(fail(ValueError("a bug"))),
        tasks.spawn(fail(Unavailable("away"))),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    logged = capsys.readouterr().out
    assert logged.count("background task failed") == 1
    assert "a bug" in logged
    assert "the test" in logged


async def test_what_is_kept_begins_again_after_each_failure_and_each_is_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks, begun = Tasks("the test"), 0
    before = failures()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ValueError("a bug")
        if begun == 2:
            raise Unavailable("away")

    await tasks.keep(work, "working")
    assert begun == 3
    logged = capsys.readouterr().out
    assert logged.count("background work failed and begins again") == 2
    assert "a bug" in logged
    assert "working" in logged
    assert failures() == before + 2


async def test_what_is_kept_ends_when_its_owner_does() -> None:
    tasks, ended = Tasks("test"), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = tasks.keep(work, "waiting")
    await asyncio.sleep(0)
    await tasks.aclose()
    assert task.cancelled()
    assert ended == [True]


@pytest.mark.parametrize("anyio_backend", [FAKE_TIME])
async def test_the_pauses_of_what_is_kept_grow_until_it_has_lasted() -> None:
    tasks, loop = Tasks("test"), asyncio.get_running_loop()
    began: list[float] = []
    lasts_s = 0.0

    async def work() -> None:
        began.append(loop.time())
        await asyncio.sleep(lasts_s)
        raise ValueError("a bug")

    tasks.keep(work, "failing")
    await asyncio.sleep(60)
    assert began[1] - began[0] <= FIRST_PAUSE_S
    assert LONGEST_PAUSE_S / 2 <= began[-1] - began[-2] <= LONGEST_PAUSE_S
    lasts_s = STEADY_AFTER_S + 1
    await asyncio.sleep(2 * LONGEST_PAUSE_S + lasts_s)
    assert began[-1] - began[-2] <= lasts_s + FIRST_PAUSE_S
    await tasks.aclose()


async def test_a_wait_that_is_too_long_is_told_as_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"waiting for Godot took more than 0.01 s: try again"):
        async with within(0.01, "waiting for Godot"):
            await asyncio.Event().wait()


async def test_a_wait_that_is_short_enough_is_left_alone() -> None:
    async with within(10, "this"):
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="its own"):
        async with within(10, "this"):
            raise ValueError("its own")


async def test_what_is_done_together_ends_together_and_then_fails() -> None:
    ended: list[int] = []

    async def work(number: int) -> int:
        for _ in range(number):
            await asyncio.sleep(0)
        if number == 1:
            raise Unavailable("away")
        ended.append(number)
        return number

    assert await together(map(work, (3, 2, 0))) == [3, 2, 0]
    ended.clear()
    with pytest.raises(Unavailable):
        await together(map(work, (3, 1, 2)))
    assert sorted(ended) == [2, 3]
