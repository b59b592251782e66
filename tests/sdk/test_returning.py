"""Stream's video client loses its line and watches again: it gets what it missed, in order.

It names no position. The relay knows by the pongs what had arrived, and may repeat a little of it.
"""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest

from tests.browser.forwarder import Forwarder
from tests.integration.doors import by_server
from tests.integration.test_returning import come_back
from tests.processes import RelayProcess, relay_pair
from tests.redis_server import RedisServer
from tests.relay_client import connected
from tests.sdk.driver import VideoClient, in_node

pytestmark = pytest.mark.anyio


async def publish(relay: RelayProcess, redis: RedisServer, cid: str, *numbers: int) -> None:
    for number in numbers:
        await by_server(relay, redis, cid, {"n": number})


async def watch(client: VideoClient, relay: RelayProcess, cid: str) -> None:
    """Let it log in and watch. The call's first event is its own ``call.created``."""
    await client.connect("john", relay.token("john"))
    await client.watch(cid)


async def offsets(client: VideoClient, last: int) -> list[int]:
    """Return the offsets of the events it got, once the one at ``last`` is among them."""

    def got() -> list[int]:
        return [event["offset"] for event in client.got()]

    await client.until(lambda: last in got(), f"event at {last}")
    return got()


def check_complete(offsets: list[int], last: int) -> None:
    """Nothing is missing; what comes twice comes in one go, at the return, and in order."""
    assert set(offsets) == set(range(2, last + 1)), offsets
    falls = [n for n, (one, two) in enumerate(pairwise(offsets)) if two < one]
    assert len(falls) <= 1, offsets
    start = falls[0] + 1 if falls else 0
    assert offsets[start:] == sorted(set(offsets[start:])), offsets


async def test_its_process_is_killed(redis_server: RedisServer) -> None:
    cid = "default:killed"
    with (
        relay_pair(redis_server.url, redis_prefix="sdk-killed:") as (dies, stays),
        Forwarder(dies.port, stays.port) as line,
    ):
        async with in_node(line) as john:
            await watch(john, dies, cid)
            await publish(stays, redis_server, cid, 2, 3)
            assert await offsets(john, 3) == [2, 3]
            await anyio.to_thread.run_sync(dies.kill)
            await publish(stays, redis_server, cid, *range(4, 24))
            await offsets(john, 23)
            await publish(stays, redis_server, cid, 24)
            check_complete(await offsets(john, 24), 24)


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_its_line_loses_what_the_relay_wrote(broker: str, redis_server: RedisServer) -> None:
    cid = "default:black-hole"
    url = redis_server.url if broker == "redis" else ""
    with (
        RelayProcess(redis_url=url, redis_prefix="sdk-lost:") as relay,
        Forwarder(relay.port) as line,
    ):
        async with in_node(line) as john:
            await watch(john, relay, cid)
            await publish(relay, redis_server, cid, 2, 3)
            assert await offsets(john, 3) == [2, 3]
            line.silence()
            await publish(relay, redis_server, cid, 4, 5, 6)
            line.cut()
            await publish(relay, redis_server, cid, 7)
            line.restore()
            await offsets(john, 7)
            await publish(relay, redis_server, cid, 8)
            check_complete(await offsets(john, 8), 8)


async def test_one_that_disconnects_is_not_waited_for(redis_server: RedisServer) -> None:
    cid = "default:disconnects"
    with RelayProcess(redis_url=redis_server.url, redis_prefix="sdk-leaves:") as relay:
        async with in_node(relay) as john:
            await watch(john, relay, cid)
            await publish(relay, redis_server, cid, 2)
            await offsets(john, 2)
        await publish(relay, redis_server, cid, 3)
        async with connected(relay, "john") as again:
            await come_back(relay, again, cid)
            await publish(relay, redis_server, cid, 4)
            await again.until_count(1)
            assert again.offsets == [4]
