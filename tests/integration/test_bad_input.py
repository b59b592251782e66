"""Every bad input against real processes, with both brokers: HTTP and the socket."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from relay import tokens
from relay.errors import Close
from relay.settings import Settings
from tests import bad_input
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.relay_client import Client, connected, opened

pytestmark = pytest.mark.anyio

TARGET = bad_input.Target(API_KEY, API_SECRET, Settings().webhook_max_bytes)


async def test_bad_requests_are_refused_counted_and_forgotten(relay: RelayProcess) -> None:
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        for row in bad_input.rows(TARGET):
            await bad_input.check(client, TARGET, row)


# -- frames -------------------------------------------------------------------------------------


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    """Return a frame as a client sends it, masked with zeros."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([0x80 | len(payload)]) + bytes(4) + payload
    return head + b"\xff" + struct.pack(">Q", len(payload)) + bytes(4) + payload


def fragments(payload: bytes, count: int) -> bytes:
    """Return a text message in so many pieces."""
    size = -(-len(payload) // count)
    pieces = [payload[start : start + size] for start in range(0, len(payload), size)]
    last = len(pieces) - 1
    return b"".join(
        frame(piece, 0 if index else 1, fin=index == last) for index, piece in enumerate(pieces)
    )


def text(message: object) -> bytes:
    return frame(json.dumps(message).encode())


@dataclass(frozen=True)
class Row:
    """Bytes on a socket that has logged in, or has not; and what must come of them.

    ``code`` is that of the error, ``close`` of the end (None: the socket stays); ``metric`` counts
    it.
    """

    name: str
    data: bytes
    metric: str
    code: int | None = None
    close: Close | None = None
    logged_in: bool = True

    def __str__(self) -> str:
        return self.name


def refused(reason: str) -> str:
    return f'relay_refused_total{{door="socket",reason="{reason}"}}'


def closed(why: str) -> str:
    return f'relay_sockets_closed_total{{why="{why}"}}'


def first_frames() -> list[Row]:
    now = int(time.time())

    def row(name: str, code: int, reason: str, data: bytes) -> Row:
        return Row(f"first frame: {name}", data, closed(reason), code, Close.REFUSED, False)

    def login(name: str, code: int, reason: str, token: object, /, **details: Any) -> Row:
        first = {"token": token, "user_details": {"id": "john", **details}}
        return row(name, code, reason, text(first))

    john = tokens.issue(API_SECRET, user_id="john", now=now)
    unsigned = bad_input.forged("none", {"user_id": "john"}, lambda _: b"")
    return [
        row("not JSON", 4, "not_json", frame(b"balloons")),
        row("empty", 4, "not_json", frame(b"")),
        row("an array", 4, "not_an_object", text([1])),
        row("too deep", 4, "too_deep", frame(b"[" * 9000 + b"]" * 9000)),
        row("no user", 4, "bad_input", text({"token": john})),
        login("no token", 5, "bad_token", None),
        login("not a token", 5, "bad_token", "balloons"),
        login("token expired", 40, "token_expired", tokens.issue(API_SECRET, user_id="john", now=now, life_s=-9)),
        login("token of another key", 43, "bad_signature", tokens.issue("x" * 32, user_id="john", now=now)),
        login("token with alg none", 43, "bad_signature", unsigned),
        login("another user's token", 5, "other_user", tokens.issue(API_SECRET, user_id="jane", now=now)),
        login("a server's token", 17, "not_allowed", tokens.issue(API_SECRET, user_id=None, now=now)),
        login("name that is a number", 4, "bad_input", john, name=7),
        login("custom too large", 22, "custom_too_large", john, custom={"x": "x" * 6000}),
        Row("first frame: binary", frame(b"\0", 2), closed("binary"), None, Close.UNSUPPORTED_DATA, False),
        Row("first frame: invalid UTF-8", frame(b"\xff"), closed("invalid_utf8"), None, Close.INVALID_TEXT, False),
    ]  # fmt: skip


def broken_frames() -> list[Row]:
    def row(name: str, data: bytes, close: Close, why: str) -> Row:
        return Row(f"frame: {name}", data, closed(why), None, close)

    big = b'"' + b"x" * 65_536 + b'"'
    return [
        row("binary", frame(b"\0", 2), Close.UNSUPPORTED_DATA, "binary"),
        row("binary in fragments", frame(b"\0", 2, fin=False), Close.UNSUPPORTED_DATA, "binary"),
        row("invalid UTF-8", frame(b'"\xff"'), Close.INVALID_TEXT, "invalid_utf8"),
        row("UTF-8 cut short", frame(b'"\xe2\x82'), Close.INVALID_TEXT, "invalid_utf8"),
        row("too big", frame(big), Close.TOO_BIG, "too_big"),
        row("too big in fragments", fragments(big, 9), Close.TOO_BIG, "too_big"),
        row("unmasked", b"\x81\x02{}", Close.PROTOCOL_ERROR, "protocol_error"),
        row("reserved opcode", frame(b"", 3), Close.PROTOCOL_ERROR, "protocol_error"),
        row("reserved bit", b"\xc1\x80" + bytes(4), Close.PROTOCOL_ERROR, "protocol_error"),
        row("continuation of nothing", frame(b"", 0), Close.PROTOCOL_ERROR, "protocol_error"),
        row("huge ping", frame(b"x" * 126, 9), Close.PROTOCOL_ERROR, "protocol_error"),
    ]


def commands() -> list[Row]:
    def row(name: str, code: int, reason: str, data: bytes) -> Row:
        return Row(f"command: {name}", data, refused(reason), code)

    def command(name: str, code: int, reason: str, **fields: Any) -> Row:
        return row(name, code, reason, text(fields))

    def watch(name: str, code: int, reason: str, **fields: Any) -> Row:
        fields = {"type": "call.watch", "call_cid": "default:bad", **fields}
        return command(f"watch {name}", code, reason, **fields)

    def send(name: str, code: int, reason: str, **fields: Any) -> Row:
        fields = {"type": "call.send", "call_cid": "default:bad", "custom": {}, **fields}
        return command(f"send {name}", code, reason, **fields)

    return [
        row("not JSON", 4, "not_json", frame(b"balloons")),
        row("lone surrogate", 4, "not_json", frame(b'{"type":"\\ud800"}')),
        row("not an object", 4, "not_an_object", frame(b"7")),
        row("too deep", 4, "too_deep", frame(b"[" * 9000 + b"]" * 9000)),
        row("in fragments", 4, "unknown_command", fragments(b'{"type":"balloons"}', 5)),
        row("array of too many", 4, "bad_input", text([{"type": "health.check"}] * 17)),
        command("unknown", 4, "unknown_command", type="call.explode"),
        command("without a type", 4, "unknown_command", id="x"),
        command("with an id that is a list", 4, "bad_input", type="call.watch", id=[1]),
        command("with an endless id", 4, "bad_input", type="call.watch", id="x" * 129),
        watch("of no call", 4, "bad_cid", call_cid=None),
        watch("with spaces", 4, "bad_cid", call_cid="default:a b"),
        watch("with slashes", 4, "bad_cid", call_cid="default:a/b"),
        watch("of 1 000 characters", 4, "bad_cid", call_cid="default:" + "x" * 992),
        watch("of a call not in the token", 17, "call_not_in_token", call_cid="default:secret"),
        watch("since a number", 4, "bad_input", since=7),
        watch("since half a position", 4, "bad_input", since={"epoch": "e"}),
        watch("since a negative offset", 4, "bad_input", since={"epoch": "e", "offset": -1}),
        watch("since a huge offset", 4, "bad_input", since={"epoch": "e", "offset": 2**60}),
        send("no custom", 4, "custom_not_an_object", custom=None),
        send("custom that is a word", 4, "custom_not_an_object", custom="balloons"),
        send("custom too large", 22, "custom_too_large", custom={"x": "x" * 5120}),
        send("to a call not in the token", 17, "call_not_in_token", call_cid="default:secret"),
        send("volatile that is a word", 4, "bad_input", volatile="yes"),
        send("event_id with spaces", 4, "bad_event_id", event_id="a b"),
        command("refresh without a token", 5, "bad_token", type="token.refresh"),
        command(
            "refresh with another user's token", 17, "other_user", type="token.refresh",
            token=tokens.issue(API_SECRET, user_id="jane", now=time.time()),
        ),
    ]  # fmt: skip


ROWS = [*first_frames(), *broken_frames(), *commands()]


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_bad_frames_are_answered_counted_and_forgotten(row: Row, relay: RelayProcess) -> None:
    before = await counted(relay, row.metric)
    limited = relay.token("john", call_cids=["default:bad"])
    opening = connected(relay, "john", limited) if row.logged_in else opened(relay)
    async with opening as client:
        client.socket.transport.write(row.data)
        if row.code is not None:
            wanted = "error" if row.logged_in else "connection.error"
            answer = await client.until(lambda frame: frame["type"] == wanted)
            assert answer["error"]["code"] == row.code, answer
            assert set(answer["error"]) == bad_input.SIX_KEYS
            assert API_SECRET not in json.dumps(answer)
        if row.close is not None:
            assert await client.until_closed() == row.close
        else:
            await check_good(client)
    assert await counted(relay, row.metric) == before + 1
    async with connected(relay, "john") as client:
        await check_good(client)


async def check_good(client: Client) -> None:
    """Assert that a good command is carried out."""
    assert (await client.send("default:bad", {"n": 1}))["offset"] > 0


async def test_a_socket_that_floods_is_told_then_closed_and_nobody_else_notices(
    relay: RelayProcess,
) -> None:
    before = await counted(relay, refused("rate_limited"))
    ended = await counted(relay, closed("flood"))
    async with connected(relay, "john") as flood, connected(relay, "jane") as jane:
        flood.socket.transport.write(text({"type": "health.check"}) * 5000)
        assert await flood.until_closed() == Close.FLOOD
        checks = [frame for frame in flood.frames if frame["type"] == "health.check"]
        errors = [frame for frame in flood.frames if frame["type"] == "error"]
        assert 100 <= len(checks) <= 110
        assert 95 <= len(errors) <= 110
        assert {frame["error"]["code"] for frame in errors} == {9}
        await check_good(jane)
    assert await counted(relay, refused("rate_limited")) == before + len(errors)
    assert await counted(relay, closed("flood")) == ended + 1


async def test_pings_of_a_peer_that_never_reads_cost_bounded_memory(relay: RelayProcess) -> None:
    before, floods = relay.resident_bytes(), await counted(relay, closed("flood"))
    async with connected(relay, "john") as hostile:
        transport = hostile.socket.transport
        transport.pause_reading()
        pings = frame(b"x" * 125, 9) * 1000
        async with asyncio.timeout(5):
            for _ in range(600):  # 78 MB, if nobody stopped it
                transport.write(pings)
                await drained(transport.get_write_buffer_size)
                if transport.is_closing() or transport.get_write_buffer_size() > 1_000_000:
                    break
        assert relay.resident_bytes() < before + 20_000_000
        assert await counted(relay, closed("flood")) == floods + 1
        async with connected(relay, "jane") as jane:
            await check_good(jane)
        transport.resume_reading()
        transport.abort()


async def drained(unsent: Callable[[], int], limit_s: float = 0.2) -> None:
    """Give the peer a moment to take what was written."""
    end = time.monotonic() + limit_s
    while unsent() and time.monotonic() < end:
        await asyncio.sleep(0.001)


async def counted(relay: RelayProcess, metric: str) -> float:
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        body = (await client.get("/metrics")).text
    found = re.findall(rf"^{re.escape(metric)} (\S+)$", body, re.MULTILINE)
    return float(found[0]) if found else 0.0
