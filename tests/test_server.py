"""Listening sockets, the words a relay says as it starts, and its end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvicorn

from relay import server
from relay.app import App
from relay.ports import RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES
from relay.server import Server, base_url, listen
from relay.settings import Settings
from relay.stopping import AT_ONCE, DRAIN, SIGNALS

pytestmark = pytest.mark.anyio

MEMORY = Settings(port=0, api_key="key", api_secret="a secret of at least thirty-two bytes")
REDIS = Settings(port=0, redis_url="redis://127.0.0.1:1")


@pytest.fixture(autouse=True)
def _process() -> Iterator[None]:
    """Give the garbage collector and the signals back: a server keeps both for its own life."""
    before, handlers = gc.get_threshold(), {number: signal.getsignal(number) for number in SIGNALS}
    yield
    gc.unfreeze()
    gc.set_threshold(*before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def on_port(settings: Settings, port: int) -> Settings:
    return msgspec.structs.replace(settings, port=port)


# -- listening ------------------------------------------------------------------------------------


def test_with_the_embedded_broker_the_port_is_ours_alone() -> None:
    with listen(MEMORY) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen(on_port(MEMORY, port))
        with pytest.raises(OSError, match="in use"):
            listen(on_port(REDIS, port))


def test_with_redis_processes_share_the_port() -> None:
    with listen(REDIS) as first:
        port = first.getsockname()[1]
        with listen(on_port(REDIS, port)) as second:
            first.listen()
            second.listen()
            assert second.getsockname()[1] == port
            with pytest.raises(OSError, match="in use"):
                listen(on_port(MEMORY, port))


def test_a_listening_socket_bounds_what_the_kernel_hides() -> None:
    with listen(MEMORY) as listener:
        # Linux doubles what it is asked for, for its own book-keeping.
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER_BYTES
        received = listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert received == 2 * RECEIVE_BUFFER_BYTES
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 35_000
    with listen(msgspec.structs.replace(MEMORY, slow_timeout=4.5)) as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9_500


def test_an_address_that_is_not_ours_is_an_error_that_closes_the_socket() -> None:
    with pytest.raises(OSError, match="assign"):
        listen(Settings(host="192.0.2.1", port=0))


def test_a_port_that_is_taken_ends_the_start_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with listen(MEMORY) as taken:
        port = taken.getsockname()[1]
        assert server.serve(on_port(MEMORY, port), False, lambda _: None) == 1
    assert capsys.readouterr().err == (
        f"relay: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    )


def test_a_broker_that_is_absent_ends_the_start_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        settings = Settings(port=0, api_key="key", api_secret="secret", redis_url=url)
        assert server.serve(settings, False, lambda _: None) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("relay: ")
    assert complaint.count("\n") == 1


# -- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("relay.example", "http://relay.example:8000"),
    ],
)
def test_the_address_can_be_clicked(host: str, url: str) -> None:
    assert base_url(Settings(host=host), 8000) == url


def test_with_a_certificate_it_is_https() -> None:
    assert base_url(Settings(tls_cert="relay.pem"), 443) == "https://127.0.0.1:443"


def test_the_demo_says_where_its_page_is(capsys: pytest.CaptureFixture[str]) -> None:
    server.announce(Settings(), 8000, demo=False)
    server.announce(Settings(), 8000, demo=True)
    assert capsys.readouterr().out.splitlines() == [
        "relay: listening on http://127.0.0.1:8000",
        "relay: listening on http://127.0.0.1:8000",
        "relay: open the demo page: http://127.0.0.1:8000/",
    ]


# -- the end --------------------------------------------------------------------------------------


class Draining(App):
    """An application whose sockets take their time to go."""

    def __init__(self) -> None:
        super().__init__(MEMORY)
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.was_cancelled = False

    async def drain(self) -> None:
        self.began.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def started(app: App) -> tuple[Server, socket.socket]:
    ports: list[int] = []
    server_ = Server(uvicorn.Config(app.asgi, lifespan="off", log_config=None), app, ports.append)
    server_.config.load()
    server_.lifespan = server_.config.lifespan_class(server_.config)
    listener = listen(MEMORY)
    await server_.startup([listener])
    assert ports == [listener.getsockname()[1]]
    return server_, listener


async def test_the_sockets_are_drained_before_the_rest_ends() -> None:
    app = Draining()
    server_, listener = await started(app)
    stopping = asyncio.create_task(server_.shutdown([listener]))
    await app.began.wait()
    assert not stopping.done()
    app.may_end.set()
    await asyncio.wait_for(stopping, 5)
    assert not app.was_cancelled


async def test_a_second_signal_ends_the_drain() -> None:
    app = Draining()
    server_, listener = await started(app)
    server_.obey(DRAIN)
    assert (server_.should_exit, server_.force_exit) == (True, False)
    stopping = asyncio.create_task(server_.shutdown([listener]))
    await app.began.wait()
    server_.obey(AT_ONCE)
    await asyncio.wait_for(stopping, 5)
    assert app.was_cancelled


def test_the_whole_of_it_serves_and_ends_with_0_on_a_signal() -> None:
    """``serve`` in this process: the signal comes once it listens."""
    ports: list[int] = []

    def listening(port: int) -> None:
        ports.append(port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            signal.raise_signal(signal.SIGTERM)

    assert server.serve(MEMORY, False, listening) == 0
    assert ports[0] > 0


async def test_tls_needs_no_proxy(tmp_path: Path) -> None:
    settings = Settings(tls_cert=str(tmp_path / "a.pem"), tls_key=str(tmp_path / "b.pem"))
    config = server._uvicorn_config(settings, Draining())
    assert (config.ssl_certfile, config.ssl_keyfile) == (settings.tls_cert, settings.tls_key)
    with pytest.raises((OSError, ssl.SSLError)):
        config.load()
