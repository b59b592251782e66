"""How much of what peers want is done in one turn of the event loop; the rest waits in line.

A turn that takes long delays every delivery in it, whoever caused it. So what is not for sure small
(what has to be parsed, logins, the end of many sockets) gets a slice of each turn, and goes on in
the next one. Nobody waits for more than a slice of each other peer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from relay import logs

log = logs.get(__name__)

SLICE_S: Final = 0.00025
"""Five times what a turn costs by itself, and an eighth of the time a delivery takes anyway."""
ADMITTED_S: Final = 0.00005
"""What something that was admitted takes of a turn: it awaits, and cannot be measured."""

Job: TypeAlias = Callable[[], "bool | None"]
"""A step of some work, which should be small; returns whether there are more."""


class Pace:
    """Runs jobs in turn, a step of each, for ``SLICE_S`` in each turn of the loop.

    ``clock`` returns seconds, and must go on within a turn, unlike the loop's.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._spent = 0.0
        self._next_turn: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def do(self, job: Job) -> bool:
        """Do ``job`` now as far as nobody waits and this turn has time for it, else in its turn.

        Return whether it is done.
        """
        self._start()
        while not self._waiting and self._spent < SLICE_S:
            if not self._step(job):
                return True
        self._waiting.append(job)
        return False

    async def admit(self) -> None:
        """Return in a turn that has time for something like a command."""
        if self._waiting or self._spent >= SLICE_S:
            admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.do(partial(self._admit, admitted))
            await admitted
        else:
            self._start()
            self._spent += ADMITTED_S

    def _admit(self, admitted: asyncio.Future[None]) -> None:
        if not admitted.done():  # else it was cancelled
            admitted.set_result(None)
            self._spent += ADMITTED_S

    def _start(self) -> None:
        if self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._turn)

    def _step(self, job: Job) -> bool:
        spent, began = self._spent, self._clock()
        try:
            return bool(job())
        except Exception:  # the others' turns must not depend on it
            log.exception("job failed")
            return False
        finally:
            # What it began is part of it; what it admitted, it did not do itself.
            self._spent = max(self._spent, spent + self._clock() - began)

    def _turn(self) -> None:
        self._spent = 0.0
        while self._waiting and self._spent < SLICE_S:
            job = self._waiting.popleft()
            if self._step(job):
                self._waiting.append(job)
        self._next_turn = None
        if self._spent:  # also when nobody waits: the turn after this one has a slice of its own
            self._start()
