"""A real socket that stops reading while 100 MB are published: cut off, and nobody else notices."""

from __future__ import annotations

import socket

import anyio
import pytest

from tests import ledger
from tests.processes import RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import Client, connected

pytestmark = pytest.mark.anyio

CID = "default:slow"
EVENT_BYTES = 16_000
EVENTS = 6_400
"""Times ``EVENT_BYTES`` it is 100 MB."""
AT_ONCE = 8
"""Events under way: less than the soft bound, so that the neighbour itself is never slow."""
GROWTH_BYTES = 60_000_000
SETTINGS = {
    "command_rate": 0, "custom_max_bytes": 0, "history_count": 100, "slow_timeout": 2,
}  # fmt: skip


@pytest.mark.parametrize("volatile", [False, True], ids=["kept", "volatile"])
@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_memory_is_bounded_and_the_neighbour_gets_everything(
    broker: str, volatile: bool, redis_server: RedisServer
) -> None:
    url = redis_server.url if broker == "redis" else ""
    prefix = f"slow-{volatile}:"
    with RelayProcess(redis_url=url, redis_prefix=prefix, **SETTINGS) as relay:
        async with connected(relay, "slow", sock=_socket(relay)) as slow:
            async with connected(relay, "jane") as jane:
                await jane.watch(CID)
                await slow.watch(CID)
                await publish(jane, 1, volatile=volatile)
                [seen] = await slow.until_count(1)
                before = relay.resident_bytes()
                slow.socket.transport.pause_reading()
                await publish(jane, EVENTS, volatile=volatile)
                assert relay.peak_bytes() - before < GROWTH_BYTES
                await anyio.to_thread.run_sync(relay.wait_for_line, '"why": "slow"')
                assert jane.close_code is None
                assert [e["custom"]["n"] for e in jane.events] == [0, *range(EVENTS)]
                if not volatile:
                    assert jane.offsets == list(range(1, EVENTS + 2))
            slow.socket.transport.resume_reading()
            assert await slow.until_closed() == 1006
        (await ledger.read(relay)).check()
        if not volatile:
            async with connected(relay, "slow") as slow:
                # Far more was published than history keeps.
                assert (await slow.watch(CID, since=seen))["recovered"] is False


async def test_one_that_was_cut_off_comes_back_and_misses_nothing() -> None:
    settings = {**SETTINGS, "hard_buffer_bytes": 300_000, "history_count": 1000}
    with RelayProcess(**settings) as relay:
        async with connected(relay, "slow", sock=_socket(relay)) as slow:
            await slow.watch(CID)
            slow.socket.transport.pause_reading()
            async with connected(relay, "jane") as jane:
                await jane.watch(CID)
                await publish(jane, 400, volatile=False)
            await anyio.to_thread.run_sync(relay.wait_for_line, '"why": "slow"')
            slow.socket.transport.resume_reading()
            assert await slow.until_closed() == 1006
        had = slow.offsets
        assert had == list(range(1, len(had) + 1))
        assert 0 < len(had) < 400
        async with connected(relay, "slow") as again:
            assert (await again.watch(CID, since=slow.events[-1]))["recovered"] is True
            await again.until_count(400 - len(had))
            assert [*had, *again.offsets] == list(range(1, 401))


async def publish(client: Client, count: int, *, volatile: bool) -> None:
    """Send events as the client itself receives them, a few at a time."""
    padding = "x" * EVENT_BYTES
    arrived = len(client.events)
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        for n in numbers:
            custom = {"n": n, "padding": padding}
            command = {"type": "call.send", "call_cid": CID, "custom": custom, "volatile": volatile}
            await client.say(command)
        arrived += len(numbers)
        await client.until_count(arrived)


def _socket(relay: RelayProcess) -> socket.socket:
    """Return a socket whose kernel takes little off the relay's hands."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    made.connect(("127.0.0.1", relay.port))
    made.setblocking(False)
    return made
