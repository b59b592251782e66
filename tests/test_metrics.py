"""Counters of the hot path add up what a loop turn has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, Counter

from relay import metrics

pytestmark = pytest.mark.anyio


@pytest.fixture
def counter() -> Iterator[Counter]:
    made = Counter("test_tally", "Of a test.")
    yield made
    REGISTRY.unregister(made)


def shown(counter: Counter) -> float:
    [family] = counter.collect()
    return family.samples[0].value


async def test_what_a_turn_adds_up_is_counted_when_it_ends(counter: Counter) -> None:
    tally = metrics.Tally(counter)
    for _ in range(3):
        tally.inc()
    assert shown(counter) == 0
    await asyncio.sleep(0)
    assert shown(counter) == 3
    tally.inc()
    await asyncio.sleep(0)
    assert shown(counter) == 4


async def test_who_reads_the_metrics_in_the_same_turn_sees_it(counter: Counter) -> None:
    metrics.Tally(counter).inc()
    assert b"test_tally_total 1.0" in metrics.render()
    await asyncio.sleep(0)
    assert shown(counter) == 1


def test_a_loop_that_ended_in_between_takes_nothing_with_it(counter: Counter) -> None:
    tally = metrics.Tally(counter)

    async def count() -> None:
        tally.inc()

    async def count_and_stay() -> None:
        tally.inc()
        await asyncio.sleep(0)

    asyncio.run(count())
    asyncio.run(count_and_stay())
    assert shown(counter) == 2
