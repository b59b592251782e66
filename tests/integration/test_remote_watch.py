"""A request reaches one process, the socket it names is another's: they are one relay."""

from __future__ import annotations

import asyncio

import anyio
import httpx
import pytest

from tests.integration.doors import event_path, post
from tests.processes import API_KEY, RelayProcess, relay_pair
from tests.redis_server import RedisServer
from tests.relay_client import Client, connected

pytestmark = pytest.mark.anyio

Pair = tuple[RelayProcess, RelayProcess]


async def ask_to_watch(
    relay: RelayProcess, client: Client, cid: str, user_id: str = "john"
) -> httpx.Response:
    """Get or create a call as an SDK does whose socket is ``client``."""
    params = {"api_key": API_KEY, "user_id": user_id, "connection_id": client.connection_id}
    headers = {"authorization": relay.token(user_id), "stream-auth-type": "jwt"}
    path = f"/video/call/{cid.replace(':', '/')}"
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as http:
        return await http.post(path, params=params, headers=headers, json={})


async def test_a_watch_is_attached_to_a_socket_of_the_other_process(pair: Pair) -> None:
    here, there = pair
    async with connected(there, "john") as john:
        for n in range(10):
            cid = f"default:remote-{n}"
            response = await ask_to_watch(here, john, cid)
            assert response.status_code == 201, response.text
            # The answer came after the owner confirmed, so nothing after it can be missed.
            await post(here, event_path(cid), {"custom": {"n": n}, "user_id": "jane"})
        events = await john.until_count(10)
    assert [event["custom"]["n"] for event in events] == list(range(10))


async def test_many_watches_at_once_are_all_attached(pair: Pair) -> None:
    here, there = pair
    async with connected(there, "john") as john:
        cids = [f"default:many-{n}" for n in range(40)]
        responses = await asyncio.gather(*(ask_to_watch(here, john, cid) for cid in cids))
        assert {response.status_code for response in responses} == {201}
        for cid in cids:
            await post(there, event_path(cid), {"custom": {}, "user_id": "jane"})
        events = await john.until_count(len(cids))
    assert {event["call_cid"] for event in events} == set(cids)


async def test_a_socket_that_is_gone_or_somebody_elses_is_unknown(pair: Pair) -> None:
    here, there = pair
    async with connected(there, "john") as john:
        refused = await ask_to_watch(here, john, "default:gone", "jane")
        assert (refused.status_code, refused.json()["code"]) == (400, 46)
    refused = await ask_to_watch(here, john, "default:gone")
    assert (refused.status_code, refused.json()["code"]) == (400, 46)


async def test_a_frozen_owner_is_told_as_unavailable_and_a_dead_one_as_unknown(
    redis_server: RedisServer,
) -> None:
    with relay_pair(redis_server.url, redis_prefix="frozen:") as (stays, freezes):
        async with connected(freezes, "john") as john:
            assert (await ask_to_watch(stays, john, "default:frozen")).status_code == 201
            freezes.freeze()
            try:
                response = await ask_to_watch(stays, john, "default:frozen")
            finally:
                freezes.thaw()
            assert (response.status_code, response.json()["code"]) == (503, -1)
            assert (await ask_to_watch(stays, john, "default:frozen")).status_code == 201
            await anyio.to_thread.run_sync(freezes.stop)
            await john.until_closed()
        response = await ask_to_watch(stays, john, "default:frozen")
        assert (response.status_code, response.json()["code"]) == (400, 46)
