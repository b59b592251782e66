"""Connections on real sockets, behind uvicorn's HTTP protocol, with ``websockets``' client."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from relay.errors import Close
from relay.http_edge import HttpProtocol
from relay.ports import SEND_BUFFER_BYTES
from tests.bad_input import SIX_KEYS
from tests.gateway.conftest import Gateway, MakeGateway, closed, token
from tests.gateway.fakes import BOTH_LOOPS, CID, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=BOTH_LOOPS, ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    path = tmp_path_factory.mktemp("tls") / "relay.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", "/CN=relay", "-addext", "subjectAltName=IP:127.0.0.1",
         "-days", "1", "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def serving(gateway: Gateway, certificate: Path | None = None) -> AsyncIterator[int]:
    """Serve as the application does; gives the port."""
    config = uvicorn.Config(
        asgi,
        http=HttpProtocol,
        ws=gateway.sockets.protocol,  # type: ignore[arg-type]
        lifespan="off",
        log_config=None,
    )
    config.load()
    state = ServerState()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.bind(("127.0.0.1", 0))
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config=config, server_state=state, app_state={}),
        sock=listener,
        ssl=tls,
    )
    await gateway.sockets.start()
    await gateway.hub.start()
    yield listener.getsockname()[1]
    server.close()
    await gateway.sockets.drain(5.0)
    await server.wait_closed()
    await eventually(lambda: not gateway.sockets._open, "the end of all sockets")


@asynccontextmanager
async def client(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[ClientConnection]:
    scheme = "ws" if tls is None else "wss"
    url = f"{scheme}://127.0.0.1:{port}/video/connect?api_key=key&stream-auth-type=jwt"
    async with connect(url, ssl=tls, compression=None, max_queue=None, close_timeout=5) as socket_:
        yield socket_


async def ask(peer: ClientConnection, **message: Any) -> dict[str, Any]:
    """Send a command and return its reply, dropping what comes before."""
    await peer.send(json.dumps({"id": 1, **message}))
    while True:
        answer = json.loads(await peer.recv())
        if answer.get("id") == 1 or answer["type"] == "connection.ok":
            return dict(answer)


async def log_in(peer: ClientConnection) -> dict[str, Any]:
    return await ask(peer, token=token(), user_details={"id": "john"})


async def events(peer: ClientConnection, count: int) -> list[int]:
    """Return the offsets of the next publications."""
    found: list[int] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            message = json.loads(await peer.recv())
            if message["type"] == "custom":
                found.append(message["offset"])
    return found


# -- the conversation -----------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_a_whole_conversation(
    make_gateway: MakeGateway, certificate: Path, encrypted: bool
) -> None:
    gateway = make_gateway()
    tls = ssl.create_default_context(cafile=str(certificate)) if encrypted else None
    async with serving(gateway, certificate if encrypted else None) as port:
        async with client(port, tls) as peer:
            assert (await log_in(peer))["type"] == "connection.ok"
            assert (await ask(peer, type="call.watch", call_cid=CID))["offset"] == 0
            gateway.broker.send(3)
            assert await events(peer, 3) == [1, 2, 3]
            sent = await ask(peer, type="call.send", call_cid=CID, custom={"a": 1})
            assert sent["offset"] == 4
            async with asyncio.timeout(5):
                await (await peer.ping())
        await eventually(lambda: not gateway.sockets._open, "the end of the socket")


async def test_fragments_of_a_real_client(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    async with serving(gateway) as port, client(port) as peer:
        text = json.dumps({"token": token(), "user_details": {"id": "john"}})
        await peer.send([text[:7], text[7:8], text[8:]])
        assert json.loads(await peer.recv())["type"] == "connection.ok"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_replies_and_publications_keep_their_order(
    make_gateway: MakeGateway, certificate: Path, encrypted: bool
) -> None:
    """Publications may go past the transport; they must not overtake what is in it."""
    gateway = make_gateway(rules={"command_rate": 0})
    tls = ssl.create_default_context(cafile=str(certificate)) if encrypted else None
    async with (
        serving(gateway, certificate if encrypted else None) as port,
        client(port, tls) as peer,
    ):
        await log_in(peer)
        await ask(peer, type="call.watch", call_cid=CID)
        large = {"n": "x" * 4000}
        for number in range(300):
            message = {"type": "call.send", "id": f"s{number}", "call_cid": CID, "custom": large}
            await peer.send(json.dumps(message))
        offsets: list[int] = []
        replies: list[int] = []
        async with asyncio.timeout(20):
            while len(offsets) + len(replies) < 600:
                message = json.loads(await peer.recv())
                if message["type"] == "custom":
                    offsets.append(message["offset"])
                elif message["type"] == "call.sent":
                    replies.append(message["offset"])
        assert offsets == replies == list(range(1, 301))


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [("/video/nothing", None, 404), ("/video/connect", "https://evil.example", 403)],
)
async def test_a_refused_upgrade_is_an_answer_in_six_keys(
    make_gateway: MakeGateway, path: str, origin: str | None, status: int
) -> None:
    gateway = make_gateway(origins=("https://good.example",))
    async with serving(gateway) as port:
        with pytest.raises(InvalidStatus) as caught:
            async with connect(f"ws://127.0.0.1:{port}{path}", origin=origin):  # type: ignore[arg-type]
                pass
        response = caught.value.response
        assert response.status_code == status
        assert set(json.loads(response.body)) == SIX_KEYS


async def test_an_upgrade_that_is_no_handshake_is_an_answer_in_six_keys(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway()
    async with serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /video/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\n"
        )
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == SIX_KEYS


async def code_of(peer: ClientConnection) -> int:
    """Read until the relay closes; return its code."""
    async with asyncio.timeout(10):
        while True:
            try:
                await peer.recv()
            except ConnectionClosed as error:
                assert error.rcvd is not None, "the close frame did not arrive"
                return error.rcvd.code


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x00\x01", Close.UNSUPPORTED_DATA),
        ("x" * 70_000, Close.TOO_BIG),
        ("x" * 3_000_000, Close.TOO_BIG),
        ("balloons", Close.REFUSED),
    ],
    ids=["binary", "big", "huge", "not JSON"],
)
async def test_a_refused_message_closes_with_a_code_that_arrives(
    make_gateway: MakeGateway, message: str | bytes, code: Close
) -> None:
    gateway = make_gateway()
    async with serving(gateway) as port, client(port) as peer:
        sending = asyncio.create_task(peer.send(message))
        assert await code_of(peer) == code
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_flood_is_answered_then_closed_and_neighbours_are_served(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway()
    async with serving(gateway) as port, client(port) as peer, client(port) as neighbour:
        await log_in(peer)
        await log_in(neighbour)
        await ask(neighbour, type="call.watch", call_cid=CID)

        async def flood() -> None:
            for _ in range(5000):
                await peer.send('{"type":"health.check"}')

        flooding = asyncio.create_task(flood())
        gateway.broker.send(10)
        assert await events(neighbour, 10) == list(range(1, 11))
        assert await code_of(peer) == Close.FLOOD
        await asyncio.gather(flooding, return_exceptions=True)


# -- a peer that stops reading --------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_one_that_stops_reading_is_cut_off_and_comes_back_by_its_position(
    make_gateway: MakeGateway, certificate: Path, encrypted: bool
) -> None:
    hard = 1_000_000
    gateway = make_gateway(limits={"soft_buffer_bytes": 200_000, "hard_buffer_bytes": hard})
    gateway.broker.page_count = 50
    tls = ssl.create_default_context(cafile=str(certificate)) if encrypted else None
    before = closed("slow")
    filler = b'"' + b"x" * 5000 + b'"'

    def publish() -> None:
        position = gateway.broker.append(CID)
        entry = gateway.broker.call().entries[-1]
        large = entry.body[:-1] + b',"custom":' + filler + b"}"
        gateway.broker.call().entries[-1] = entry._replace(body=large)
        gateway.hub.on_publication(CID, position, large)

    async with serving(gateway, certificate if encrypted else None) as port:
        async with client(port, tls) as neighbour, client(port, tls) as lazy:
            await log_in(neighbour)
            await ask(neighbour, type="call.watch", call_cid=CID)
            await log_in(lazy)
            await ask(lazy, type="call.watch", call_cid=CID)
            [connection] = [c for c in gateway.sockets._open if c.calls and _is_of(c, lazy)]
            lazy.transport.pause_reading()
            largest, got = 0, 0
            for _ in range(400):
                for _ in range(10):
                    publish()
                got += len(await events(neighbour, 10))
                largest = max(largest, connection._transport.get_write_buffer_size())
                if not connection.is_open:
                    break
            assert not connection.is_open, "4 000 × 5 KB are far over what it may owe"
            assert largest < hard + 100_000
            assert got == gateway.broker.call().offset
            assert closed("slow") == before + 1
            lazy.transport.abort()
        async with client(port, tls) as again:
            await log_in(again)
            watching = await ask(
                again, type="call.watch", call_cid=CID, since={"epoch": "e1", "offset": 3}
            )
            assert watching["recovered"] is True
            top = gateway.broker.call().offset
            assert await events(again, top - 3) == list(range(4, top + 1))


def _is_of(connection: Any, peer: ClientConnection) -> bool:
    address: tuple[str, int] = connection._transport.get_extra_info("peername")
    return bool(address == peer.local_address)


async def test_a_peer_that_vanishes_is_forgotten(make_gateway: MakeGateway) -> None:
    gateway = make_gateway()
    async with serving(gateway) as port, client(port) as peer:
        await log_in(peer)
        await ask(peer, type="call.watch", call_cid=CID)
        peer.transport.abort()
        await eventually(lambda: not gateway.sockets._by_id, "the end of the socket")
        gateway.broker.send()
        assert gateway.hub._calls[CID].live == {}
