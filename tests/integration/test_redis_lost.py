"""Redis is lost while the relay runs: the doors say so, sockets stay, delivery resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from tests.integration.doors import event_path, post, post_webhook, webhook
from tests.processes import RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import Client, Frame, Refused, connected

pytestmark = pytest.mark.anyio

CID = "default:lost"
SAVING = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(params=["killed", "frozen"])
def loss(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def saving_redis() -> Iterator[RedisServer]:
    with RedisServer(*SAVING) as server:
        yield server


@asynccontextmanager
async def lost(redis: RedisServer, loss: str) -> AsyncIterator[None]:
    """Take Redis away, and bring it back at the end."""
    redis.kill() if loss == "killed" else redis.freeze()
    yield
    await anyio.to_thread.run_sync(redis.start if loss == "killed" else redis.thaw)


async def until_ok(send: Callable[[], Awaitable[httpx.Response]]) -> dict[str, Any]:
    """Repeat a request for as long as the answer is 503; return the first other answer."""
    response = await _when(send, lambda status: status != 503)
    assert response.status_code < 300, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_every_door_answers_503_and_a_repeat_is_published_once(
    loss: str, saving_redis: RedisServer
) -> None:
    redis = saving_redis
    with RelayProcess(redis_url=redis.url, publish_timeout=1) as relay:
        async with connected(relay, "john") as john:
            await john.watch(CID)
            body = webhook(CID, {"n": 1})
            request = {"custom": {"n": 2}, "user_id": "jane", "event_id": "jane-2"}
            async with lost(redis, loss):
                answers = await asyncio.gather(
                    post_webhook(relay, body),
                    post(relay, event_path(CID), request),
                    post(relay, event_path(CID, "/video"), {"custom": {"n": 0}}, "jane"),
                )
                for answer in answers:
                    assert answer.status_code == 503, answer.text
                    assert answer.json()["code"] == -1
                with pytest.raises(Refused) as refused:
                    await john.send(CID, {"n": 3}, event_id="john-3")
                assert (refused.value.status, refused.value.code) == (503, -1)
                await _when(lambda: _get(relay, "/readyz"), lambda status: status == 503)
                assert await _status(relay, "/healthz") == 200
            await until_ok(lambda: post_webhook(relay, body))
            await until_ok(lambda: post(relay, event_path(CID), request))
            await _until_sent(john, {"n": 3}, "john-3")
            await until_ok(lambda: _get(relay, "/readyz"))
            await john.until(lambda frame: frame.get("custom") == {"n": 3})
            seen = [event["custom"]["n"] for event in john.events]
            # A frozen Redis had the requests already: what was answered 503 may still happen.
            assert sorted(n for n in seen if n) == [1, 2, 3]
            assert john.offsets == list(range(1, len(seen) + 1))
            assert john.close_code is None


async def test_watchers_are_told_when_what_they_had_is_gone(redis: RedisServer) -> None:
    with RelayProcess(redis_url=redis.url) as relay:
        async with connected(relay, "john") as john:
            await john.watch(CID)
            await john.send(CID, {"n": 1})
            [before] = await john.until_count(1)
            async with lost(redis, "killed"):
                pass
            notice = await john.until(lambda frame: frame["type"] == "call.position")
            assert notice["recovered"] is False
            assert notice["epoch"] != before["epoch"]
            sent = await _until_sent(john, {"n": 2}, "john-2")
            assert (sent["epoch"], sent["offset"]) == (notice["epoch"], notice["offset"] + 1)
            await john.until_count(2)


async def test_nothing_is_missed_when_redis_kept_it(saving_redis: RedisServer) -> None:
    """What other processes published while one was cut off is filled in from history."""
    redis = saving_redis
    with (
        RelayProcess(redis_url=redis.url) as here,
        RelayProcess(redis_url=redis.url) as there,
    ):
        async with connected(here, "john") as john, connected(there, "jane") as jane:
            await john.watch(CID)
            for n in range(1, 6):
                await jane.send(CID, {"n": n})
            async with lost(redis, "killed"):
                pass
            for n in range(6, 11):
                await _until_sent(jane, {"n": n}, f"jane-{n}")
            await john.until_count(10)
            assert john.offsets == list(range(1, 11))
            assert [event["custom"]["n"] for event in john.events] == list(range(1, 11))
            assert not [f for f in john.frames if f.get("recovered") is False]
            assert john.events[0]["epoch"] != john.events[-1]["epoch"]


async def test_a_position_from_before_a_restart_is_good_when_redis_kept_everything(
    saving_redis: RedisServer,
) -> None:
    redis = saving_redis
    with RelayProcess(redis_url=redis.url) as relay:
        async with connected(relay, "jane") as jane:
            first = await jane.send(CID, {"n": 1})
            await jane.send(CID, {"n": 2})
            async with lost(redis, "killed"):
                pass
            await _until_sent(jane, {"n": 3}, "jane-3")
        async with connected(relay, "john") as john:
            assert (await john.watch(CID, since=first))["recovered"] is True
            await john.until_count(2)
            assert john.offsets == [2, 3]


async def _when(
    send: Callable[[], Awaitable[httpx.Response]], is_right: Callable[[int], bool]
) -> httpx.Response:
    """Repeat a request until the status of its answer is right, and return that."""
    async with asyncio.timeout(15):
        while not is_right((response := await send()).status_code):
            await asyncio.sleep(0.1)
    return response


async def _until_sent(client: Client, custom: Frame, event_id: str) -> Frame:
    """Send a command again and again, under one id, until it is answered with a position."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await client.send(CID, custom, event_id=event_id)
            except Refused as error:
                assert error.status == 503
                await asyncio.sleep(0.1)


async def _get(relay: RelayProcess, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        return await client.get(path)


async def _status(relay: RelayProcess, path: str) -> int:
    return (await _get(relay, path)).status_code
