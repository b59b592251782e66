"""Trying again while something is away: for doors that read where nobody waits for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final, TypeVar

from relay import logs
from relay.errors import Unavailable
from relay.retry import backoff

log: Final = logs.get(__name__)

T = TypeVar("T")


class Patience:
    """Repeats what is ``Unavailable``, with pauses that grow. One for each reader."""

    def __init__(
        self, rng: Random, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._rng = rng
        self._sleep = sleep

    async def insist(self, action: Callable[[], Awaitable[T]], waiting: str) -> T:
        """Return what ``action`` returns in the end; ``waiting`` is logged once, at the first try.

        What ``action`` does must be harmless a second time.
        """
        failures = 0
        while True:
            try:
                return await action()
            except Unavailable as error:
                failures += 1
                if failures == 1:
                    log.warning(waiting, problem=error.message)
                await self._sleep(backoff(failures, self._rng))
