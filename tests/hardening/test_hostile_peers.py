"""Peers that mean harm, or have a bad day, against a real relay: each is bounded and counted.

What needs an hour or a broken kernel is tested on a fake clock and a fake transport in
tests/gateway/test_slow_peers.py; broken frames are in test_autobahn_*.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from relay import calls
from relay.calls import Call
from tests import ledger
from tests.hardening.watcher import HANDSHAKE, masked
from tests.integration.doors import event_path, post
from tests.processes import RelayProcess
from tests.relay_client import Client, connected

pytestmark = pytest.mark.anyio

CROWD = 10_000 if "SOAK" in os.environ else 400
BYTES_EACH = 40_000
AT_ONCE = 200
SO_ATTACH_FILTER = 26


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


# -- peers that log in, and then do one thing wrong ------------------------------------------------

PEERS = 60 if "SOAK" in os.environ else 20
PATIENCE_S = 1.5 * PEERS
READ_BYTES = 262_144
"""What the loop takes from the kernel at once, and a socket may have to hold until its turn."""
SEND_BUFFER = 131_072
"""The relay's SO_SNDBUF as Linux doubles it: memory of the kernel, not of the process."""


class Raw:
    """A socket that is logged in, as bytes: nothing is read or answered unless a test does."""

    def __init__(self, plain: socket.socket) -> None:
        self.plain = plain

    @classmethod
    async def log_in(cls, relay: RelayProcess, user_id: str, *, window: int = 65_536) -> Raw:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", relay.port))
        raw = cls(plain)
        await raw.send(HANDSHAKE)
        await raw.hear(b"\r\n\r\n")
        await raw.say(token=relay.token(user_id), user_details={"id": user_id})
        await raw.hear(b'"connection.ok"')
        return raw

    async def watch(self, cid: str) -> None:
        await self.say(type="call.watch", id=1, call_cid=cid)
        await self.hear(b'"call.watching"')

    async def say(self, **message: object) -> None:
        await self.send(masked(1, json.dumps(message).encode()))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.plain, data)

    async def send_again_and_again(self, data: bytes) -> None:
        """Send it until nobody takes it any more."""
        with suppress(ConnectionError):
            while True:
                await self.send(data)

    async def hear(self, wanted: bytes) -> None:
        data = b""
        async with asyncio.timeout(20):
            while wanted not in data:
                data += (news := await self.read())
                assert news, data

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.plain, 65_536)

    async def code(self) -> int:
        """Read to the end, and return the code of the close frame there."""
        tail = b""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError):
                while news := await self.read():
                    tail = (tail + news)[-200:]
        for start in range(len(tail)):
            if tail[start] == 0x88 and start + 2 + tail[start + 1] == len(tail):
                return int.from_bytes(tail[start + 2 : start + 4], "big")
        raise AssertionError(f"no close frame at the end of {tail!r}")

    def vanish(self) -> None:
        """Drop every packet that comes from now on: no acknowledgement, no FIN, no reset."""
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
        program = struct.pack("HP", 1, ctypes.addressof(instruction))
        self.plain.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@asynccontextmanager
async def logged_in(relay: RelayProcess, count: int, window: int) -> AsyncIterator[list[Raw]]:
    """Give so many peers, of as many users as that takes."""
    with ExitStack() as stack:
        peers = []
        for number in range(count):
            peers.append(await Raw.log_in(relay, f"hostile-{number // 40}", window=window))
            stack.enter_context(peers[-1].plain)
        yield peers


@asynccontextmanager
async def hostile_and_honest(
    relay: RelayProcess, cid: str, bytes_each: int, *, window: int = 65_536
) -> AsyncIterator[tuple[list[Raw], Client]]:
    """Give hostile peers, and one who watches; in the end, check their memory and his events."""
    async with connected(relay, "john") as john:
        await john.watch(cid)
        async with logged_in(relay, 5, window):
            pass  # what is bought once is bought
        before = relay.resident_bytes()
        async with logged_in(relay, PEERS, window) as peers:
            yield peers, john
        assert (relay.resident_bytes() - before) / PEERS < bytes_each
        sent = (await john.send(cid, {"last": True}))["offset"]
        await john.until(lambda frame: frame.get("offset") == sent and "user" in frame)
        assert john.offsets == list(range(1, sent + 1))


async def until_counted(
    relay: RelayProcess, why: str, count: int, left: int = 1, limit_s: float = 20
) -> None:
    """Wait until so many sockets have ended so, and so many are left; then check the books."""
    with anyio.fail_after(limit_s):
        while True:
            books = await ledger.read(relay)
            ended = books.total("relay_sockets_closed_total", why=why)
            if ended >= count and books.total("relay_sockets") <= left:
                break
            await anyio.sleep(0.1)
    assert await counted(relay, "relay_sockets_closed_total", why=why) == count


async def cut_off(relay: RelayProcess) -> float:
    """Return how many did not take what was written to them, as the relay or the kernel saw it."""
    books = await ledger.read(relay)
    return sum(books.total("relay_sockets_closed_total", why=w) for w in ("slow", "vanished"))


