"""A receiver of webhooks on a real socket that answers as it is told, or misbehaves.

``answers`` is what it does with one request after another; the last one stays for all that follow.
``by_path`` has the same for single paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from tests.listening import stop_listening

Answer = Callable[["Peer"], Awaitable[bool]]
"""Answers one request; true keeps the connection."""


class Request(NamedTuple):
    """What arrived: ``at`` on the loop's clock, ``connection`` numbered from 0."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at: float
    connection: int


class Peer(NamedTuple):
    """The other end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def status(code: int, body: bytes = b"ok", **headers: str) -> Answer:
    """Return an answer; ``retry_after="3"`` becomes a header."""

    async def give(peer: Peer) -> bool:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"HTTP/1.1 {code} X", f"content-length: {len(body)}", *lines])
        peer.writer.write(head.encode() + b"\r\n\r\n" + body)
        return True

    return give


async def stall(peer: Peer) -> bool:
    """Say nothing until the other end gives up."""
    await _gone(peer)
    return False


async def reset(peer: Peer) -> bool:
    """Break the connection without an answer."""
    peer.writer.transport.abort()
    return False


async def drip_head(peer: Peer) -> bool:
    """Send the head of an answer byte by byte and never finish it."""
    peer.writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    return await _drip(peer)


async def drip_body(peer: Peer) -> bool:
    """Answer 200 and send a body that never ends, byte by byte."""
    peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    return await _drip(peer)


async def flood(peer: Peer) -> bool:
    """Answer 200 with a body that never ends, as fast as it is taken."""
    peer.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while not peer.writer.is_closing():
            peer.writer.write(b"x" * 65_536)
            await peer.writer.drain()
    return False


async def garbage(peer: Peer) -> bool:
    """Answer with what is not HTTP."""
    peer.writer.write(b"220 mail.example ESMTP\r\n")
    return False


async def close_after(peer: Peer) -> bool:
    """Answer 200 and close the connection without having said so."""
    await status(200)(peer)
    return False


async def _drip(peer: Peer) -> bool:
    gone = asyncio.create_task(_gone(peer))
    try:
        while not gone.done():
            peer.writer.write(b"x")
            await asyncio.wait([gone], timeout=0.02)
    finally:
        gone.cancel()
    return False


async def _gone(peer: Peer) -> None:
    with contextlib.suppress(ConnectionError):
        while await peer.reader.read(1024):
            pass


class Receiver:
    """What it received, and what it does with the next request."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answers: list[Answer] = [status(200)]
        self.by_path: dict[str, list[Answer]] = {}
        self.connections = 0
        self.url = ""
        self._news = asyncio.Event()
        self._handlers: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def until(self, count: int) -> list[Request]:
        """Return the requests once there are so many; waits at most ten seconds."""
        async with asyncio.timeout(10):
            while len(self.requests) < count:
                self._news.clear()
                await self._news.wait()
        return self.requests

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_closed:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(Peer(reader, writer)))
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        task.add_done_callback(lambda _: writer.close())  # also when it never began

    async def aclose(self) -> None:
        self._is_closed = True
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, peer: Peer) -> None:
        number, self.connections = self.connections, self.connections + 1
        try:
            while (request := await _read(peer.reader, number)) is not None:
                self.requests.append(request)
                self._news.set()
                answers = self.by_path.get(request.target, self.answers)
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if not await answer(peer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return


async def _read(reader: asyncio.StreamReader, number: int) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    at = asyncio.get_running_loop().time()
    return Request(method, target, headers, body, at, number)


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Give a receiver on a free port of 127.0.0.1."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.accept, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/hook"
    try:
        yield receiver
    finally:
        await stop_listening(server)
        await receiver.aclose()
