"""What waits outside the row is taken once, however looks and records cross, and hides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay.egress.sinks import Result
from tests.egress.works import NO, OK, Gate, Works, hook, settled, works

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig() -> AsyncIterator[Works]:
    async with works() as made:
        yield made


async def wait_for(rig: Works, *contents: object, schedule: tuple[int, ...] = (60,)) -> None:
    """Have events wait for their first attempt by the longer schedule, which is soon due."""
    rig.sink.answer = lambda _hook, _delivery: NO
    await rig.start(hook(retry_schedule=schedule))
    await rig.publish(*contents)
    assert rig.sink.numbers == [1] * len(contents)
    await rig.timers.advance(55)
    rig.sink.attempts.clear()


async def test_what_ended_but_is_not_recorded_yet_is_not_taken_again(rig: Works) -> None:
    await wait_for(rig, 1)
    rig.sink.answer = gate = Gate()
    await rig.timers.advance(15)
    assert rig.sink.numbers == [2]
    rig.outbox.before["record"] = asyncio.Event()
    gate.open()
    await rig.timers.advance(2.5)  # the lease is renewed: one waits, and none is in hand
    assert rig.sink.numbers == [2]
    rig.outbox.before.pop("record").set()
    await rig.timers.advance(10)
    assert rig.sink.numbers == [2]
    assert (rig.outbox._waiting, await rig.left(), await rig.dead()) == ({}, 0, [])


@pytest.mark.parametrize("answer", [OK, NO])
async def test_what_ends_while_it_is_looked_for_is_not_taken_again(
    rig: Works, answer: Result
) -> None:
    """Its end is recorded before the answer comes that still has it."""
    await wait_for(rig, 1, 2, schedule=(60, 600))
    rig.sink.answer = gate = Gate()
    while not gate.futures:
        await rig.timers.advance(0.1)
    assert len(rig.outbox._waiting) == 2
    rig.outbox.after["due"] = asyncio.Event()
    await rig.timers.advance(2.5)  # the lease is renewed: two wait, and one is in hand
    gate.open(answer)
    await settled()
    assert rig.outbox._waiting
    rig.outbox.after.pop("due").set()
    await rig.timers.advance(15)
    assert rig.sink.numbers == [2, 2]
