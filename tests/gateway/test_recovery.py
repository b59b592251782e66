"""Coming back with a position: everything that was missed, once and in order, or told."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import wire
from relay.events import Position
from relay.gateway.hub import Hub
from relay.gateway.recovery import READ_INTERVAL_S
from tests.gateway.fakes import (
    CID,
    FakeBroker,
    FakeTimeLoop,
    FakeWatcher,
    at,
    gathered,
    turns,
)

pytestmark = pytest.mark.anyio

SOAK = int(os.environ.get("SOAK", "1"))


async def test_what_was_missed_comes_once_in_order_and_then_live(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.lose(5)
    assert await hub.watch(john, CID, at(2)) == (at(5), True)
    assert john.offsets == [], "the reply comes first"
    await turns(20)
    broker.send(2)
    await turns()
    assert john.offsets == [3, 4, 5, 6, 7]


async def test_what_is_published_during_a_recovery_is_written_once(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.page_count = 2
    broker.lose(6)
    await hub.watch(john, CID, at(0))
    for _ in range(6):
        broker.send()
        await asyncio.sleep(READ_INTERVAL_S / 2)
    await asyncio.sleep(1)
    assert john.offsets == list(range(1, 13))


async def test_one_who_missed_nothing_is_live_without_a_read(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.lose(3)
    assert await hub.watch(john, CID, at(3)) == (at(3), True)
    broker.send()
    await turns()
    assert john.offsets == [4]
    assert broker.asked("history") == []


@pytest.mark.parametrize(
    "since",
    [at(1), at(2, "another"), at(99)],
    ids=["trimmed", "unknown epoch", "beyond the top"],
)
async def test_what_cannot_be_continued_is_told_and_replays_nothing(
    hub: Hub, broker: FakeBroker, john: FakeWatcher, since: Position
) -> None:
    broker.lose(5)
    broker.trim(3)
    assert await hub.watch(john, CID, since) == (at(5), False)
    await turns(20)
    broker.send()
    await turns()
    assert john.offsets == [6]


async def test_a_position_from_before_a_failover_that_kept_it_is_continued(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.lose(4)
    broker.fail_over(keep=3)
    broker.lose(2)
    assert await hub.watch(john, CID, at(3)) == (at(5, "e2"), True)
    await turns(20)
    assert john.offsets == [4, 5]
    assert (await hub.watch(FakeWatcher(), CID, at(4))).recovered is False


async def test_a_position_that_another_process_delivered_brings_the_feed_up_first(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    jane = FakeWatcher("jane")
    await hub.watch(jane, CID)
    late = [broker.append() for _ in range(3)]
    assert await hub.watch(john, CID, at(3)) == (at(3), True)
    for position in late:
        broker.hand_over(CID, position)
    broker.send()
    await turns(20)
    assert john.offsets == [4]
    assert jane.offsets == [1, 2, 3, 4]


async def test_a_repair_that_began_before_the_position_existed_is_not_enough(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(FakeWatcher("jane"), CID)
    answer = broker.slow["history"] = asyncio.Event()
    broker.lose()
    broker.send()
    await turns()  # the repair has read up to 2, its answer is under way
    del broker.slow["history"]
    late = broker.append()
    watching = asyncio.create_task(hub.watch(john, CID, at(3)))
    await turns()
    answer.set()
    assert (await watching).position == at(3)
    broker.hand_over(CID, late)
    await turns()
    assert john.offsets == []


async def test_two_who_return_around_a_publication_do_not_stop_the_clock(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    """A page that ends at the top is old as soon as something is published."""
    jane = FakeWatcher("jane")
    await hub.watch(jane, CID)
    late = broker.append()
    await hub.watch(john, CID, late)  # reads an empty page after 1, ahead of the feed
    broker.send()
    await turns()
    max_ = FakeWatcher("max")
    assert (await hub.watch(max_, CID, late)).recovered
    await asyncio.sleep(1)
    assert max_.offsets == [2]
    assert john.offsets == [2]


async def test_a_trim_under_a_slow_cursor_is_told(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.page_count = 2
    broker.lose(8)
    john.room.clear()
    await hub.watch(john, CID, at(0))
    await turns(20)
    assert john.offsets == [1, 2]
    broker.trim(6)
    john.room.set()
    await asyncio.sleep(1)
    broker.send()
    await turns()
    assert john.offsets == [1, 2, "lost 8", 9]


async def test_a_failover_under_a_slow_cursor_that_replaced_what_it_wrote_is_told(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    jane = FakeWatcher("jane")
    await hub.watch(jane, CID)
    broker.send(8)
    broker.page_count = 4
    john.room.clear()
    await hub.watch(john, CID, at(2))
    await turns(20)
    assert john.offsets == [3, 4, 5, 6]
    broker.fail_over(keep=5)
    broker.send(6)  # 6 to 11, of another epoch
    await asyncio.sleep(1)
    john.room.set()
    await asyncio.sleep(1)
    broker.send()
    await turns(20)
    assert john.offsets == [3, 4, 5, 6, "lost 11", 12]
    assert jane.offsets[8:] == ["lost 5", 6, 7, 8, 9, 10, 11, 12]


async def test_a_failover_under_a_slow_cursor_that_kept_what_it_wrote_is_continued(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    """What an old page says beyond that was replaced and must not be written."""
    jane = FakeWatcher("jane")
    await hub.watch(jane, CID)
    broker.send(8)
    john.room.clear()
    broker.page_count = 4
    await hub.watch(john, CID, at(0))
    await turns(20)
    assert john.offsets == [1, 2, 3, 4]
    broker.fail_over(keep=5)
    broker.send(6)
    await asyncio.sleep(1)
    john.room.set()
    await asyncio.sleep(2)
    assert john.offsets == list(range(1, 12))
    assert [f["epoch"] for f in john.frames if f["type"] == "custom"] == ["e1"] * 5 + ["e2"] * 6


@pytest.mark.parametrize("since", [3, 5])
async def test_one_who_returns_before_a_failover_is_noticed_gets_what_is_there_now_once(
    hub: Hub, broker: FakeBroker, john: FakeWatcher, since: int
) -> None:
    """The feed, which does not know yet, is brought up first: it holds what was replaced."""
    jane = FakeWatcher("jane")
    await hub.watch(jane, CID)
    broker.send(8)
    broker.fail_over(keep=5)
    broker.lose(3)  # 6 to 8, of another epoch
    assert (await hub.watch(john, CID, at(since))).recovered
    await asyncio.sleep(1)
    assert jane.offsets[8:] == ["lost 5", 6, 7, 8], "told at once, though nothing new comes"
    broker.send()
    await asyncio.sleep(1)
    assert john.offsets == list(range(since + 1, 10))
    epochs = [f["epoch"] for f in john.frames if f["type"] == "custom"]
    assert epochs == ["e1"] * (5 - since) + ["e2"] * 4
    assert jane.offsets == [1, 2, 3, 4, 5, 6, 7, 8, "lost 5", 6, 7, 8, 9]


async def test_a_recovery_pauses_while_the_broker_is_away_and_goes_on(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.page_count = 2
    broker.lose(6)
    john.room.clear()
    await hub.watch(john, CID, at(0))
    await turns(20)
    broker.away["history"] = 3
    john.room.set()
    await asyncio.sleep(10)
    assert john.offsets == [1, 2, 3, 4, 5, 6]


async def test_a_recovery_that_fails_for_a_reason_nobody_foresaw_is_told(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.page_count = 2
    broker.lose(6)
    john.room.clear()
    await hub.watch(john, CID, at(0))
    await turns(20)

    async def broken(cid: str, after: int) -> Any:
        raise ValueError("a bug")

    broker.history = broken  # type: ignore[method-assign]
    john.room.set()
    await asyncio.sleep(1)
    broker.send()
    await turns()
    assert john.offsets == [1, 2, "lost 6", 7]


async def test_unwatching_ends_a_recovery(hub: Hub, broker: FakeBroker, john: FakeWatcher) -> None:
    broker.page_count = 2
    broker.lose(6)
    john.room.clear()
    await hub.watch(john, CID, at(0))
    await turns(20)
    john.room.set()
    hub.unwatch(john, CID)  # in the very turn in which there is room again
    await asyncio.sleep(1)
    assert john.offsets == [1, 2]
    broker.send()
    await asyncio.sleep(3)
    assert john.offsets == [1, 2]
    assert broker.asked("unsubscribe") == [CID]


async def test_watching_again_restarts_the_recovery(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.page_count = 2
    broker.lose(6)
    john.room.clear()
    await hub.watch(john, CID, at(0))
    await turns(20)
    john.room.set()
    assert (await hub.watch(john, CID, at(4))).recovered
    john.writes.clear()  # until the reply it was the watch from before
    await asyncio.sleep(1)
    broker.send()
    await turns()
    assert john.offsets == [5, 6, 7]


async def test_one_who_closed_during_its_recovery_is_not_made_live(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.lose(6)
    john.room.clear()
    await hub.watch(john, CID, at(0))
    await turns(20)
    john.is_open = False
    john.room.set()
    await turns(20)
    hub.unwatch(john, CID)
    await asyncio.sleep(2)
    assert broker.asked("unsubscribe") == [CID]


async def test_five_thousand_recoveries_cost_one_read_in_a_tenth_of_a_second(
    hub: Hub, broker: FakeBroker
) -> None:
    broker.page_count = 50
    broker.lose(200)
    watchers = [FakeWatcher() for _ in range(5000)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    await gathered([hub.watch(w, CID, at(n % 20)) for n, w in enumerate(watchers)])
    await asyncio.sleep(2)
    broker.send()
    await turns()
    for number in range(20):
        assert watchers[number].offsets == list(range(number + 1, 202))
        alike = {b"".join(watcher.writes) for watcher in watchers[number::20]}
        assert len(alike) == 1
    reads = broker.asked("history")
    assert len(reads) <= (loop.time() - began) / READ_INTERVAL_S
    assert len(reads) <= 12
    assert len({id(data) for watcher in watchers[::20] for data in watcher.writes}) <= 8


async def test_those_far_apart_are_all_served_within_one_sweep(
    hub: Hub, broker: FakeBroker
) -> None:
    broker.page_count = 50
    broker.lose(1000)
    watchers = {offset: FakeWatcher() for offset in random.Random(3).sample(range(1000), 300)}
    results = await gathered([hub.watch(w, CID, at(offset)) for offset, w in watchers.items()])
    assert all(result.recovered for result in results)
    await asyncio.sleep(5)
    for offset, watcher in watchers.items():
        assert watcher.offsets == list(range(offset + 1, 1001))
    assert len(broker.asked("history")) <= 60


@settings(max_examples=60 * SOAK, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(1, 3)),
            st.tuples(st.just("lose"), st.integers(1, 3)),
            st.tuples(st.just("trim"), st.integers(1, 4)),
            st.tuples(st.just("fail over"), st.integers(0, 3)),
            st.tuples(st.just("wait"), st.sampled_from([0, 1, 120, 3000])),
            st.tuples(st.just("slow"), st.booleans()),
            st.tuples(st.just("return"), st.integers(0, 5)),
        ),
        max_size=25,
    ),
    st.integers(1, 3),
)
def test_any_race_of_recovery_live_and_loss_ends_contiguous_or_told(
    steps: list[tuple[str, Any]], page_count: int
) -> None:
    async def run() -> None:
        broker = FakeBroker(page_count)
        hub = Hub(broker, random.Random(7))
        await broker.start(hub, lambda _: None)
        await hub.start()
        anchor, john = FakeWatcher("anchor"), FakeWatcher("john")
        await hub.watch(anchor, CID)
        expected: list[Position] = []
        for name, argument in steps:
            top = broker.call().offset
            match name:
                case "send":
                    broker.send(argument)
                case "lose":
                    broker.lose(argument)
                case "trim":
                    broker.trim(max(0, top - argument))
                case "fail over":
                    broker.fail_over(keep=max(0, top - argument))
                case "wait":
                    await asyncio.sleep(argument / 1000) if argument else await turns(3)
                case "slow":
                    john.room.clear() if argument else john.room.set()
                case "return":
                    since = Position(broker.call().top.epoch, max(0, top - argument))
                    watching = await hub.watch(john, CID, since)
                    john.writes.clear()
                    expected = [since if watching.recovered else watching.position]
        john.room.set()
        hub.on_interrupted([CID])
        await asyncio.sleep(60)
        top = broker.call().offset
        for watcher, begins in ((anchor, 0), *((john, position.offset) for position in expected)):
            offset = begins
            for told in watcher.offsets:
                offset = int(told[5:]) if isinstance(told, str) else offset + 1
                assert isinstance(told, str) or told == offset, watcher.offsets
            assert offset == top, (watcher.offsets, top)
            final = {entry.offset: entry.body for entry in broker.call().entries}
            for frame in since_last_report(watcher):
                kept = final.get(frame["offset"])
                assert kept is None or wire.decode(kept)["epoch"] == frame["epoch"], "replaced"
        await hub.aclose()

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(run())


def since_last_report(watcher: FakeWatcher) -> list[dict[str, Any]]:
    """Return the publications that a watcher got after it was last told of a loss."""
    found: list[dict[str, Any]] = []
    for frame in watcher.frames:
        if frame["type"] == "call.position":
            found.clear()
        elif frame["type"] == "custom":
            found.append(frame)
    return found
