"""A socket that ends is gone at once: thousands that leave must not make a collection long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from websockets.frames import Opcode

from tests.garbage import no_garbage
from tests.gateway.conftest import Gateway
from tests.gateway.fakes import CID, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio


async def leaves_unheard(peer: Peer) -> None:
    peer.connect()
    peer.transport.abort()


async def is_refused_the_handshake(peer: Peer) -> None:
    peer.raw(b"GET /video/connect HTTP/1.1\r\nhost: relay\r\n\r\n")


async def has_a_bad_token(peer: Peer) -> None:
    await peer.log_in(given="a.b.c")


async def has_a_token_of_somebody_else(peer: Peer) -> None:
    await peer.log_in(given="eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjoiam9obiJ9.AAAA")


async def leaves_properly(peer: Peer) -> None:
    await peer.log_in()
    await peer.watch(CID)
    peer.raw(peer.frame(Opcode.CLOSE, b"\x03\xe8"))


async def is_cut_off(peer: Peer) -> None:
    await peer.log_in()
    await peer.watch(CID)
    peer.transport.abort()


async def only_stops_sending(peer: Peer) -> None:
    await peer.log_in()
    if not peer.connection.eof_received():
        peer.transport.close()


async def speaks_nonsense(peer: Peer) -> None:
    await peer.log_in()
    peer.raw(b"\xff\xff\xff")
    await turns()
    peer.transport.abort()


async def is_cut_off_amid_a_command(peer: Peer) -> None:
    await peer.log_in()
    for number in range(5):
        peer.say(type="call.watch", id=number, call_cid=f"default:{number}")
    await turns(1)
    peer.transport.abort()


@pytest.mark.parametrize(
    "life",
    [
        leaves_unheard, is_refused_the_handshake, has_a_bad_token, has_a_token_of_somebody_else,
        leaves_properly, is_cut_off, only_stops_sending, speaks_nonsense, is_cut_off_amid_a_command,
    ],
)  # fmt: skip
async def test_nothing_of_a_socket_is_left(
    gateway: Gateway, life: Callable[[Peer], Awaitable[None]]
) -> None:
    async def live() -> None:
        peer = Peer(gateway)
        await life(peer)
        await turns(30)
        peer.transport.abort()  # those that were told to go, and are awaited
        await turns()

    await live()  # what is made once is made
    with no_garbage():
        await live()
