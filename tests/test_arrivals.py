"""Accepting a few newcomers in each turn: who is here already has its turn too."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, cast

import pytest

from relay import ports
from relay.arrivals import AT_ONCE, Arrivals
from tests.gateway.conftest import counted
from tests.gateway.fakes import BOTH_LOOPS

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=BOTH_LOOPS, ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


class Greeter(asyncio.Protocol):
    """Stays, and says nothing."""

    made: list[asyncio.Transport]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(cast("asyncio.Transport", transport))


@asynccontextmanager
async def arriving(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, Any]]:
    """Serve on a free port; gives it, and the transports of those who have been let in."""
    made: list[asyncio.Transport] = []
    listener = ports.listen("127.0.0.1", 0, shared=False)
    number = listener.getsockname()[1]
    greeter = type("Ours", (Greeter,), {"made": made})
    arrivals = Arrivals(listener, greeter, tls, tls_s=0.2)
    arrivals.start()
    yield number, made
    arrivals.close()
    await arrivals.wait_closed()
    assert listener.fileno() == -1
    for transport in made:
        transport.abort()
    await asyncio.sleep(0.01)


async def test_whoever_knocks_is_let_in_and_a_few_in_each_turn() -> None:
    async with arriving() as (number, made):
        with ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", number)))
            most = before = 0
            async with asyncio.timeout(10):
                while len(made) < 40:
                    await asyncio.sleep(0)
                    most, before = max(most, len(made) - before), len(made)
            assert most <= AT_ONCE
            plain = made[0].get_extra_info("socket")
            assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_out_of_descriptors_it_waits_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    async with arriving() as (number, made):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as knocking:
            used = knocking.fileno() + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
            fill = []
            try:
                while True:
                    fill.append(os.dup(0))
            except OSError as error:
                assert error.errno == errno.EMFILE
            try:
                knocking.connect(("127.0.0.1", number))
                for _ in range(20):
                    await asyncio.sleep(0)
            finally:
                for descriptor in fill:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert made == []
            logged = capsys.readouterr().out
            assert logged.count("no more connections can be accepted") == 1
            async with asyncio.timeout(5):
                while not made:
                    await asyncio.sleep(0.02)


async def test_a_tls_handshake_that_does_not_come_is_given_up_and_counted() -> None:
    before = counted("relay_refused_total", door="http", reason="tls")
    async with arriving(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)) as (number, made):
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        assert made == []
        assert counted("relay_refused_total", door="http", reason="tls") == before + 1
