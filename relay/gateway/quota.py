"""How many sockets a user may hold, over all processes.

Each process keeps its own number in the broker. What stands there of others may be out of date (a
process that was killed says no more): only before a login is refused are they asked.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from relay import logs
from relay.broker import Broker
from relay.errors import RateLimited, Unavailable
from relay.retry import backoff
from relay.tasks import together

log = logs.get(__name__)

AT_ONCE: Final = 100


class Quota:
    """``limit`` sockets for each user, 0 = any number.

    ``open_here`` counts a user's sockets in this process, ``open_on`` asks another one.
    """

    def __init__(
        self,
        broker: Broker,
        limit: int,
        open_here: Callable[[str], int],
        open_on: Callable[[Collection[str], str], Awaitable[int]],
    ) -> None:
        self._broker = broker
        self._limit = limit
        self._open_here = open_here
        self._open_on = open_on
        self._arriving: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._news = asyncio.Event()
        self._random = random.Random()  # noqa: S311 - jitter, not secrets

    async def check(self, user_id: str) -> None:
        """Return when the user may have one more socket; the caller opens it before it awaits.

        Raises ``RateLimited`` when it has too many, ``Unavailable`` when that cannot be told.
        """
        if not self._limit:
            return
        self._arriving[user_id] += 1
        try:
            await self._check(user_id)
        except BaseException:
            self.changed(user_id)
            raise
        finally:
            self._arriving[user_id] -= 1
            if not self._arriving[user_id]:
                del self._arriving[user_id]

    async def _check(self, user_id: str) -> None:
        if self._here(user_id) > self._limit:
            raise self._refusal()
        others = await self._tell(user_id)
        if self._here(user_id) + sum(others.values()) > self._limit:
            elsewhere = await self._open_on(others, user_id)
            if self._here(user_id) + elsewhere > self._limit:
                raise self._refusal()

    def _here(self, user_id: str) -> int:
        return self._open_here(user_id) + self._arriving[user_id]

    async def _tell(self, user_id: str) -> dict[str, int]:
        """Tell the broker this process's number and return those of the others."""
        counts = await self._broker.set_connections(user_id, self._here(user_id))
        return {node: count for node, count in counts.items() if node != self._broker.node}

    def _refusal(self) -> RateLimited:
        return RateLimited(
            f"this user has {self._limit} open sockets: close one first", reason="too_many_sockets"
        )

    def changed(self, user_id: str) -> None:
        """Note that a socket of the user has closed."""
        if self._limit:
            self._changed.add(user_id)
            self._news.set()

    async def run(self) -> None:
        """Keep this process's numbers in the broker true, until cancelled."""
        failures = 0
        while True:
            while batch := [self._changed.pop() for _ in range(min(AT_ONCE, len(self._changed)))]:
                try:
                    await together(map(self._tell, batch))
                    failures = 0
                except Unavailable as error:
                    self._changed.update(batch)
                    failures += 1
                    log.info("numbers of sockets wait", reason=error.message)
                    await asyncio.sleep(backoff(failures, self._random))
                except BaseException:
                    self._changed.update(batch)
                    raise
            await self._news.wait()
            self._news.clear()
