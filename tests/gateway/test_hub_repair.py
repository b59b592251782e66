"""Gaps, lost tails and interruptions: repaired in order, or told to everyone."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from relay.gateway.comparisons import CHECK_BATCH
from relay.gateway.hub import UNSUBSCRIBE_AFTER_S, Hub
from tests.gateway.conftest import counted
from tests.gateway.fakes import CID, FakeBroker, FakeWatcher, gathered, turns

pytestmark = pytest.mark.anyio


# -- gaps -----------------------------------------------------------------------------------------


async def test_a_gap_is_filled_from_history_in_order(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send()
    broker.lose(3)
    broker.send(2)
    await turns(20)
    assert john.offsets == [1, 2, 3, 4, 5, 6]
    assert broker.asked("history") == [1]


async def test_a_gap_longer_than_a_page_is_filled_page_by_page(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.page_count = 4
    await hub.watch(john, CID)
    broker.lose(18)
    broker.send()
    await turns(60)
    assert john.offsets == list(range(1, 20))
    assert broker.asked("history") == [0, 4, 8, 12, 16]


async def test_what_arrives_during_a_repair_comes_after_what_was_missing(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    answer = broker.slow["history"] = asyncio.Event()
    broker.lose(2)
    broker.send()
    await turns()
    broker.send(2)
    assert john.offsets == []
    answer.set()
    await turns(20)
    assert john.offsets == [1, 2, 3, 4, 5]


async def test_two_watchers_at_different_offsets_both_end_contiguous(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send(3)
    jane = FakeWatcher("jane")
    await hub.watch(jane, CID)
    broker.lose(2)
    broker.send()
    await turns(20)
    assert john.offsets == [1, 2, 3, 4, 5, 6]
    assert jane.offsets == [4, 5, 6]


async def test_one_who_joins_during_a_repair_gets_what_is_after_its_position(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    answer = broker.slow["history"] = asyncio.Event()
    broker.lose(2)
    broker.send()
    await turns()
    jane = FakeWatcher("jane")
    position = (await hub.watch(jane, CID)).position
    answer.set()
    await turns(20)
    assert jane.offsets == list(range(position.offset + 1, 4))


async def test_what_was_trimmed_is_told_to_everyone(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    jane = FakeWatcher("jane")
    await hub.watch(john, CID)
    await hub.watch(jane, CID)
    broker.lose(5)
    broker.trim(3)
    broker.send(2)
    await turns(20)
    assert john.offsets == jane.offsets == ["lost 3", 4, 5, 6, 7]
    broker.send()
    await turns()
    assert john.offsets == ["lost 3", 4, 5, 6, 7, 8]


async def test_what_a_failover_replaced_is_told_to_everyone(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send(5)
    broker.fail_over(keep=3)
    broker.send()
    await turns(20)
    assert john.offsets == [1, 2, 3, 4, 5, "lost 3", 4]
    assert john.frames[-1]["epoch"] == "e2"


async def test_a_failover_that_lost_nothing_is_not_told(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send(2)
    broker.fail_over(keep=2)
    broker.send()
    await turns(20)
    assert john.offsets == [1, 2, 3]


async def test_a_repair_lasts_until_the_broker_is_back(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.away["history"] = 5
    broker.lose()
    broker.send()
    await asyncio.sleep(12)
    assert len(broker.asked("history")) == 6
    assert john.offsets == [1, 2]


async def test_a_repair_that_fails_for_a_reason_nobody_foresaw_is_begun_again(
    hub: Hub, broker: FakeBroker, john: FakeWatcher, capsys: pytest.CaptureFixture[str]
) -> None:
    await hub.watch(john, CID)
    original = broker.history

    async def broken(cid: str, after: int) -> Any:
        raise ValueError("a bug")

    broker.history = broken  # type: ignore[method-assign]
    broker.lose()
    broker.send()
    await turns(20)
    broker.history = original  # type: ignore[method-assign]
    broker.send()
    await turns(20)
    assert john.offsets == [1, 2, 3]
    assert "background task failed" in capsys.readouterr().out


async def test_a_repair_goes_on_when_one_watcher_left_and_ends_with_the_call(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.away["history"] = -1
    broker.lose()
    broker.send()
    await turns()
    hub.unwatch(john, CID)
    await asyncio.sleep(UNSUBSCRIBE_AFTER_S + 0.5)
    reads = len(broker.asked("history"))
    await asyncio.sleep(10)
    assert len(broker.asked("history")) == reads


# -- a lost tail, an interruption -----------------------------------------------------------------


async def test_a_lost_tail_is_found_within_thirty_seconds(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send()
    broker.lose(2)
    await asyncio.sleep(30)
    assert john.offsets == [1, 2, 3]


async def test_a_call_that_is_not_silent_is_not_compared(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    compared = len(broker.asked("positions"))
    for _ in range(12):
        broker.send()
        await asyncio.sleep(10)
    assert len(broker.asked("positions")) == compared


async def test_a_comparison_that_was_overtaken_repairs_nothing(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    answer = broker.slow["positions"] = asyncio.Event()
    hub.on_interrupted([CID])
    await turns()
    broker.send(2)
    answer.set()
    await turns()
    assert broker.asked("history") == []
    assert john.offsets == [1, 2]


async def test_an_interruption_is_looked_into_at_once_and_in_batches(
    hub: Hub, broker: FakeBroker
) -> None:
    cids = [f"default:{number}" for number in range(CHECK_BATCH + 100)]
    watchers = {cid: FakeWatcher() for cid in cids}
    await gathered([hub.watch(watcher, cid) for cid, watcher in watchers.items()])
    broker.log.clear()
    broker.lose(1, cids[0])
    broker.lose(2, cids[-1])
    hub.on_interrupted(cids)
    await turns(30)
    assert sorted(len(batch) for batch in broker.asked("positions")) == [100, CHECK_BATCH]
    assert watchers[cids[0]].offsets == [1]
    assert watchers[cids[-1]].offsets == [1, 2]
    assert len(broker.asked("history")) == 2


@pytest.mark.parametrize("is_interrupted", [True, False], ids=["interrupted", "silent"])
async def test_a_server_that_is_away_hides_no_lost_tail_of_another(
    hub: Hub, broker: FakeBroker, john: FakeWatcher, is_interrupted: bool
) -> None:
    away = [f"default:{number}" for number in range(100)]
    broker.partitions = dict.fromkeys(away, 1)
    for cid in (*away, CID):
        await hub.watch(john, cid)
    broker.lost_partitions = {1}
    broker.lose(1, away[0])
    broker.lose(1, CID)
    if is_interrupted:
        hub.on_interrupted([*away, CID])
    await asyncio.sleep(0.1 if is_interrupted else 30.0)
    assert john.offsets == [1], "the call whose server answers"
    broker.lost_partitions.clear()
    await asyncio.sleep(broker.silence_s + 2.0)
    assert john.offsets == [1, 1], "both"


async def test_what_is_suspected_during_a_comparison_is_compared_again(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    answer = broker.slow["positions"] = asyncio.Event()
    hub.on_interrupted([CID])
    await turns()
    broker.lose()
    hub.on_interrupted([CID])
    answer.set()
    await turns(20)
    assert john.offsets == [1]


async def test_a_comparison_that_fails_for_a_reason_nobody_foresaw_is_made_again(
    hub: Hub, broker: FakeBroker, john: FakeWatcher, capsys: pytest.CaptureFixture[str]
) -> None:
    await hub.watch(john, CID)
    broker.bugs["positions"] = 2
    broker.lose()
    hub.on_interrupted([CID])
    await asyncio.sleep(2)
    assert john.offsets == [1]
    assert capsys.readouterr().out.count("background work failed and begins again") == 2


async def test_the_age_of_the_oldest_comparison_is_exported(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    def age_s() -> float:
        return time.time() - counted("relay_positions_compared_timestamp_seconds")

    await hub.watch(john, CID)
    await asyncio.sleep(10)
    assert age_s() == pytest.approx(9, abs=2)
    broker.send()
    await asyncio.sleep(5)
    assert age_s() == pytest.approx(5, abs=2)
    broker.away["positions"] = -1
    await asyncio.sleep(100)
    assert age_s() == pytest.approx(105, abs=2)
    broker.away["positions"] = 0
    await asyncio.sleep(5)
    assert age_s() < 8
    hub.unwatch(john, CID)
    await asyncio.sleep(60)
    assert age_s() < 2, "nobody watches anything"


async def test_interruptions_while_the_broker_is_away_do_not_pile_up(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.away["positions"] = -1
    tasks = len(asyncio.all_tasks())
    for _ in range(100):
        hub.on_interrupted([CID, "default:unknown"])
        await turns(2)
    assert len(asyncio.all_tasks()) <= tasks + 1
    broker.lose()
    broker.away["positions"] = 0
    await asyncio.sleep(3)
    assert john.offsets == [1]


async def test_many_repairs_do_not_read_all_at_once(hub: Hub, broker: FakeBroker) -> None:
    cids = [f"default:{number}" for number in range(40)]
    await gathered([hub.watch(FakeWatcher(), cid) for cid in cids])
    broker.gates["history"] = asyncio.Event()
    for cid in cids:
        broker.lose(1, cid)
        broker.send(1, cid)
    await turns()
    assert len(broker.asked("history")) == 16
    broker.gates["history"].set()
    await turns(60)
    assert len(broker.asked("history")) == 40
