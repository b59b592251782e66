"""The bounds of the embedded broker: what it forgets, and when."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Limits
from relay.broker.memory import MemoryBroker
from relay.errors import Unavailable
from tests.contract.harness import CID, OTHER, Recorder, event

pytestmark = pytest.mark.anyio

LIMITS = Limits(history_age_s=100.0, dedupe_window_s=1000.0)
LIFE_S = 1120


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> int:
        return int(self.seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def broker(clock: Clock, recorder: Recorder) -> MemoryBroker:
    broker = MemoryBroker(LIMITS, clock, "here", seen_bound=3)
    await broker.start(recorder, recorder.on_live)
    return broker


async def test_an_id_is_forgotten_after_the_window(broker: MemoryBroker, clock: Clock) -> None:
    await broker.publish(event(1, identity="x"))
    clock.seconds += 1059  # the window, and how far ahead a webhook may be dated
    assert (await broker.publish(event(1, identity="x"))).duplicate
    clock.seconds += 2
    assert not (await broker.publish(event(1, identity="x"))).duplicate


async def test_too_many_ids_are_unavailable_until_some_are_forgotten(
    broker: MemoryBroker, clock: Clock
) -> None:
    for name in ("a", "b", "c"):
        await broker.publish(event(1, identity=name))
    with pytest.raises(Unavailable, match="too many event ids"):
        await broker.publish(event(1, identity="d"))
    assert (await broker.positions([CID]))[0].offset == 3
    assert (await broker.publish(event(1, identity="a"))).duplicate
    clock.seconds += 1061
    assert not (await broker.publish(event(1, identity="d"))).duplicate


async def test_it_publishes_at_once_and_hands_over_in_a_later_turn(
    broker: MemoryBroker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    for n in range(3):
        broker.publish_now(event(n, minted=True))
    await broker.subscribe(OTHER)
    broker.publish_now(event("other", cid=OTHER))
    assert recorder.publications == []
    await asyncio.sleep(0)
    assert recorder.offsets() == [1, 2, 3]
    assert recorder.contents(OTHER) == ["other"]
    broker.publish_now(event(3, minted=True))
    await asyncio.sleep(0)
    assert recorder.contents() == [0, 1, 2, 3]


async def test_what_was_published_before_the_end_of_a_subscription_is_not_handed_over(
    broker: MemoryBroker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    broker.publish_now(event(1))
    await broker.unsubscribe(CID)
    await asyncio.sleep(0)
    assert recorder.publications == []


async def test_an_id_that_the_relay_minted_takes_no_room(broker: MemoryBroker) -> None:
    for n in range(9):
        assert not broker.publish_now(event(n, identity="minted", minted=True)).duplicate
    assert not (await broker.publish(event(1, identity="a"))).duplicate


async def test_an_alias_takes_room_too(broker: MemoryBroker) -> None:
    await broker.publish(event(1, identity="a", alias="w"))
    with pytest.raises(Unavailable, match="too many event ids"):
        await broker.publish(event(1, identity="b", alias="v"))


async def test_an_expired_id_counts_from_its_new_time(broker: MemoryBroker, clock: Clock) -> None:
    for name in ("a", "b", "x"):
        await broker.publish(event(1, identity=name))
    clock.seconds += 1061
    await broker.publish(event(1, identity="x"))
    clock.seconds += 1000
    assert (await broker.publish(event(1, identity="x"))).duplicate


async def test_minted_ids_are_not_remembered(broker: MemoryBroker) -> None:
    for _ in range(10):
        await broker.publish(event(1, minted=True))
    assert not broker._seen


async def test_an_idle_call_is_forgotten(broker: MemoryBroker, clock: Clock) -> None:
    [before] = await broker.positions([CID])
    clock.seconds += LIFE_S + 1
    await broker.positions([OTHER])
    assert CID not in broker._calls
    [after] = await broker.positions([CID])
    assert after.epoch != before.epoch


async def test_asking_keeps_a_call(broker: MemoryBroker, clock: Clock) -> None:
    [before] = await broker.positions([CID])
    for _ in range(3):
        clock.seconds += LIFE_S - 1
        assert await broker.positions([CID]) == [before]


async def test_a_watched_call_is_never_forgotten(broker: MemoryBroker, clock: Clock) -> None:
    await broker.subscribe(CID)
    publication = await broker.publish(event(1))
    clock.seconds += LIFE_S + 1
    await broker.positions([OTHER])
    await broker.positions([OTHER])
    assert await broker.positions([CID]) == [publication.position]
    # Its publications are too old all the same, and no longer take memory.
    assert not broker._calls[CID].entries


async def test_many_idle_calls_are_forgotten_as_fast_as_new_ones_come(
    broker: MemoryBroker, clock: Clock
) -> None:
    for n in range(100):
        await broker.publish(event(1, cid=f"old:{n}", minted=True))
    clock.seconds += LIFE_S + 1
    for n in range(100):
        await broker.publish(event(1, cid=f"new:{n}", minted=True))
    assert len(broker._calls) == 100


async def test_nothing_is_handed_over_after_the_end(
    broker: MemoryBroker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    publishing = broker.publish(event(1))
    publishing.send(None)
    await broker.aclose()
    publishing.close()
    await broker.publish(event(2))
    assert recorder.publications == []
