"""History and positions: pages, bounds, and what is known of a call that was never used."""

from __future__ import annotations

import pytest

from relay.broker import Broker, Limits
from relay.events import Position
from tests.contract.harness import CID, OTHER, Recorder, Rig, caught_up, content, event

pytestmark = pytest.mark.anyio


async def fill(broker: Broker, count: int, cid: str = CID) -> None:
    for n in range(1, count + 1):
        await broker.publish(event(n, cid=cid))


async def test_history_holds_what_came_after_an_offset_in_order(broker: Broker) -> None:
    await fill(broker, 5)
    history = await broker.history(CID, 2)
    assert [entry.offset for entry in history.entries] == [3, 4, 5]
    assert [content(entry.body) for entry in history.entries] == [3, 4, 5]
    assert history.top.offset == 5
    assert history.epochs[-1] == (history.top.epoch, 1)


async def test_history_after_the_top_is_empty_and_continues(broker: Broker) -> None:
    await fill(broker, 3)
    [top] = await broker.positions([CID])
    history = await broker.history(CID, 3)
    assert (history.top, history.entries) == (top, ())
    assert history.continues(top)


async def test_history_of_an_unused_call_is_empty(broker: Broker) -> None:
    history = await broker.history(CID, 0)
    assert (history.top.offset, history.entries) == (0, ())
    assert [history.top] == await broker.positions([CID])
    assert history.continues(history.top)


async def test_history_keeps_the_newest_of_a_count(rig: Rig) -> None:
    broker = await rig.broker(Limits(history_count=10))
    await fill(broker, 25)
    history = await broker.history(CID, 0)
    assert [entry.offset for entry in history.entries] == list(range(16, 26))
    assert history.continues(Position(history.top.epoch, 15))
    assert not history.continues(Position(history.top.epoch, 14))
    assert history.is_good(Position(history.top.epoch, 14))


async def test_history_keeps_nothing_that_is_too_old(rig: Rig) -> None:
    broker = await rig.broker(Limits(history_age_s=3.0))
    await fill(broker, 3)
    await rig.pass_time(2.0)
    await broker.publish(event(4))
    await rig.pass_time(1.1)
    history = await broker.history(CID, 0)
    assert [entry.offset for entry in history.entries] == [4]
    await rig.pass_time(2.0)
    history = await broker.history(CID, 0)
    assert (history.top.offset, history.entries) == (4, ())
    assert (await broker.publish(event(5))).position == Position(history.top.epoch, 5)


async def test_a_busy_call_forgets_what_is_too_old(rig: Rig) -> None:
    broker = await rig.broker(Limits(history_age_s=3.0))
    await fill(broker, 100)
    await rig.pass_time(3.05)
    await fill(broker, 50)
    history = await broker.history(CID, 0)
    assert [entry.offset for entry in history.entries] == list(range(101, 151))


async def test_a_page_is_bounded_in_bytes_and_the_next_one_goes_on(broker: Broker) -> None:
    for n in range(12):
        await broker.publish(event([n, "x" * 100_000]))
    seen: list[int] = []
    pages = 0
    while True:
        history = await broker.history(CID, len(seen))
        if not history.entries:
            break
        pages += 1
        assert sum(len(entry.body) for entry in history.entries) < 400_000
        assert history.top.offset == 12
        seen.extend(entry.offset for entry in history.entries)
    assert seen == list(range(1, 13))
    assert pages == 4


async def test_a_page_is_bounded_in_number(rig: Rig) -> None:
    broker = await rig.broker(Limits(history_count=5000))
    await fill(broker, 1100)
    first = await broker.history(CID, 0)
    second = await broker.history(CID, 1000)
    assert [entry.offset for entry in first.entries] == list(range(1, 1001))
    assert [entry.offset for entry in second.entries] == list(range(1001, 1101))


async def test_an_entry_larger_than_a_page_still_comes(broker: Broker) -> None:
    await broker.publish(event("x" * 500_000))
    await broker.publish(event(2))
    assert [entry.offset for entry in (await broker.history(CID, 0)).entries] == [1]
    assert [entry.offset for entry in (await broker.history(CID, 1)).entries] == [2]


async def test_an_unused_call_gets_a_position_that_stays(broker: Broker) -> None:
    [position] = await broker.positions([CID])
    assert position.offset == 0
    assert await broker.positions([CID]) == [position]
    first = await broker.publish(event(1))
    assert first.position == Position(position.epoch, 1)
    history = await broker.history(CID, 0)
    assert history.continues(position)


async def test_positions_come_in_the_order_asked_for(broker: Broker) -> None:
    await fill(broker, 2, CID)
    await fill(broker, 1, OTHER)
    positions = await broker.positions([OTHER, CID, OTHER])
    assert [position.offset for position in positions] == [1, 2, 1]
    assert positions[0] == positions[2]


async def test_positions_of_no_calls_are_none(broker: Broker) -> None:
    assert await broker.positions([]) == []


async def test_positions_of_many_calls_come_at_once(broker: Broker, recorder: Recorder) -> None:
    cids = [f"default:{n}" for n in range(1500)]
    await broker.publish(event(1, cid=cids[700]))
    positions = await broker.positions(cids)
    assert [position.offset for position in positions].index(1) == 700
    assert sum(position.offset for position in positions) == 1
    await caught_up(broker, recorder)


async def test_asking_for_positions_and_history_shows_nothing(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    await broker.positions([CID])
    await broker.history(CID, 0)
    await caught_up(broker, recorder)
    assert recorder.publications == [p for p in recorder.publications if p[0] != CID]
