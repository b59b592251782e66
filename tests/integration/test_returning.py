"""Two processes and a client that names no position: wherever it comes back, nothing is missing."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import httpx
import pytest

from relay.errors import Close
from tests.integration.doors import event_path, post
from tests.integration.test_remote_watch import ask_to_watch
from tests.processes import API_KEY, RelayProcess, relay_pair
from tests.redis_server import RedisServer
from tests.relay_client import Client, connected

pytestmark = pytest.mark.anyio

Pair = tuple[RelayProcess, RelayProcess]


async def publish(relay: RelayProcess, cid: str, *numbers: int) -> None:
    for number in numbers:
        sent = {"custom": {"n": number}, "user_id": "jane"}
        assert (await post(relay, event_path(cid), sent)).status_code == 201


async def begin(relay: RelayProcess, client: Client, cid: str) -> None:
    assert (await ask_to_watch(relay, client, cid)).status_code == 201


async def come_back(relay: RelayProcess, client: Client, *cids: str) -> httpx.Response:
    """Ask what Stream's SDK asks on its new socket."""
    params = {"api_key": API_KEY, "user_id": "john", "connection_id": client.connection_id}
    headers = {"authorization": relay.token("john"), "stream-auth-type": "jwt"}
    body = {"watch": True, "filter_conditions": {"cid": {"$in": list(cids)}}}
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as http:
        response = await http.post("/video/calls", params=params, headers=headers, json=body)
    assert response.status_code == 201, response.text
    return response


def numbers(client: Client) -> list[Any]:
    return [event["custom"]["n"] for event in client.events if event["type"] == "custom"]


async def break_off(client: Client) -> None:
    client.socket.transport.abort()
    await client.until_closed()


async def test_it_breaks_on_one_process_and_is_back_on_another(pair: Pair) -> None:
    here, there = pair
    cid = "default:returns"
    async with connected(there, "john") as john:
        await begin(here, john, cid)
        await publish(here, cid, 1, 2)
        await john.until_count(2)
        await break_off(john)
    await publish(there, cid, *range(3, 40))
    async with connected(here, "john") as john:
        await come_back(there, john, cid)
        await publish(there, cid, 40)
        await john.until(lambda frame: frame.get("custom") == {"n": 40})
        assert numbers(john) == list(range(1, 41))


async def test_it_said_goodbye(pair: Pair) -> None:
    here, there = pair
    cid = "default:goodbye"
    async with connected(there, "john") as john:
        await begin(here, john, cid)
    await publish(here, cid, 1)
    async with connected(there, "john") as john:
        await come_back(there, john, cid)
        await publish(here, cid, 2)
        await john.until_count(1)
        assert numbers(john) == [2]


async def test_it_is_back_before_anybody_noticed_that_its_line_is_dead(pair: Pair) -> None:
    here, there = pair
    cid = "default:dead-line"
    async with connected(there, "john") as old:
        await begin(here, old, cid)
        old.socket.transport.pause_reading()
        await publish(here, cid, 1, 2)
        async with connected(here, "john") as john:
            await come_back(here, john, cid)
            await publish(there, cid, 3)
            await john.until_count(3)
            assert numbers(john) == [1, 2, 3]
        old.socket.transport.resume_reading()
        assert await old.until_closed() == 1006


async def test_its_process_is_stopped(redis_server: RedisServer) -> None:
    cid = "default:stopped"
    with relay_pair(redis_server.url, redis_prefix="returns-stopped:") as (stops, stays):
        async with connected(stops, "john") as john:
            await begin(stops, john, cid)
            await publish(stays, cid, 1)
            await john.until_count(1)
            await anyio.to_thread.run_sync(stops.stop)
            assert await john.until_closed() == Close.SERVICE_RESTART
        await publish(stays, cid, 2)
        async with connected(stays, "john") as john:
            await come_back(stays, john, cid)
            await publish(stays, cid, 3)
            await john.until(lambda frame: frame.get("custom") == {"n": 3})
            assert numbers(john) == [1, 2, 3]


async def test_its_process_does_not_answer(redis_server: RedisServer) -> None:
    cid = "default:frozen"
    with relay_pair(redis_server.url, redis_prefix="returns-frozen:") as (freezes, stays):
        async with connected(freezes, "john") as john:
            await begin(stays, john, cid)
            freezes.freeze()
            try:
                await publish(stays, cid, 1, 2)
                async with connected(stays, "john") as again:
                    await come_back(stays, again, cid)
                    await publish(stays, cid, 3)
                    await again.until(lambda frame: frame.get("custom") == {"n": 3})
                    assert numbers(again) == [1, 2, 3]
            finally:
                freezes.thaw()
            await john.until_count(3)


async def test_another_page_of_the_user_is_open(pair: Pair) -> None:
    here, there = pair
    cid, both = "default:pages", ("default:pages", "default:page-b")
    async with connected(here, "john") as stays:
        await begin(here, stays, cid)
        async with connected(there, "john") as john:
            for one in both:
                await begin(there, john, one)
            await break_off(john)
        for one in both:
            await publish(here, one, 1)
        async with connected(there, "john") as john:
            await come_back(here, john, *both)
            for one in both:
                await publish(there, one, 2)
            await john.until_count(4)
            assert sorted(numbers(john)) == [1, 1, 2, 2]
        await stays.until(lambda frame: frame.get("custom") == {"n": 2})
        assert numbers(stays) == [1, 2]


async def test_its_process_is_killed_after_it_said_how_far_everybody_was(
    redis_server: RedisServer,
) -> None:
    cid, prefix = "default:marked", "returns-marked:"
    with relay_pair(redis_server.url, redis_prefix=prefix) as (dies, stays):
        async with connected(dies, "john") as john:
            await begin(dies, john, cid)
            await publish(stays, cid, *range(1, 6))
            await john.until(lambda frame: frame.get("custom") == {"n": 5})
            top = john.offsets[-1]
            with redis_server.client() as redis:
                node = john.connection_id.partition("-")[0]
                async with asyncio.timeout(30):
                    mark = ""
                    while not mark.endswith(f":{top}"):
                        await asyncio.sleep(0.1)
                        mark = str(redis.hget(f"{prefix}marks:{node}", cid))
            await anyio.to_thread.run_sync(dies.kill)
            await john.until_closed()
        await publish(stays, cid, 6)
        async with connected(stays, "john") as john:
            await come_back(stays, john, cid)
            await publish(stays, cid, 7)
            await john.until(lambda frame: frame.get("custom") == {"n": 7})
            assert numbers(john) == [6, 7]
