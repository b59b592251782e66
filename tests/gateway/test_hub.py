"""The hub: who gets what, in which order, from joining to leaving."""

from __future__ import annotations

import asyncio

import pytest

from relay import metrics, wire
from relay.broker import Unavailable
from relay.gateway import frames
from relay.gateway.call import Batch
from relay.gateway.hub import UNSUBSCRIBE_AFTER_S, Hub
from tests.gateway.conftest import counted
from tests.gateway.fakes import CID, FakeBroker, FakeWatcher, at, gathered, turns

pytestmark = pytest.mark.anyio


# -- joining --------------------------------------------------------------------------------------


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


# -- leaving --------------------------------------------------------------------------------------


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


# -- writing --------------------------------------------------------------------------------------


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


async def test_a_publication_that_gets_lost_in_the_hub_is_owed_for_ever(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    """The books show it: what is owed is counted where the hub takes a publication, not later."""
    jane = FakeWatcher("jane")
    await hub.watch(john, CID)
    await hub.watch(jane, CID)
    before = owed_and_written()
    broker.send()
    hub._calls[CID]._frames.clear()
    await turns()
    assert (john.offsets, jane.offsets) == ([], [])
    owed, written = owed_and_written()
    assert (owed - before[0], written - before[1]) == (2, 0)


def owed_and_written() -> tuple[float, float]:
    return counted("relay_deliveries_owed_total"), counted("relay_deliveries_written_total")


def test_a_batch_is_joined_once_and_without_what_a_slow_socket_misses() -> None:
    batch = Batch([b"a", b"b", b"c"], [1])
    assert batch.everything == b"abc"
    assert batch.kept == b"ac"
    assert (batch.count, batch.volatile_count) == (3, 1)
    one = Batch([b"a"], [])
    assert one.kept is one.everything


# -- the end --------------------------------------------------------------------------------------


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
