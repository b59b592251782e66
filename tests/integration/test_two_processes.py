"""Two processes on one Redis are one relay: compose.yaml's topology, by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio
import pytest

from tests.integration.doors import DOORS, event_path, post
from tests.processes import RelayProcess, relay_pair
from tests.redis_server import RedisServer
from tests.relay_client import Client, Frame, connected, opened

pytestmark = pytest.mark.anyio

Pair = tuple[RelayProcess, RelayProcess]


def watchers_are(*user_ids: str) -> Callable[[Frame], bool]:
    """Return what tells a list of exactly these watchers, one connection each."""

    def matches(frame: Frame) -> bool:
        if frame["type"] != "call.watchers" or frame["count"] != len(user_ids):
            return False
        return tuple(user["id"] for user in frame["users"]) == user_ids

    return matches


@pytest.mark.parametrize("door", DOORS)
async def test_an_event_through_one_process_reaches_who_watches_on_the_other(
    door: str, pair: Pair, redis_server: RedisServer
) -> None:
    here, there = pair
    cid = f"default:door-{list(DOORS).index(door)}"
    async with connected(here, "john") as john, connected(there, "anna") as anna:
        await john.watch(cid)
        await anna.watch(cid)
        await DOORS[door](there, redis_server, cid, {"render-animation": "balloons"})
        for watcher in (john, anna):
            [event] = await watcher.until_count(1)
            assert event["type"] == "custom"
            assert event["custom"] == {"render-animation": "balloons"}
            assert event["user"]["id"] == "jane"
            assert ("offset" in event) == (door != "PUBLISH")
        # What comes by PUBLISH without an id and a time gets them from each process by itself.
        assert john.events == anna.events or door == "PUBLISH"


async def test_who_watches_is_counted_over_both_processes(pair: Pair) -> None:
    here, there = pair
    async with connected(here, "john") as john:
        await john.watch("default:both")
        async with connected(there, "anna") as anna:
            await anna.watch("default:both")
            await john.until(watchers_are("anna", "john"))
            await anna.until(watchers_are("anna", "john"))
            seen = len(john.frames)
        await john.until(watchers_are("john"), after=seen)


async def test_events_sent_on_both_processes_at_once_come_to_both_in_one_order(pair: Pair) -> None:
    here, there = pair
    async with connected(here, "john") as john, connected(there, "anna") as anna:
        await john.watch("default:order")
        await anna.watch("default:order")

        async def send(client: Client) -> None:
            for n in range(40):
                await client.send("default:order", {"n": n})

        await asyncio.gather(send(john), send(anna))
        await john.until_count(80)
        await anna.until_count(80)
        assert john.offsets == anna.offsets == list(range(1, 81))
        assert john.events == anna.events


async def test_who_knows_a_position_from_one_process_recovers_on_the_other(pair: Pair) -> None:
    here, there = pair
    async with connected(here, "john") as john:
        await john.watch("default:moved")
        await john.send("default:moved", {"n": 1})
        [seen] = await john.until_count(1)
    for n in (2, 3):
        await post(here, event_path("default:moved"), {"custom": {"n": n}, "user_id": "jane"})
    async with connected(there, "john") as john:
        reply = await john.watch("default:moved", since=seen)
        assert reply["recovered"] is True
        await john.until_count(2)
        assert john.offsets == [2, 3]


async def test_a_killed_process_leaves_no_ghosts_and_its_clients_miss_nothing(
    redis_server: RedisServer,
) -> None:
    with relay_pair(redis_server.url, redis_prefix="killed:") as (stays, dies):
        async with connected(stays, "anna") as anna:
            async with connected(dies, "john") as john:
                await anna.watch("default:killed")
                await john.watch("default:killed")
                await anna.until(watchers_are("anna", "john"))
                await anna.send("default:killed", {"n": 1})
                [seen] = await john.until_count(1)
                await anyio.to_thread.run_sync(dies.kill)
                assert await john.until_closed() == 1006
            await anna.send("default:killed", {"n": 2})
            async with connected(stays, "john") as john:
                assert (await john.watch("default:killed", since=seen))["recovered"] is True
                await anna.send("default:killed", {"n": 3})
                await john.until_count(2)
                assert john.offsets == [2, 3]
                last = len(anna.frames)
            await anna.until(watchers_are("anna"), limit_s=30, after=last)


async def test_the_sockets_of_a_user_are_counted_over_both_processes(
    redis_server: RedisServer,
) -> None:
    settings = {"redis_prefix": "counted:", "user_connections": 2}
    with relay_pair(redis_server.url, **settings) as (here, there):
        async with connected(here, "john"), connected(there, "anna"):
            async with connected(there, "john"), opened(here) as third:
                refused = await third.log_in("john", here.token("john"))
                assert (refused["type"], refused["error"]["code"]) == ("connection.error", 9)
            for relay in (there, here):  # room again, on both, as soon as that has come round
                async with asyncio.timeout(10):
                    while not await can_log_in(relay, "john"):
                        await asyncio.sleep(0.01)


async def can_log_in(relay: RelayProcess, user_id: str) -> bool:
    async with opened(relay) as client:
        answer = await client.log_in(user_id, relay.token(user_id))
    return bool(answer["type"] == "connection.ok")
