"""The hub: who gets what, in which order, and what they are told when it cannot be had."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay import metrics, wire
from relay.broker import Unavailable
from relay.events import Position
from relay.gateway import frames
from relay.gateway.call import Batch
from relay.gateway.hub import CHECK_BATCH, UNSUBSCRIBE_AFTER_S, Hub
from tests.gateway.fakes import CID, FAKE_TIME, FakeBroker, FakeWatcher, gathered, turns

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> Any:
    return FAKE_TIME


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
async def hub(broker: FakeBroker) -> AsyncIterator[Hub]:
    hub = Hub(broker, random.Random(7))
    await broker.start(hub, lambda _: None)
    await hub.start()
    yield hub
    await hub.aclose()


@pytest.fixture
def john() -> FakeWatcher:
    return FakeWatcher("john")


def at(offset: int, epoch: str = "e1") -> Position:
    return Position(epoch, offset)


# -- joining ------------------------------------------------------------------------------------


async def test_the_position_is_read_after_the_subscription_was_confirmed(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.gates["subscribe"] = asyncio.Event()
    watching = asyncio.create_task(hub.watch(john, CID))
    await turns()
    assert broker.log == [("subscribe", CID)]
    broker.lose(3)  # nobody is subscribed yet
    broker.gates["subscribe"].set()
    assert await watching == (at(3), None)
    broker.send()
    await turns()
    assert john.offsets == [4]


async def test_what_arrives_before_the_position_is_neither_lost_nor_written_twice(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.slow["positions"] = asyncio.Event()
    watching = asyncio.create_task(hub.watch(john, CID))
    await turns()
    broker.send(2)  # the answer that is under way says 0
    broker.slow["positions"].set()
    position = (await watching).position
    await turns(20)
    assert john.offsets == list(range(position.offset + 1, 3))
    broker.send()
    await turns()
    assert john.offsets[-1] == 3
    assert broker.asked("history") == [0], "the gap is known before another publication shows it"


async def test_an_interruption_while_joining_is_looked_into(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.slow["positions"] = asyncio.Event()
    watching = asyncio.create_task(hub.watch(john, CID))
    await turns()
    broker.lose(2)
    hub.on_interrupted([CID])
    broker.slow["positions"].set()
    position = (await watching).position
    await turns(20)
    assert broker.asked("history") == [0]
    assert john.offsets == list(range(position.offset + 1, 3))


async def test_those_who_come_together_share_one_subscription(hub: Hub, broker: FakeBroker) -> None:
    watchers = [FakeWatcher(str(number)) for number in range(50)]
    await gathered([hub.watch(watcher, CID) for watcher in watchers])
    assert broker.asked("subscribe") == [CID]
    assert broker.asked("positions") == [[CID]]
    broker.send()
    await turns()
    assert all(watcher.offsets == [1] for watcher in watchers)


async def test_a_watcher_gets_nothing_from_before_its_position(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    jane = FakeWatcher("jane")
    broker.send(2)  # gathered, not yet written
    position = (await hub.watch(jane, CID)).position
    broker.send()
    await turns()
    assert position == at(2)
    assert jane.offsets == [3]
    assert john.offsets == [1, 2, 3]


async def test_one_who_leaves_gets_what_came_before_and_nothing_after(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send()
    hub.unwatch(john, CID)
    broker.send()
    await turns()
    assert john.offsets == [1]


async def test_a_watcher_that_closed_meanwhile_is_not_made_live(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    john.is_open = False
    await hub.watch(john, CID)
    await asyncio.sleep(UNSUBSCRIBE_AFTER_S + 1)
    assert broker.asked("unsubscribe") == [CID]


async def test_watching_twice_writes_once(hub: Hub, broker: FakeBroker, john: FakeWatcher) -> None:
    await hub.watch(john, CID)
    await hub.watch(john, CID)
    broker.send()
    await turns()
    assert john.offsets == [1]


# -- the broker is away ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["subscribe", "positions"])
async def test_a_call_that_cannot_be_joined_is_refused_and_forgotten(
    hub: Hub, broker: FakeBroker, john: FakeWatcher, method: str
) -> None:
    broker.away[method] = 1
    with pytest.raises(Unavailable):
        await hub.watch(john, CID)
    await turns()
    assert broker.asked("unsubscribe") == [CID]
    assert (await hub.watch(john, CID)).position == at(0)
    broker.send()
    await turns()
    assert john.offsets == [1]


async def test_joining_has_a_limit_and_leaves_nothing_behind(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.gates["subscribe"] = asyncio.Event()
    with pytest.raises(Unavailable, match="more than 5 s"):
        await hub.watch(john, CID)
    await asyncio.sleep(UNSUBSCRIBE_AFTER_S + 1)
    assert broker.asked("unsubscribe") == [CID]
    del broker.gates["subscribe"]
    assert (await hub.watch(john, CID)).position == at(0)


async def test_one_who_gives_up_joining_does_not_take_the_others_along(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    gate = broker.gates["subscribe"] = asyncio.Event()
    impatient = asyncio.create_task(hub.watch(FakeWatcher("jane"), CID))
    patient = asyncio.create_task(hub.watch(john, CID))
    await turns()
    impatient.cancel()
    gate.set()
    assert (await patient).position == at(0)
    broker.send()
    await turns()
    assert john.offsets == [1]


# -- leaving ------------------------------------------------------------------------------------


async def test_a_call_is_unsubscribed_a_second_after_the_last_watcher_left(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    assert metrics.CALLS._value.get() == 1
    hub.unwatch(john, CID)
    await asyncio.sleep(UNSUBSCRIBE_AFTER_S - 0.1)
    assert broker.asked("unsubscribe") == []
    await asyncio.sleep(0.2)
    assert broker.asked("unsubscribe") == [CID]
    assert metrics.CALLS._value.get() == 0


async def test_a_page_reload_costs_neither_an_unsubscribe_nor_a_subscribe(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    hub.unwatch(john, CID)
    await asyncio.sleep(UNSUBSCRIBE_AFTER_S / 2)
    await hub.watch(FakeWatcher("john"), CID)
    await asyncio.sleep(UNSUBSCRIBE_AFTER_S * 2)
    assert broker.asked("unsubscribe") == []
    assert broker.asked("subscribe") == [CID]


async def test_an_unsubscribe_that_fails_does_no_harm(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.away["unsubscribe"] = 1
    await hub.watch(john, CID)
    hub.unwatch(john, CID)
    await asyncio.sleep(2)
    assert (await hub.watch(john, CID)).position == at(0)


async def test_unwatching_what_nobody_watches_does_nothing(hub: Hub, john: FakeWatcher) -> None:
    hub.unwatch(john, CID)


# -- writing ------------------------------------------------------------------------------------


async def test_what_arrives_in_one_turn_leaves_in_one_write_per_watcher(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    jane = FakeWatcher("jane")
    await hub.watch(john, CID)
    await hub.watch(jane, CID)
    broker.send(3)
    broker.volatile(CID)
    await turns()
    assert len(john.writes) == len(jane.writes) == 1
    assert john.writes[0] is jane.writes[0], "the same bytes go to everyone"
    assert [frame["type"] for frame in john.frames] == ["custom"] * 3 + ["volatile"]


async def test_a_slow_watcher_goes_without_the_volatile_only(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    john.is_slow = True
    await hub.watch(john, CID)
    broker.send()
    broker.volatile(CID)
    broker.send()
    await turns()
    assert [frame["type"] for frame in john.frames] == ["custom", "custom"]
    broker.volatile(CID)
    await turns()
    assert len(john.writes) == 1, "nothing is written where nothing is kept"


async def test_calls_do_not_mix(hub: Hub, broker: FakeBroker, john: FakeWatcher) -> None:
    jane = FakeWatcher("jane")
    await hub.watch(john, CID)
    await hub.watch(jane, "default:other")
    broker.send()
    broker.send(2, "default:other")
    await turns()
    assert john.offsets == [1]
    assert jane.offsets == [1, 2]


async def test_volatile_events_of_this_process_reach_the_watchers(
    hub: Hub, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    hub.deliver_volatile(CID, b'{"type":"wave"}')
    hub.deliver_volatile("default:nobody", b'{"type":"wave"}')
    await turns()
    assert [frame["type"] for frame in john.frames] == ["wave"]


def test_a_batch_is_joined_once_and_without_what_a_slow_socket_misses() -> None:
    batch = Batch([b"a", b"b", b"c"], [1])
    assert batch.everything == b"abc"
    assert batch.kept == b"ac"
    assert (batch.count, batch.volatile_count) == (3, 1)
    one = Batch([b"a"], [])
    assert one.kept is one.everything


# -- gaps ---------------------------------------------------------------------------------------


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
    assert john.offsets == jane.offsets == ["lost 7"]
    broker.send()
    await turns()
    assert john.offsets == ["lost 7", 8]


async def test_what_a_failover_replaced_is_told_to_everyone(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    await hub.watch(john, CID)
    broker.send(5)
    broker.fail_over(keep=3)
    broker.send()
    await turns(20)
    assert john.offsets == [1, 2, 3, 4, 5, "lost 4"]
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


# -- the end ------------------------------------------------------------------------------------


async def test_closing_ends_every_task(broker: FakeBroker, john: FakeWatcher) -> None:
    before = asyncio.all_tasks()
    hub = Hub(broker)
    await broker.start(hub, lambda _: None)
    await hub.start()
    await hub.watch(john, CID)
    broker.gates["subscribe"] = asyncio.Event()
    joining = asyncio.create_task(hub.watch(john, "default:other"))
    broker.away["history"] = -1
    broker.lose()
    broker.send()
    hub.unwatch(john, CID)
    await turns()
    await hub.aclose()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert asyncio.all_tasks() <= before


def test_the_notice_of_a_loss_names_the_position_to_go_on_from() -> None:
    assert wire.decode(frames.lost(CID, at(7))) == {
        "type": "call.position", "call_cid": CID, "epoch": "e1", "offset": 7, "recovered": False,
    }  # fmt: skip
