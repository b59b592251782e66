"""A server that speaks RESP and answers as a test says: for what a real Redis rarely does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import hiredis

from tests.listening import stop_listening

Answer = Callable[[list[bytes]], bytes | None]


class FakeRedis:
    """Answers connecting clients itself and leaves the rest to ``answer``; None says nothing."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""
        self._is_refusing = False

    def refuse(self) -> None:
        """Hang up on whoever connects from now on."""
        self._is_refusing = True

    def accept(self) -> None:
        """Serve them again."""
        self._is_refusing = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_refusing:
            writer.transport.abort()
            return
        self.writers.append(writer)
        parser = hiredis.Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    if (reply := self._reply(command)) is not None:
                        writer.write(reply)
        writer.close()

    def _reply(self, command: list[bytes]) -> bytes | None:
        match command:
            case [b"CLIENT", b"INFO"]:
                return b"$19\r\nid=7 addr=1.2.3.4:5\r\n"
            case [b"CLIENT" | b"SCRIPT" | b"SELECT" | b"AUTH", *_]:
                return b"+OK\r\n"
        self.commands.append(command)
        return self.answer(command)


@contextlib.asynccontextmanager
async def faking(answer: Answer) -> AsyncIterator[FakeRedis]:
    """Run a fake server."""
    fake = FakeRedis(answer)
    listener = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
    try:
        yield fake
    finally:
        await stop_listening(listener)
        fake.refuse()  # whoever has just been let in
        for writer in fake.writers:
            writer.transport.abort()
        await listener.wait_closed()
