"""Leaving a shared port: whoever knocked while we listened is let in, nobody is reset."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from relay import ports

pytestmark = pytest.mark.anyio


def knock(number: int) -> socket.socket:
    """Begin to connect, and do not wait."""
    made = socket.socket()
    made.setblocking(False)
    made.connect_ex(("127.0.0.1", number))
    return made


class Greeter(asyncio.Protocol):
    """Says which listener took a connection."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._name)
        transport.close()


async def greeting(knocking: socket.socket) -> bytes:
    with knocking:
        return await asyncio.get_running_loop().sock_recv(knocking, 1)


async def test_nobody_is_lost_when_one_of_two_leaves() -> None:
    """Without the wait the kernel resets those in the queue; without the filter newcomers too."""
    loop = asyncio.get_running_loop()
    leaves = ports.listen("127.0.0.1", 0, shared=True)
    number = leaves.getsockname()[1]
    stays = ports.listen("127.0.0.1", number, shared=True)
    leaving = await loop.create_server(lambda: Greeter(b"l"), sock=leaves, backlog=1000)
    staying = await loop.create_server(lambda: Greeter(b"s"), sock=stays, backlog=1000)
    async with staying:
        waiting = [knock(number) for _ in range(200)]  # none of them accepted yet
        emptying = asyncio.create_task(ports.emptied(leaves))
        await asyncio.sleep(0)
        late = len(waiting)
        while not emptying.done():
            waiting.append(knock(number))
            await asyncio.sleep(0.005)
        leaving.close()
        waiting += [knock(number) for _ in range(100)]
        async with asyncio.timeout(10):
            greetings = await asyncio.gather(*map(greeting, waiting))
    assert greetings.count(b"l") + greetings.count(b"s") == len(waiting)
    assert greetings.count(b"l") > 50
    assert len(greetings) - late > 100 + 10, "they knocked while it was emptied"
    assert set(greetings[late:]) == {b"s"}


async def test_a_queue_is_emptied_where_there_is_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_SO_ATTACH_FILTER", 9999)
    monkeypatch.setattr(ports, "ON_THE_WAY_S", 60.0)
    loop = asyncio.get_running_loop()
    listener = ports.listen("127.0.0.1", 0, shared=True)
    number = listener.getsockname()[1]
    server = await loop.create_server(lambda: Greeter(b"l"), sock=listener, backlog=1000)
    waiting = [knock(number) for _ in range(200)]
    began = time.monotonic()
    await ports.emptied(listener)
    server.close()
    assert time.monotonic() - began < 30, "it waited for nobody"
    async with asyncio.timeout(10):
        assert set(await asyncio.gather(*map(greeting, waiting))) == {b"l"}


async def test_a_queue_that_nobody_empties_is_not_waited_for_for_ever() -> None:
    listener = ports.listen("127.0.0.1", 0, shared=False)
    with listener, knock(listener.getsockname()[1]):
        await asyncio.wait_for(ports.emptied(listener), 5)
