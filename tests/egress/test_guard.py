"""The guard looks at the very address that is connected to, whatever a name was said to be."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from relay.egress import guard
from relay.forwarded import read_networks
from tests.egress.receiver import receiving

pytestmark = pytest.mark.anyio

STREAM = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")


@pytest.mark.parametrize(
    ("family", "where"),
    [
        (socket.AF_INET, ("127.0.0.1", 80)),
        (socket.AF_INET, ("169.254.169.254", 80)),
        (socket.AF_INET6, ("::1", 80, 0, 0)),
        (socket.AF_INET6, ("::ffff:10.0.0.1", 80, 0, 0)),
        (socket.AF_INET6, ("fe80::1%eth0", 80, 0, 2)),
    ],
)
def test_no_socket_is_made_for_a_closed_address(family: int, where: tuple[object, ...]) -> None:
    with pytest.raises(guard.ClosedAddress, match="RELAY_HOOK_ALLOW"):
        guard.sockets(())((family, *STREAM, where))


@pytest.mark.parametrize(
    ("family", "where", "networks"),
    [
        (socket.AF_INET, ("1.1.1.1", 443), ""),
        (socket.AF_INET6, ("2606:4700::1111", 443, 0, 0), ""),
        (socket.AF_INET, ("127.0.0.1", 80), "127.0.0.0/8"),
    ],
)
def test_a_socket_is_made_for_an_open_one(
    family: int, where: tuple[object, ...], networks: str
) -> None:
    with guard.sockets(read_networks(networks))((family, *STREAM, where)) as made:
        assert (made.family, made.type) == (family, socket.SOCK_STREAM)


def test_the_reason_is_found_under_other_errors() -> None:
    try:
        try:
            raise guard.ClosedAddress
        except OSError as error:
            raise ValueError("wrapped") from error
    except ValueError as wrapped:
        assert guard.is_closed(wrapped)
    assert not guard.is_closed(ValueError("another"))


class Rebinding(AbstractResolver):
    """A name server that names a public address first, and this machine ever after."""

    def __init__(self) -> None:
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        address = "192.0.2.1" if self.asked == 1 else "127.0.0.1"
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def test_a_name_that_is_bound_again_leads_nowhere() -> None:
    resolver = Rebinding()
    async with receiving() as receiver:
        connector = aiohttp.TCPConnector(
            resolver=resolver, use_dns_cache=False, socket_factory=guard.sockets(())
        )
        async with aiohttp.ClientSession(connector=connector) as session:
            for _ in range(3):
                with pytest.raises(aiohttp.ClientConnectorError) as refused:
                    async with asyncio.timeout(5):
                        await session.get(receiver.url.replace("127.0.0.1", "rebind.example"))
                assert guard.is_closed(refused.value)
    assert (resolver.asked, receiver.connections) == (3, 0)
