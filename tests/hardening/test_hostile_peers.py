"""Peers that mean harm, or have a bad day, against a real relay: each is bounded and counted.

What needs an hour or a broken kernel is tested on a fake clock and a fake transport in
tests/gateway/test_slow_peers.py; broken frames are in test_autobahn_*.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import anyio
import httpx
import pytest

from relay import calls
from relay.calls import Call
from tests import ledger
from tests.hardening.watcher import HANDSHAKE
from tests.integration.doors import event_path, post
from tests.processes import RelayProcess
from tests.relay_client import connected

pytestmark = pytest.mark.anyio

CROWD = 8000 if "SOAK" in os.environ else 400
BYTES_EACH = 40_000
AT_ONCE = 200


async def counted(relay: RelayProcess, name: str, **labels: str) -> float:
    """Return a metric after everything else was found to add up."""
    books = await ledger.read(relay)
    books.check()
    return books.total(name, **labels)


def descriptors(relay: RelayProcess) -> int:
    return len(list(Path(f"/proc/{relay.pid}/fd").iterdir()))


async def upgraded(relay: RelayProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a socket that has said nothing since its handshake."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def code_of(pair: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> int:
    """Return the code of the close frame that comes, answering nothing."""
    reader, writer = pair
    head = await reader.readexactly(4)
    assert head[0] == 0x88
    writer.close()
    return int.from_bytes(head[2:4], "big")


async def test_a_crowd_that_never_authenticates_is_gone_in_time_and_nobody_feels_it() -> None:
    timeout_s = 30 if CROWD > 1000 else 3
    with RelayProcess(first_frame_timeout=timeout_s, http_connections=0) as relay:
        async with connected(relay, "john") as john:
            await john.watch("default:crowded")
            before_bytes, before_fds = relay.resident_bytes(), descriptors(relay)
            crowd = []
            while len(crowd) < CROWD:
                crowd += await asyncio.gather(*(upgraded(relay) for _ in range(AT_ONCE)))
            assert (relay.resident_bytes() - before_bytes) / CROWD < BYTES_EACH
            for n in range(1, 11):
                await john.send("default:crowded", {"n": n})
            await john.until_count(10)
            async with asyncio.timeout(timeout_s + 30):
                codes = await asyncio.gather(*map(code_of, crowd))
            assert set(codes) == {4002}
            assert await counted(relay, "relay_sockets_closed_total", why="no_authentication") == (
                CROWD
            )
            with anyio.fail_after(10):
                while descriptors(relay) > before_fds + 5:
                    await anyio.sleep(0.05)
            assert await john.send("default:crowded", {"n": 11})


async def trickle(relay: RelayProcess) -> bytes:
    """Send the head of a request byte by byte for ever, and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)

    async def say() -> None:
        writer.write(b"POST /webhooks/stream HTTP/1.1\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.1)

    saying = asyncio.create_task(say())
    try:
        return await reader.read(4096)
    finally:
        saying.cancel()
        writer.close()


async def test_slow_loris_is_told_408_and_the_doors_stay_open() -> None:
    with RelayProcess(head_timeout=1) as relay:
        slow = [asyncio.create_task(trickle(relay)) for _ in range(200)]
        await asyncio.sleep(0)
        response = await post(relay, event_path("default:loris"), {"custom": {}, "user_id": "jane"})
        assert response.status_code == 201
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*slow)
        assert {answer.split()[1] for answer in answers} == {b"408"}
        assert await counted(relay, "relay_refused_total", door="http", reason="too_slow") == 200


async def test_more_http_connections_than_allowed_are_told_503_and_sockets_do_not_count() -> None:
    with RelayProcess(http_connections=20, head_timeout=60) as relay:
        async with connected(relay, "john") as john:
            idle = [await asyncio.open_connection("127.0.0.1", relay.port) for _ in range(20)]
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith(b"HTTP/1.1 503 ")
            writer.close()
            assert (await john.watch("default:full"))["offset"] == 0
            for _, other in idle:
                other.close()
            assert await counted(
                relay, "relay_refused_total", door="http", reason="too_many_connections"
            ) == 1  # fmt: skip


async def test_a_phone_on_a_bad_link_keeps_its_call_ended_and_loses_balloons() -> None:
    """It reads nothing while balloons fly and the call ends, then reads on."""
    settings = {"soft_buffer_bytes": 100_000, "slow_timeout": 60, "command_rate": 0}
    cid, balloons = "default:phone", 400
    with RelayProcess(**settings) as relay:
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        link.connect(("127.0.0.1", relay.port))
        link.setblocking(False)
        async with connected(relay, "phone", sock=link) as phone, connected(relay, "jane") as jane:
            await phone.watch(cid)
            phone.socket.transport.pause_reading()
            padding = "x" * 4000
            for n in range(balloons):
                await jane.send(cid, {"n": n, "padding": padding}, volatile=True)
                if n % 40 == 0:
                    await jane.send(cid, {"kept": n})
            now = time.time_ns()
            call = Call(cid=cid, created_by="jane", created_at=now, updated_at=now, ended_at=now)
            ended = {
                "type": "call.ended", "call_cid": cid, "created_at": now,
                "call": calls.response(call, {}),
            }  # fmt: skip
            assert (await webhook(relay, ended)).status_code == 200
            phone.socket.transport.resume_reading()
            await phone.until(lambda frame: frame["type"] == "call.ended")
            assert phone.offsets == list(range(1, 12))
            flown = sum("n" in event.get("custom", {}) for event in phone.events)
            assert 0 < flown < balloons
            skipped = await counted(relay, "relay_deliveries_skipped_total")
            assert skipped >= balloons - flown
            assert phone.close_code is None


async def webhook(relay: RelayProcess, event: dict[str, object]) -> httpx.Response:
    """Post an event as Stream does."""
    from relay import signing, wire
    from tests.processes import API_KEY, API_SECRET

    body = wire.encode(event)
    headers = {"x-api-key": API_KEY, "x-signature": signing.stream_signature(body, API_SECRET)}
    async with httpx.AsyncClient(base_url=relay.base_url) as client:
        return await client.post("/webhooks/stream", content=body, headers=headers)
