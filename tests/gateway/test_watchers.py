"""Who else watches: everyone is told, nobody too often, and nobody who is dead."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from relay.broker import Roster
from relay.events import Position
from relay.gateway.hub import Hub
from relay.gateway.watchers import (
    AT_ONCE,
    FAILED_INTERVAL_S,
    GATHER_S,
    INTERVAL_S,
    USERS_SHOWN,
)
from tests.gateway.fakes import CID, FakeBroker, FakeWatcher

pytestmark = pytest.mark.anyio


def elsewhere(*users: str, count: int | None = None) -> Roster:
    listed = tuple({"id": user, "name": "", "image": ""} for user in users)
    return Roster(len(users) if count is None else count, listed)


async def test_one_who_joins_is_told_and_so_are_the_others(hub: Hub) -> None:
    john, jane = FakeWatcher("john"), FakeWatcher("jane")
    await hub.watch(john, CID)
    await asyncio.sleep(0.2)
    assert john.shown() == [(1, ["john"])]
    await hub.watch(jane, CID)
    await asyncio.sleep(1.5)
    assert john.shown()[-1] == jane.shown()[-1] == (2, ["jane", "john"])
    hub.unwatch(jane, CID)
    await asyncio.sleep(1.5)
    assert john.shown()[-1] == (1, ["john"])


async def test_a_second_socket_of_a_user_counts_but_is_listed_once(hub: Hub) -> None:
    first, second = FakeWatcher("john"), FakeWatcher("john")
    await hub.watch(first, CID)
    await hub.watch(second, CID)
    await asyncio.sleep(2)
    assert first.shown()[-1] == (2, ["john"])


async def test_a_newcomer_is_told_even_when_the_list_stays_the_same(
    hub: Hub, broker: FakeBroker
) -> None:
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(2)
    hub.unwatch(john, CID)
    again = FakeWatcher("john")
    await hub.watch(again, CID)
    await asyncio.sleep(2)
    assert again.shown() == [(1, ["john"])]


async def test_at_most_one_list_a_second_whatever_happens(hub: Hub, broker: FakeBroker) -> None:
    loop = asyncio.get_running_loop()
    told: list[float] = []

    class Stopwatch(FakeWatcher):
        def deliver(self, batch: Any) -> int:
            told.append(loop.time())
            return super().deliver(batch)

    steady = Stopwatch("steady")
    await hub.watch(steady, CID)
    for number in range(300):
        watcher = FakeWatcher(f"user{number}")
        await hub.watch(watcher, CID)
        if number % 3:
            await asyncio.sleep(0.017)
        hub.on_roster(CID)
    await asyncio.sleep(3)
    assert steady.shown()[-1][0] == 301
    gaps = [after - before for before, after in pairwise(told)]
    assert min(gaps) >= INTERVAL_S - 1e-6
    assert max(gaps) <= INTERVAL_S + 0.2


async def test_a_change_while_the_list_is_being_read_does_not_make_a_second_one_at_once(
    hub: Hub, broker: FakeBroker
) -> None:
    john = FakeWatcher("john")
    gate = broker.gates["rosters"] = asyncio.Event()
    await hub.watch(john, CID)
    await asyncio.sleep(0.5)
    await hub.watch(FakeWatcher("jane"), CID)
    await asyncio.sleep(0.5)
    gate.set()
    await asyncio.sleep(0.5)
    assert len(john.shown()) == 1
    await asyncio.sleep(1)
    assert len(john.shown()) == 2


async def test_those_on_other_processes_are_counted(hub: Hub, broker: FakeBroker) -> None:
    broker.alive = frozenset({"here", "there"})
    broker.all_rosters[CID] = {"there": elsewhere("jane", "max", count=7)}
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(0.2)
    assert john.shown() == [(8, ["jane", "john", "max"])]
    broker.all_rosters[CID]["there"] = elsewhere("jane")
    hub.on_roster(CID)
    hub.on_roster("default:not-watched-here")
    await asyncio.sleep(1.2)
    assert john.shown()[-1] == (2, ["jane", "john"])


async def test_a_list_that_did_not_change_is_not_told_again(hub: Hub, broker: FakeBroker) -> None:
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(2)
    hub.on_roster(CID)
    await asyncio.sleep(2)
    assert len(john.shown()) == 1


async def test_the_watchers_of_a_process_that_died_vanish(hub: Hub, broker: FakeBroker) -> None:
    broker.alive = frozenset({"here", "there"})
    broker.all_rosters[CID] = {"there": elsewhere("ghost")}
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(1)
    assert john.shown()[-1] == (2, ["ghost", "john"])
    broker.alive = frozenset({"here"})
    await asyncio.sleep(5)
    assert john.shown()[-1] == (1, ["john"])
    reads = len(broker.asked("rosters"))
    await asyncio.sleep(30)
    assert len(broker.asked("rosters")) == reads, "a death is noticed once"


async def test_deaths_are_noticed_again_once_the_broker_is_back(
    hub: Hub, broker: FakeBroker
) -> None:
    broker.alive = frozenset({"here", "there"})
    broker.all_rosters[CID] = {"there": elsewhere("ghost")}
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(1)
    broker.away["nodes"] = 3
    broker.alive = frozenset({"here"})
    await asyncio.sleep(20)
    assert john.shown()[-1] == (1, ["john"])


async def test_a_list_shows_fifty_and_counts_all(hub: Hub) -> None:
    watchers = [FakeWatcher(f"user{number:03}") for number in range(USERS_SHOWN + 30)]
    for watcher in watchers:
        await hub.watch(watcher, CID)
    await asyncio.sleep(2)
    count, listed = watchers[0].shown()[-1]
    assert count == USERS_SHOWN + 30
    assert len(listed) == USERS_SHOWN
    assert listed == sorted(listed)


async def test_one_who_is_still_recovering_is_counted_and_told_when_live(
    hub: Hub, broker: FakeBroker
) -> None:
    broker.lose(3)
    broker.page_count = 1
    john, jane = FakeWatcher("john"), FakeWatcher("jane")
    await hub.watch(jane, CID)
    john.room.clear()
    await hub.watch(john, CID, Position("e1", 0))
    await asyncio.sleep(2)
    assert jane.shown()[-1][0] == 2
    assert john.shown() == []
    john.room.set()
    await asyncio.sleep(2)
    assert john.shown() == [(2, ["jane", "john"])]


async def test_the_last_one_takes_the_roster_along(hub: Hub, broker: FakeBroker) -> None:
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(1)
    hub.unwatch(john, CID)
    await asyncio.sleep(3)
    assert broker.all_rosters[CID] == {}
    assert broker.asked("set_roster")[-1] == (CID, 0)


@pytest.mark.parametrize("method", ["set_roster", "rosters"])
async def test_a_list_waits_while_the_broker_is_away(
    hub: Hub, broker: FakeBroker, method: str
) -> None:
    broker.away[method] = 3
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(10)
    assert john.shown() == [(1, ["john"])]
    assert broker.all_rosters[CID]["here"].count == 1


@pytest.mark.parametrize("method", ["set_roster", "rosters"])
async def test_a_list_that_fails_for_a_reason_nobody_foresaw_is_told_later_and_holds_up_no_other(
    hub: Hub, broker: FakeBroker, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.bugs[method] = 1
    john, jane = FakeWatcher("john"), FakeWatcher("jane")
    await hub.watch(john, CID)
    await hub.watch(jane, "default:other")
    await asyncio.sleep(2)
    assert jane.shown() == [(1, ["jane"])]
    assert john.shown() == []
    await asyncio.sleep(FAILED_INTERVAL_S)
    assert john.shown() == [(1, ["john"])]
    assert broker.all_rosters[CID]["here"].count == 1
    assert capsys.readouterr().out.count("list of watchers failed") == 1


async def test_deaths_are_noticed_after_a_failure_that_nobody_foresaw(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.alive = frozenset({"here", "there"})
    broker.all_rosters[CID] = {"there": elsewhere("joe")}
    await hub.watch(john, CID)
    await asyncio.sleep(2)
    assert john.shown()[-1] == (2, ["joe", "john"])
    broker.bugs["nodes"] = 1
    broker.alive = frozenset({"here"})
    await asyncio.sleep(10)
    assert john.shown()[-1] == (1, ["john"])


async def test_after_an_interruption_the_rosters_are_written_again(
    hub: Hub, broker: FakeBroker
) -> None:
    john = FakeWatcher("john")
    await hub.watch(john, CID)
    await asyncio.sleep(1)
    broker.all_rosters.clear()
    hub.on_interrupted([CID])
    await asyncio.sleep(1.5)
    assert broker.all_rosters[CID]["here"].count == 1


async def test_a_thousand_calls_are_told_soon(hub: Hub) -> None:
    watchers = {f"default:{number}": FakeWatcher() for number in range(1000)}
    for cid, watcher in watchers.items():
        await hub.watch(watcher, cid)
    await asyncio.sleep(3)
    assert all(len(watcher.shown()) == 1 for watcher in watchers.values())


async def test_a_server_that_is_silent_holds_up_the_lists_of_its_own_calls_alone(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    others = {f"default:{number}": FakeWatcher() for number in range(2 * AT_ONCE)}
    for cid, watcher in others.items():
        broker.partitions[cid] = 1 + len(broker.partitions) % 80
        await hub.watch(watcher, cid)
    await hub.watch(john, CID)
    await asyncio.sleep(2 * INTERVAL_S)
    broker.lost_partitions = set(broker.partitions.values())
    hub.on_interrupted(others)
    for number in range(2, 8):
        await asyncio.sleep(GATHER_S)
        await hub.watch(FakeWatcher(f"user{number}"), CID)
        await asyncio.sleep(INTERVAL_S + 2 * GATHER_S)
        assert john.shown()[-1][0] == number
    broker.lost_partitions.clear()
    asked = len(broker.asked("set_roster"))
    await asyncio.sleep(2 * broker.silence_s)
    assert {cid for cid, _ in broker.asked("set_roster")[asked:]} == others.keys()


async def test_a_list_that_waits_for_a_silent_server_is_told_once_it_speaks(
    hub: Hub, broker: FakeBroker, john: FakeWatcher
) -> None:
    broker.partitions[CID] = 1
    await hub.watch(john, CID)
    await asyncio.sleep(2 * INTERVAL_S)
    broker.lost_partitions = {1}
    for number in range(2, 5):
        await hub.watch(FakeWatcher(f"user{number}"), CID)
        await asyncio.sleep(GATHER_S + 0.5 * broker.silence_s)
    assert john.shown()[-1][0] == 1
    broker.lost_partitions.clear()
    await asyncio.sleep(broker.silence_s + INTERVAL_S + 2 * GATHER_S)
    assert john.shown()[-1][0] == 4
    assert len(john.shown()) == 2
