"""Keep one connection to Redis open: notice its loss, connect again with jittered back-off.

Used by ``link`` (commands) and ``subscriber`` (publications), which say what has to be done anew on
each connection. It starts strictly, so that a Redis that cannot be reached is told at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from relay import logs, metrics
from relay.broker.resp import Command, Connection, Route
from relay.errors import Unavailable
from relay.retry import backoff
from relay.tasks import Tasks

log = logs.get(__name__)

FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 2.0
STEADY_AFTER_S: Final = 5.0
"""A connection that lasted this long was a good one: its loss begins a new row of failures."""


class Owner(Protocol):
    """Who uses the connection."""

    def preamble(self) -> tuple[Sequence[Command], Sequence[Command]]:
        """Return what a new connection must run, and what it may be refused."""

    def on_open(self, connection: Connection) -> None:
        """Use a new connection."""

    def on_reply(self, reply: Any) -> None:
        """Take the next reply."""

    def on_writable(self) -> None:
        """Go on writing after a pause."""

    def on_closed(self) -> None:
        """Stop using the connection; another one follows."""

    def on_unreachable(self) -> None:
        """Learn that one more attempt to connect has failed."""


class Keeper:
    """Keeps ``owner`` connected. ``changed`` is called whenever ``connection`` came or went."""

    def __init__(self, route: Route, name: str, owner: Owner, changed: Callable[[], None]) -> None:
        self.connection: Connection | None = None
        self._route = route
        self._name = name
        self._owner = owner
        self._changed = changed
        self._lost = asyncio.Event()
        self._is_wanted = asyncio.Event()
        self._failures = 0
        self._opened_at = 0.0
        self._closing = False
        self._random = random.Random()  # noqa: S311 - jitter, not secrets
        self._tasks = Tasks(f"redis connection {name}")
        self._reconnects = metrics.REDIS_RECONNECTS.labels(name.rpartition(":")[2])

    async def start(self) -> None:
        """Connect, and keep connected from now on; raises ``Unavailable``."""
        await self._connect()
        self._tasks.keep(self._keep, "keeping the connection")

    def start_soon(self) -> None:
        """Connect as soon as that is possible, and keep connected from then on."""
        self._tasks.keep(self._connect_and_keep, "keeping the connection")

    async def aclose(self) -> None:
        """Disconnect for good."""
        self._closing = True
        await self._tasks.aclose()
        self.drop("closing")

    def drop(self, why: str) -> None:
        """Give the connection up and make another."""
        if self.connection is not None:
            self.connection.abort(why)

    def hurry(self) -> None:
        """Try again soon, however long the pause between two attempts has become."""
        self._is_wanted.set()

    async def _connect_and_keep(self) -> None:
        try:
            if self.connection is None and not self._lost.is_set():
                await self._connect()
        except Unavailable as error:
            self._failures = 1
            log.warning("redis is away", link=self._name, reason=error.message)
            self._lost.set()
            self._owner.on_closed()
            self._changed()
        await self._keep()

    async def _keep(self) -> None:
        while True:
            await self._lost.wait()
            now = asyncio.get_running_loop().time()
            if now - self._opened_at > STEADY_AFTER_S:
                self._failures = 0
            while self.connection is None:
                await self._try_again()

    async def _try_again(self) -> None:
        self._failures += 1
        delay = backoff(
            self._failures, self._random, first_s=FIRST_DELAY_S, longest_s=LONGEST_DELAY_S
        )
        await asyncio.sleep(min(delay, FIRST_DELAY_S))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay - FIRST_DELAY_S):
                await self._is_wanted.wait()
        self._is_wanted.clear()
        try:
            await self._connect()
        except Unavailable as error:
            if self._failures == 1:
                log.warning("redis is away", link=self._name, reason=error.message)
            self._owner.on_unreachable()
            return
        self._reconnects.inc()
        log.info("redis is back", link=self._name, attempts=self._failures)

    async def _connect(self) -> None:
        connection = await self._route.open(self._name, *self._owner.preamble())
        if connection.is_closed:
            raise Unavailable("Redis closed the new connection")
        connection.on_reply = self._owner.on_reply
        connection.on_writable = self._owner.on_writable
        connection.on_closed = self._on_closed
        self.connection = connection
        self._opened_at = asyncio.get_running_loop().time()
        self._lost.clear()
        try:
            self._owner.on_open(connection)
            self._changed()
        except BaseException:
            connection.abort("it could not be put to use")
            raise

    def _on_closed(self, why: str) -> None:
        self.connection = None
        self._lost.set()
        if not self._closing:
            log.warning("redis connection lost", link=self._name, reason=why)
        self._owner.on_closed()
        self._changed()
