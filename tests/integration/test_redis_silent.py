"""Redis takes everything and says nothing, or too late: every sender has its answer in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import anyio
import pytest

from tests import ledger
from tests.broker.proxy import Proxy, proxied
from tests.integration.doors import event_path, post, post_webhook, webhook
from tests.processes import RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import Client, Refused, connected

pytestmark = pytest.mark.anyio

CID: Final = "default:silent"
TIMEOUT_S: Final = 2.0
"""RELAY_PUBLISH_TIMEOUT of the relay."""
BUSY_S: Final = 3.0
"""What a busy machine may add: less than what the steps of a slow Redis take one by one."""
SENDS: Final = 5
"""Commands of the socket that wait for one another."""


class Parts(NamedTuple):
    """A relay whose Redis is behind a proxy, and a socket of it."""

    relay: RelayProcess
    proxy: Proxy
    john: Client


@pytest.fixture
async def parts(redis_server: RedisServer) -> AsyncIterator[Parts]:
    async with proxied(redis_server) as proxy:
        relay = RelayProcess(redis_url=proxy.url, publish_timeout=TIMEOUT_S)
        async with running(relay), connected(relay, "john") as john:
            await john.watch(CID)
            yield Parts(relay, proxy, john)


@asynccontextmanager
async def running(relay: RelayProcess) -> AsyncIterator[None]:
    """Run a relay while the proxy goes on working on this loop."""
    await anyio.to_thread.run_sync(relay.start)
    try:
        yield
    finally:
        await anyio.to_thread.run_sync(relay.stop)


async def status_of_send(john: Client, number: int) -> int:
    """Return how a command was answered; 201 stands for that it was sent."""
    try:
        await john.send(CID, {"n": number}, event_id=f"john-{number}")
    except Refused as refused:
        return int(refused.status)
    return 201


async def timed(answer: Awaitable[Any]) -> tuple[int, float]:
    """Return the status of an answer, and after how many seconds it came."""
    began = time.monotonic()
    answered = await answer
    status = answered if isinstance(answered, int) else answered.status_code
    return status, time.monotonic() - began


def by_every_door(parts: Parts) -> list[Awaitable[tuple[int, float]]]:
    """Return requests of every kind that publishes; the same ones again are repeats."""
    relay = parts.relay
    event = {"custom": {"n": 0}, "user": {"id": "jane", "name": "Jane"}, "event_id": "jane-0"}
    reaction = {"type": "like"}
    made = {"data": {"created_by_id": "jane"}}
    return [
        timed(post(relay, event_path(CID), event)),
        timed(post(relay, event_path(CID, "/video"), {"custom": {}, "event_id": "a"}, "ann")),
        timed(post(relay, "/video/call/default/silent/reaction", reaction, "ann")),
        timed(post(relay, "/api/v2/video/call/default/made", made)),
        timed(post_webhook(relay, webhook(CID, {"n": 0}))),
        *(timed(status_of_send(parts.john, number)) for number in range(SENDS)),
    ]


async def check_in_time(parts: Parts) -> list[int]:
    """Send by every door, check how long it took, and return the statuses."""
    answers = await asyncio.gather(*by_every_door(parts))
    took = [took_s for _, took_s in answers]
    assert max(took) < TIMEOUT_S + BUSY_S, took
    return [status for status, _ in answers]


async def until_accepted(parts: Parts) -> None:
    """Repeat by every door until all have accepted."""
    async with asyncio.timeout(20):
        while True:
            answers = await asyncio.gather(*by_every_door(parts))
            if all(status in (200, 201) for status, _ in answers):
                return
            await asyncio.sleep(0.05)


async def test_a_black_hole_keeps_no_sender_longer_than_one_bound(parts: Parts) -> None:
    parts.proxy.hold()
    for _ in range(2):  # on the connections that stood, and while new ones are tried
        assert set(await check_in_time(parts)) == {503}
    parts.proxy.release()
    await until_accepted(parts)
    (await ledger.read(parts.relay)).check()


async def test_slow_steps_are_not_waited_for_one_by_one(parts: Parts) -> None:
    parts.proxy.delay_s = 0.4 * TIMEOUT_S  # each way
    statuses = await check_in_time(parts)
    assert 503 in statuses
    parts.proxy.delay_s = 0.0
    await until_accepted(parts)
    (await ledger.read(parts.relay)).check()
    ids = [event["event_id"] for event in parts.john.events]
    assert len(ids) == len(set(ids)), "what was repeated is published once"
