"""A wire between the relay and Redis that can lose either direction and be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.redis_server import RedisServer


class Proxy:
    """Passes bytes on, in both directions, until it is told otherwise."""

    def __init__(self, server: RedisServer) -> None:
        self.is_mute = False
        self.is_deaf = False
        self.delay_s = 0.0
        self.url = ""
        self.connections = 0
        self._server = server
        self._writers: set[asyncio.StreamWriter] = set()

    def mute(self) -> None:
        """From now on lose what Redis answers on the connections that stand."""
        self.is_mute = True

    def deafen(self) -> None:
        """From now on lose what is asked on the connections that stand."""
        self.is_deaf = True

    def swallow(self) -> None:
        """From now on lose everything, on new connections too, until they are cut."""
        self.is_mute = self.is_deaf = True

    def cut(self) -> None:
        """End every connection; new ones work."""
        self.is_mute = self.is_deaf = False
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        self._writers |= {writer, redis_writer}
        try:
            await asyncio.gather(
                self._pass(reader, redis_writer, replies=False),
                self._pass(redis_reader, writer, replies=True),
            )
        finally:
            self._writers -= {writer, redis_writer}
            writer.close()
            redis_writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not (self.is_mute if replies else self.is_deaf):
                    writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def proxied(server: RedisServer) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a server."""
    proxy = Proxy(server)
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        listener.close()
        proxy.cut()
        await listener.wait_closed()
