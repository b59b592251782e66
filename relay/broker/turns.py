"""Turns: whoever changes a key waits until this process's last change of it is done.

Changes by compare-and-swap that run at once make each other repeat; in turns, only those of other
processes can. The wait and the number that wait are bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from relay.errors import Unavailable

WAIT_S: Final = 5.0
WAITING_MOST: Final = 1000


class _Turn:
    """A lock, and how many hold it or wait for it."""

    __slots__ = ("lock", "waiting")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


class Turns:
    """Locks by key, kept while somebody wants them."""

    def __init__(self, wait_s: float = WAIT_S, waiting_most: int = WAITING_MOST) -> None:
        self._turns: dict[str, _Turn] = {}
        self._wait_s = wait_s
        self._waiting_most = waiting_most

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[bool]:
        """Enter when it is one's turn; tells whether another's came before.

        Raises ``Unavailable`` when too many wait already, or it takes too long.
        """
        turn = self._turns.setdefault(key, _Turn())
        if turn.waiting > self._waiting_most:
            raise Unavailable("too many change the same thing at once: try again")
        turn.waiting += 1
        try:
            waited = await self._acquire(turn)
            try:
                yield waited
            finally:
                turn.lock.release()
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[key]

    async def _acquire(self, turn: _Turn) -> bool:
        waited = turn.lock.locked()
        try:
            async with asyncio.timeout(self._wait_s):
                await turn.lock.acquire()
        except TimeoutError:
            raise Unavailable("others are changing the same thing: try again") from None
        return waited
