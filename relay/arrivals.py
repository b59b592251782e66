"""Let newcomers in, a few in each turn of the event loop.

The loop's own server accepts everybody who waits within one turn, and their first requests are read
in the same one: of two thousand who knock at once, everyone who is here already feels the pause.
Here they wait in the kernel's queue, and each turn has time for the others.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from relay import logs, metrics
from relay.ports import BACKLOG
from relay.tasks import Tasks

log = logs.get(__name__)

AT_ONCE: Final = 2
"""Their handshakes take half a millisecond; a turn of the loop is a tenth of that."""
TRY_AGAIN_S: Final = 1.0
"""When the process is out of descriptors."""


class Arrivals:
    """Accepts on one listening socket; to ``uvicorn`` it looks like a server of the event loop.

    ``tls_s`` bounds a TLS handshake.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        tls_s: float,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._tls = tls
        self._tls_s = None if tls is None else tls_s
        self._tasks = Tasks("arrivals")
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._go_on()

    def close(self) -> None:
        """Leave the port; who is in already stays."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    async def wait_closed(self) -> None:
        """Give up those who have not been handed over yet."""
        await self._tasks.aclose()

    def _go_on(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._wait(error)
                return
            accepted.setblocking(False)
            self._tasks.spawn(self._hand_over(accepted))

    def _wait(self, error: OSError) -> None:
        """Stop for a while: the socket would be readable all the time."""
        log.error("no more connections can be accepted", reason=error.strerror)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._pause = loop.call_later(TRY_AGAIN_S, self._go_on)

    async def _hand_over(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, accepted, ssl=self._tls, ssl_handshake_timeout=self._tls_s
            )
        except OSError:  # it left, or its TLS handshake failed or took too long
            metrics.REFUSED.labels("http", "tls").inc()
            accepted.close()
