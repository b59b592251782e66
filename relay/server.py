"""Run a relay: listening sockets, worker processes, signals, the drain.

Each process binds a listening socket of its own, so that the kernel spreads connections evenly.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay import logs, wire
from relay.app import App
from relay.errors import BadInput, Unavailable
from relay.settings import Settings

log = logs.get(__name__)

BACKLOG: Final = 2048
SEND_BUFFER_BYTES: Final = 65_536
"""Without it the kernel hides some 3.8 MiB of a slow peer's bytes from our bounds."""
USER_TIMEOUT_MS: Final = 30_000
"""After that long without an acknowledgement the kernel gives a peer up."""
IMPATIENCE_S: Final = 0.1
"""How soon a second signal ends the drain."""
KEEP_ALIVE_S: Final = 75
"""Longer than senders of webhooks and load balancers wait between two requests."""


def run(settings: Settings, demo: bool = False) -> int:
    """Serve until a signal ends it; return the exit code."""
    logs.configure(settings.log_level, settings.log_format)
    if settings.workers > 1:
        from relay.workers import supervise

        return supervise(settings, demo)
    return serve(settings, demo, lambda port: announce(settings, port, demo))


def serve(settings: Settings, demo: bool, listening: Callable[[int], None]) -> int:
    """Serve in this process; ``listening`` gets the port once it does."""
    try:
        listener = listen(settings)
    except OSError as error:
        complain(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}")
        return 1
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(settings, demo, listener, listening))
        except Unavailable as error:
            complain(error.message)
            return 1
    return 0


def listen(settings: Settings) -> socket.socket:
    """Return a bound socket; raises ``OSError``.

    With Redis other processes may share the port. With the embedded broker they may not: they
    would be relays of their own, and users of one would not see those of the other.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.redis_url:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        listener.bind(address)
        if not settings.redis_url:
            # Two sockets may be bound to one address for as long as neither listens.
            listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def _serve(
    settings: Settings, demo: bool, listener: socket.socket, listening: Callable[[int], None]
) -> None:
    app = App(settings, demo=demo)
    try:
        await app.start()
        server = Server(_uvicorn_config(settings, app), app, listening)
        await server.serve(sockets=[listener])
    finally:
        await app.aclose()
    log.info("stopped")


class Server(uvicorn.Server):
    """uvicorn's server, with the sockets drained before it closes what it owns."""

    def __init__(self, config: uvicorn.Config, app: App, listening: Callable[[int], None]) -> None:
        super().__init__(config)
        self._app = app
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, then say so."""
        await super().startup(sockets)
        # What lives now lives for ever: collections need not look at it again, and with
        # thousands of sockets a full collection is a pause that every watcher notices.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        assert sockets is not None
        port = sockets[0].getsockname()[1]
        log.info("listening", port=port)
        self._listening(port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the gateway's sockets go, then everything else."""
        log.info("shutting down")
        draining = asyncio.create_task(self._app.drain())
        while not (draining.done() or self.force_exit):
            await asyncio.wait([draining], timeout=IMPATIENCE_S)
        draining.cancel()
        await asyncio.wait([draining])
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop on a signal, at once on a second one; the exit code is then 0, not the signal's."""
        self.force_exit = self.should_exit
        self.should_exit = True


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, answering what it cannot parse with the six keys too."""

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP."""
        body = wire.encode(BadInput("this is not an HTTP/1.1 request").body())
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"access-control-allow-origin: *\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()


def _uvicorn_config(settings: Settings, app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        http=HttpProtocol,
        ws=app.sockets.protocol,  # type: ignore[arg-type] # any factory will do
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.drain_timeout)),
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def base_url(settings: Settings, port: int) -> str:
    """Return the address under which this machine reaches the relay."""
    scheme = "https" if settings.tls_cert else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    return f"{scheme}://{f'[{host}]' if ':' in host and '[' not in host else host}:{port}"


def announce(settings: Settings, port: int, demo: bool) -> None:
    """Tell whoever started the relay where it listens."""
    url = base_url(settings, port)
    print(f"relay: listening on {url}", flush=True)
    if demo:
        print(f"relay: open the demo page: {url}/", flush=True)


def complain(text: str) -> None:
    """Say in one line why the relay does not run."""
    print(f"relay: {text}", file=sys.stderr, flush=True)
