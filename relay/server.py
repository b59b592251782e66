"""Run a relay: listening sockets, worker processes, signals, the drain.

Each process binds a listening socket of its own, so that the kernel spreads connections evenly.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, cast

import uvicorn

from relay import logs, ports
from relay.app import App
from relay.arrivals import Arrivals
from relay.errors import Unavailable
from relay.http_edge import Bounds, HttpProtocol
from relay.settings import Settings, SettingsError
from relay.stopping import AT_ONCE, Stop

log = logs.get(__name__)

IMPATIENCE_S: Final = 0.1
"""How soon a second signal ends the drain."""
KEEP_ALIVE_S: Final = 75
"""Longer than senders of webhooks and load balancers wait between two requests."""
KERNEL_LATER_S: Final = 5.0
"""How much longer than we the kernel waits, so that a peer that we see to be slow is called so."""


def run(settings: Settings, demo: bool = False) -> int:
    """Serve until a signal ends it; return the exit code."""
    logs.configure(settings.log_level, settings.log_format)
    if settings.workers > 1:
        from relay.workers import supervise

        return supervise(settings, demo)
    return serve(settings, demo, lambda port: announce(settings, port, demo))


def serve(
    settings: Settings, demo: bool, listening: Callable[[int], None], stop: Stop | None = None
) -> int:
    """Serve in this process until ``stop`` ends it; ``listening`` gets the port once it does."""
    if stop is None:
        stop = Stop()
        stop.heed_signals()
    try:
        listener = listen(settings)
    except OSError as error:
        complain(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}")
        return 1
    with listener, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(settings, demo, listener, listening, stop))
        except Unavailable as error:
            complain(error.message)
            return 1
    return 0


def listen(settings: Settings) -> socket.socket:
    """Return a bound socket; raises ``OSError``.

    With Redis other processes may share the port. With the embedded broker they may not: they
    would be relays of their own, and users of one would not see those of the other.
    """
    shared, patience_s = bool(settings.redis_url), settings.slow_timeout + KERNEL_LATER_S
    return ports.listen(settings.host, settings.port, shared=shared, patience_s=patience_s)


async def _serve(
    settings: Settings,
    demo: bool,
    listener: socket.socket,
    listening: Callable[[int], None],
    stop: Stop,
) -> None:
    app = App(settings, demo=demo)
    config = _uvicorn_config(settings, app)
    _load(config, settings)
    try:
        if await stop.unless_told(app.start()):
            server = Server(config, app, listening, settings.drain_notice, settings.head_timeout)
            stop.obeyed_by(lambda: server.obey(stop.word))
            await server.serve(sockets=[listener])
    finally:
        await app.aclose()
    log.info("stopped")


class Server(uvicorn.Server):
    """uvicorn's server, with the sockets drained before it closes what it owns."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: App,
        listening: Callable[[int], None],
        notice_s: float = 0.0,
        tls_s: float = 10.0,
    ) -> None:
        super().__init__(config)
        self._tls_s = tls_s
        self._app = app
        self._listening = listening
        self._notice_s = notice_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, then say so."""
        assert sockets is not None
        self.servers = [self._arrivals(listener) for listener in sockets]  # type: ignore[misc]
        self.started = True
        # A collection is a pause that every watcher notices, so each is to look at little: not at
        # what lives now, which lives for ever, and seldom at what a collection has found alive.
        # Few cycles are for it anyway: a socket that ends leaves none.
        gc.collect()
        gc.freeze()
        gc.set_threshold(2_000, 1_000, 50)
        port = sockets[0].getsockname()[1]
        log.info("listening", port=port)
        self._listening(port)

    def _arrivals(self, listener: socket.socket) -> Arrivals:
        protocol = partial(
            cast("Callable[..., HttpProtocol]", self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        arrivals = Arrivals(listener, protocol, self.config.ssl, self._tls_s)
        arrivals.start()
        return arrivals

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave the port, let the gateway's sockets go, then everything else."""
        log.info("shutting down")
        draining = asyncio.create_task(self._drain(sockets or []))
        while not (draining.done() or self.force_exit):
            await asyncio.wait([draining], timeout=IMPATIENCE_S)
        draining.cancel()
        await asyncio.wait([draining])
        self._app.dismiss()
        await super().shutdown(sockets)

    async def _drain(self, listeners: list[socket.socket]) -> None:
        """Turn unready; once load balancers know it, leave the port; then let the sockets go."""
        self.server_state.default_headers = [
            *self.server_state.default_headers, (b"connection", b"close"),
        ]  # fmt: skip
        await asyncio.sleep(0)  # a request that has the headers from before is answered as before
        self._app.turn_unready()
        await asyncio.sleep(self._notice_s)
        for listener in listeners:
            await ports.emptied(listener)
        for server in self.servers:
            server.close()
        log.info("left the port")
        await self._app.drain()

    def obey(self, word: int) -> None:
        """Stop, by a word of ``stopping``: after a drain, or at once."""
        self.force_exit = word >= AT_ONCE
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: they are heeded for longer than uvicorn runs."""
        yield


def _load(config: uvicorn.Config, settings: Settings) -> None:
    """Read the certificate, where there is one; raises ``SettingsError``."""
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"RELAY_TLS_CERT={settings.tls_cert!r} and RELAY_TLS_KEY={settings.tls_key!r} cannot "
            f"be used: they must be a certificate chain and its key, in PEM: {error}"
        ) from None


def _uvicorn_config(settings: Settings, app: App) -> uvicorn.Config:
    bounds = Bounds(settings.http_connections, settings.head_timeout)
    http = partial(HttpProtocol, bounds=bounds, pace=app.sockets.pace)
    return uvicorn.Config(
        app.asgi,
        http=http,  # type: ignore[arg-type] # likewise
        ws=app.sockets.protocol,  # type: ignore[arg-type] # any factory will do
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
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
