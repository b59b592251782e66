"""A wire between relays and a Redis: it can lose what it carries, hold it up, slow it down, be cut.

It knows the relay's connections by the names that they give themselves (``publish``, ``command``,
``subscribe``, …), so that one kind can be held up while the others work.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio

from tests.listening import stop_listening
from tests.redis_server import RedisServer
from tests.redis_shapes import Cluster, Watched

_NAME = re.compile(rb"SETNAME\r\n\$\d+\r\nrelay:(?:[^:\r]+:)?(\w+)\r\n")
_MESSAGE = b"*3\r\n$8\r\nsmessage\r\n"
_STRINGS = 2
"""Bulk strings that follow: the channel and what was published there."""


class Proxy:
    """Passes bytes on, in both directions, until it is told otherwise.

    ``lost`` counts the messages that ``lose`` has taken out.
    """

    def __init__(self, server: RedisServer) -> None:
        self.is_mute = False
        self.is_deaf = False
        self.delay_s = 0.0
        self.url = ""
        self.lost = 0
        self._server = server
        self._serving: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._held: tuple[str, ...] | None = None
        self._released = asyncio.Event()
        self._losing: bytes | None = None
        self._is_closed = False

    def mute(self) -> None:
        """From now on lose what Redis answers on the connections that stand."""
        self.is_mute = True

    def deafen(self) -> None:
        """From now on lose what is asked on the connections that stand."""
        self.is_deaf = True

    def hold(self, *names: str) -> None:
        """Be a black hole until ``release``: TCP is up and nothing passes, in neither direction.

        On connections of these names only, if any are given; new ones are accepted, and held.
        """
        self._held = names
        self._released.clear()

    def release(self) -> None:
        """Pass on what was held up: it comes late, as from a network that is there again."""
        self._held = None
        self._released.set()

    def lose(self, text: bytes) -> None:
        """Lose the next message of a subscription in which ``text`` is, and nothing else."""
        self._losing = text

    async def aclose(self) -> None:
        """End every connection, and wait for that; those that still come are hung up on."""
        self._is_closed = True
        self.release()
        self.cut()
        await asyncio.gather(*self._serving)

    def cut(self) -> None:
        """End every connection; new ones work."""
        self.is_mute = self.is_deaf = False
        for writer in list(self._writers):
            writer.transport.abort()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve another connection."""
        if self._is_closed:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self._server.port)
        except OSError:
            writer.transport.abort()
            return
        redis_reader, redis_writer = there
        if self._is_closed:
            writer.transport.abort()
            redis_writer.transport.abort()
            return
        self._writers |= {writer, redis_writer}
        wire = Wire(self)
        try:
            await asyncio.gather(
                wire.carry(reader, redis_writer, replies=False),
                wire.carry(redis_reader, writer, replies=True),
            )
        finally:
            self._writers -= {writer, redis_writer}
            writer.close()
            redis_writer.close()

    async def passing(self, name: str) -> None:
        """Return once what a connection of this name carries may pass."""
        while self._held is not None and (not self._held or name in self._held):
            await self._released.wait()

    def without_lost(self, data: bytes) -> bytes:
        """Return what Redis sends without the message that is to be lost."""
        if self._losing is None or (at := data.find(self._losing)) < 0:
            return data
        begin = data.rfind(_MESSAGE, 0, at)
        if begin < 0:  # the same text in an answer
            return data
        end = begin + len(_MESSAGE)
        for _ in range(_STRINGS):
            size, _, _ = data[end + 1 :].partition(b"\r\n")
            end += 1 + len(size) + 2 + int(size) + 2
        self._losing = None
        self.lost += 1
        return data[:begin] + data[end:]


class Wire:
    """One connection through a proxy; its name is what the client called it, if it did."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._name = ""

    async def carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        """Carry one direction until it ends."""
        proxy = self._proxy
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not replies and (found := _NAME.search(data)):
                    self._name = found[1].decode()
                if proxy.delay_s:
                    await asyncio.sleep(proxy.delay_s)
                await proxy.passing(self._name)
                if replies:
                    data = proxy.without_lost(data)
                if not (proxy.is_mute if replies else proxy.is_deaf):
                    writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def proxied(server: RedisServer) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a server, on the port under which others are told to reach it."""
    proxy = Proxy(server)
    port = 0 if server.front == server.port else server.front
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", port)
    proxy.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        await stop_listening(listener)
        await proxy.aclose()
        await listener.wait_closed()


@contextlib.asynccontextmanager
async def behind_proxies(redis: Watched | Cluster) -> AsyncIterator[dict[RedisServer, Proxy]]:
    """Run servers that were made ``fronted``, each behind the proxy that is returned for it."""
    async with AsyncExitStack() as stack:
        proxies = {
            server: await stack.enter_async_context(proxied(server)) for server in redis.servers
        }
        await anyio.to_thread.run_sync(redis.__enter__)
        try:
            yield proxies
        finally:
            redis.__exit__(None, None, None)
