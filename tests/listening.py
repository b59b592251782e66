"""End a server of asyncio's without leaving a connection behind."""

from __future__ import annotations

import asyncio


async def stop_listening(server: asyncio.Server) -> None:
    """Let nobody in any more, and return once whoever was let in has been handed over.

    A server that is closed between the two never closes that connection (CPython up to 3.11), and
    the warning about it fails whatever test runs when it is collected.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(3):  # it is accepted, gets its transport, and is handed over
        await asyncio.sleep(0)
    server.close()
