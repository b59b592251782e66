"""A fault that nobody foresaw stops nothing for long, and loses nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from relay import metrics
from tests.contract.harness import event
from tests.egress.works import NO, OK, Gate, Works, content, hook, result, settled, works

pytestmark = pytest.mark.anyio

FAULTS = {
    "partition failed: it is read anew",
    "recording failed",
    "delivery stopped by a fault",
}


@pytest.fixture
async def rig() -> AsyncIterator[Works]:
    async with works() as made:
        yield made


@contextmanager
def faults_told(times: int) -> Iterator[None]:
    """Check that so many faults are told, each once, with its traceback."""
    before = metrics.BACKGROUND_FAILURES._value.get()
    with capture_logs() as logged:
        yield
    told = [each for each in logged if each["log_level"] == "error"]
    assert len(told) == times
    assert all(each["event"] in FAULTS and each["exc_info"] for each in told)
    assert metrics.BACKGROUND_FAILURES._value.get() - before == times


# -- in a partition -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["progress", "read", "due", "record"])
async def test_a_partition_that_a_fault_stops_is_opened_anew(rig: Works, method: str) -> None:
    await rig.set_hooks(hook())
    await rig.publish(1, 2)
    rig.outbox.faults[method] = 1
    with faults_told(1):
        await rig.start()
        await rig.timers.advance(2.5)
        await rig.publish(3)
    assert sorted(rig.sink.contents()) == [1, 2, 3]
    assert (await rig.left(), await rig.dead()) == (0, [])


@pytest.mark.parametrize("method", ["read", "record"])
async def test_a_partition_that_a_fault_stops_while_it_works_loses_nothing(
    rig: Works, method: str
) -> None:
    await rig.start(hook(ordered=True))
    await rig.publish(1)
    rig.outbox.faults[method] = 1
    with faults_told(1):
        await rig.publish(2, 3)
        assert rig.sink.contents() == [1]
        await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1, 2, 3]
    assert (await rig.left(), await rig.dead()) == (0, [])


async def test_a_fault_that_lasts_is_met_now_and_then_only(rig: Works) -> None:
    await rig.start(hook())
    rig.outbox.faults["read"] = math.inf
    await rig.publish(*range(50))
    assert len(rig.outbox.failed_at) == 1
    await rig.timers.advance(120)
    times = rig.outbox.failed_at
    assert 10 <= len(times) <= 30
    assert times[1] <= 2.5
    assert max(b - a for a, b in pairwise(times)) <= 10.0
    rig.outbox.faults.clear()
    await rig.timers.advance(10)
    assert sorted(rig.sink.contents()) == list(range(50))
    assert await rig.left() == 0


async def test_what_is_under_way_in_a_partition_that_a_fault_stops_is_recorded(rig: Works) -> None:
    """Its outcome counts: it is neither repeated nor taken for what kills the relay."""
    rig.sink.answer = gate = Gate(1)
    await rig.start(hook())
    await rig.publish(0)
    await rig.publish(1)
    rig.outbox.faults["read"] = 1
    await rig.publish(2)
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [0, 1]
    gate.open()
    await settled()
    assert rig.outbox._token == ""  # it was given back
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [0, 1, 2]
    assert await rig.left() == 0


async def test_a_fault_in_reading_for_a_hook_that_stayed_behind_stops_nothing(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook())
    await rig.publish(*range(100))
    rig.sink.answer = lambda _hook, _delivery: OK
    rig.outbox.faults["read"] = 1
    with faults_told(1):
        gate.open()
        await rig.timers.advance(2.5)
    assert sorted(rig.sink.contents()) == list(range(100))
    assert await rig.left() == 0


async def test_a_fault_in_letting_the_oldest_go_stops_nothing(rig: Works) -> None:
    rig.sink.answer = lambda at, _: NO if at.id == "bad" else OK
    await rig.start(hook("bad", pending_limit=50), hook("good"))
    await rig.publish(*range(300))
    rig.outbox.faults["read"] = 1
    with faults_told(1):
        await rig.timers.advance(2.5)
    await rig.timers.advance(10)
    letters = await rig.dead(hook_id="bad")
    assert len(letters) == pytest.approx(250, abs=3)
    assert set(rig.sink.contents("good")) == set(range(300))


async def test_the_oldest_of_a_partition_that_is_handed_over_are_left_to_the_next(
    rig: Works,
) -> None:
    """While it waits for an attempt to end, the round goes on."""
    gate = Gate(299)
    rig.sink.answer = lambda at, delivery: NO if at.id == "bad" else gate(at, delivery)
    await rig.start(hook("bad", pending_limit=50), hook("good"))
    await rig.publish(*range(300))
    rig.outbox.others |= {f"there-{n}" for n in range(50)}
    await rig.timers.advance(2.5)
    assert rig.outbox._token
    gate.open()
    await settled()
    assert rig.outbox._token == ""


async def test_a_partition_whose_handing_over_failed_can_be_taken_again(rig: Works) -> None:
    await rig.start(hook())
    await rig.publish(1)
    rig.outbox.others |= {f"there-{n}" for n in range(50)}
    rig.outbox.faults["give_back"] = 1
    await rig.timers.advance(2.5)
    assert rig.outbox.faults["give_back"] == 0
    rig.outbox.others.clear()
    await rig.timers.advance(2.5)
    await rig.publish(2)
    assert rig.sink.contents() == [1, 2]


async def test_a_fault_while_everything_ends_begins_nothing(rig: Works) -> None:
    rig.sink.answer = Gate()
    await rig.start(hook())
    await rig.publish(0)
    rig.outbox.before["leave"] = asyncio.Event()
    closing = asyncio.create_task(rig.dispatcher.aclose())
    await settled()
    rig.outbox.faults["read"] = 1
    with faults_told(1):
        await rig.publish(1)
    assert len(rig.dispatcher._tasks) == 0
    rig.outbox.before.pop("leave").set()
    await closing
    assert rig.outbox._token == ""


# -- after an attempt -----------------------------------------------------------------------------


def holds_nothing(rig: Works) -> bool:
    """Tell whether every slot, every place and every byte was given back."""
    [lane] = rig.dispatcher._lanes.values()
    return (lane.taken, rig.dispatcher.slots.taken, rig.dispatcher.held_bytes) == (0, 0, 0)


async def test_a_fault_in_noting_how_an_attempt_ended_has_it_repeated(rig: Works) -> None:
    answers = iter([result(latency_s=math.nan)])
    rig.sink.answer = lambda _hook, _delivery: next(answers, OK)
    await rig.start(hook(ordered=True))
    with faults_told(1):
        await rig.publish(1, 2)
        assert rig.sink.contents() == [1]
        assert holds_nothing(rig)
        await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1, 1, 2]
    assert rig.sink.numbers == [1, 2, 1]
    assert holds_nothing(rig)
    assert (await rig.left(), await rig.dead()) == (0, [])


@pytest.mark.parametrize(("schedule", "wait", "dead"), [((60,), 1, 0), ((), 0, 1)])
async def test_a_fault_in_postponing_or_burying_has_the_attempt_repeated(
    rig: Works, schedule: tuple[int, ...], wait: int, dead: int
) -> None:
    rig.sink.answer = lambda _hook, _delivery: NO
    await rig.start(hook(retry_schedule=schedule))
    with faults_told(1):
        await spoil(rig, 1)
        assert holds_nothing(rig)
        await rig.timers.advance(2.5)
    assert rig.sink.numbers == [1, 2]
    assert holds_nothing(rig)
    assert (len(rig.outbox._waiting), len(await rig.dead())) == (wait, dead)
    assert await rig.left() == 0


async def test_what_can_never_be_buried_holds_nothing_up_but_itself(rig: Works) -> None:
    rig.sink.answer = lambda _hook, delivery: NO if delivery.body == b"\xff" else OK
    await rig.start(hook())
    with faults_told(1):
        await spoil(rig, math.inf)
    with capture_logs() as logged:
        await rig.publish(*range(50))
        await rig.timers.advance(120)
    assert 10 <= [each["log_level"] for each in logged].count("error") <= 30
    bodies = [delivery.body for _, _, delivery, _ in rig.sink.attempts]
    assert bodies.count(b"\xff") == 5  # then it is taken for what kills the relay
    got = [content(body) for body in bodies if body != b"\xff"]
    assert sorted(got) == list(range(50))


async def spoil(rig: Works, times: float) -> None:
    """Publish an event that is read so often with a body that is no text."""
    spoiled = event("spoiled")
    rig.outbox.spoiled[spoiled.event_id] = times
    await rig.broker.publish(spoiled)
    await rig.quiet()