async def keep_busy(cid: str, peers: list[Raw], john: Client, count: int) -> None:
    """Let them watch a call, and send so many events of 4 kB there."""
    for raw in peers:
        await raw.watch(cid)
    for n in range(count):
        await john.send(cid, {"n": n, "padding": "x" * 4000})


SLOW = {"soft_buffer_bytes": 100_000, "hard_buffer_bytes": 300_000, "command_rate": 0}


async def test_peers_that_stop_reading_a_busy_call_are_cut_off_at_their_bound() -> None:
    cid = "default:busy"
    with RelayProcess(**SLOW, slow_timeout=60) as relay:
        bound = SLOW["hard_buffer_bytes"] + BYTES_EACH
        async with hostile_and_honest(relay, cid, bound, window=4096) as (peers, john):
            await keep_busy(cid, peers, john, 150)
            await until_counted(relay, "slow", PEERS)


async def test_peers_that_read_a_byte_at_a_time_are_cut_off_in_time() -> None:
    """Their buffer stays below the hard bound, but never gets below the soft one again."""
    cid = "default:sipped"
    with RelayProcess(**SLOW, slow_timeout=2) as relay:
        bound = SLOW["hard_buffer_bytes"] + BYTES_EACH
        async with hostile_and_honest(relay, cid, bound, window=4096) as (peers, john):
            await keep_busy(cid, peers, john, 75)
            with anyio.fail_after(20):
                while await cut_off(relay) < PEERS:
                    for raw in peers:
                        with suppress(ConnectionResetError):
                            await asyncio.get_running_loop().sock_recv(raw.plain, 1)
                    await anyio.sleep(0.25)


async def test_peers_with_a_shut_window_are_given_up_by_the_kernel() -> None:
    """Too little is unsent for the relay to mind, but nothing of it is taken either."""
    cid = "default:shut"
    with RelayProcess(slow_timeout=2, command_rate=0) as relay:
        bound = SEND_BUFFER + BYTES_EACH
        async with hostile_and_honest(relay, cid, bound, window=4096) as (peers, john):
            await keep_busy(cid, peers, john, 50)
            await until_counted(relay, "vanished", PEERS)


async def test_peers_that_vanish_without_a_word_are_given_up_by_the_kernel() -> None:
    cid = "default:gone"
    with RelayProcess(slow_timeout=2) as relay:
        async with hostile_and_honest(relay, cid, BYTES_EACH) as (peers, john):
            for raw in peers:
                await raw.watch(cid)
                raw.vanish()
            await john.send(cid, {"n": 1})
            await until_counted(relay, "vanished", PEERS)


async def test_a_byte_at_a_time_does_not_make_a_login_and_costs_nobody_anything() -> None:
    cid = "default:dripping"
    with RelayProcess(first_frame_timeout=2) as relay:
        async with hostile_and_honest(relay, cid, BYTES_EACH) as (peers, john):
            drips = [await upgraded(relay) for _ in range(PEERS)]
            message = masked(1, b'{"type":"health.check","id":1}')
            for byte in message:
                for raw in peers:
                    await raw.send(bytes([byte]))
                for _, writer in drips:
                    writer.write(b"\x81"[:1] if byte == message[0] else b"\xfe")
                await john.send(cid, {"at": byte}, volatile=True)
                await anyio.sleep(0.05)
            assert {await code_of(pair) for pair in drips} == {4002}
            await until_counted(relay, "no_authentication", PEERS, left=PEERS + 1)
            for raw in peers:  # what came a byte at a time is a message all the same
                await raw.hear(b'"health.check"')


@pytest.mark.parametrize(
    ("flood", "code", "why"),
    [
        (masked(9, bytes(125)) * 3000, 4003, "flood"),
        (b"\x01\x80" + bytes(4) + b"\x00\x81" + bytes(5) + (b"\x00\x81" + bytes(5)) * 20_000,
         4003, "flood"),
        (b"\x01\xfe\xff\xff" + bytes(4) + b" " * 65_535 + b"\x00\xfe\xff\xff" + bytes(65_539),
         1009, "too_big"),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + bytes(500_000), 1009, "too_big"),
        (masked(1, b"[" * 65_000), 4003, "flood"),
    ],
    ids=["pings", "endless_fragments", "large_fragments", "a_terabyte", "largest_messages"],
)  # fmt: skip
async def test_a_flood_is_closed_with_its_code_and_neighbours_are_served(
    flood: bytes, code: int, why: str
) -> None:
    """All flood from one process: what it manages for each has to be too much."""
    cid = "default:flooded"
    with RelayProcess(command_rate=5) as relay:
        bound = READ_BYTES + 2 * 65_536 + BYTES_EACH
        async with hostile_and_honest(relay, cid, bound) as (peers, john):

            async def drown(raw: Raw) -> int:
                drowning = asyncio.create_task(raw.send_again_and_again(flood))
                try:
                    return await raw.code()
                finally:
                    drowning.cancel()
                    await asyncio.gather(drowning, return_exceptions=True)

            drowning = [asyncio.create_task(drown(raw)) for raw in peers]
            for n in range(20):
                await john.send(cid, {"n": n})
            codes = await asyncio.gather(*drowning)
            assert set(codes) == {code}
            await until_counted(relay, why, PEERS)
