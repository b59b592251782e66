"""One timer for all sockets of a process: a wheel with a slot a second.

A timer per socket would cost an object and a heap operation for each; here a socket is an entry in
a dict, and a tick visits only those that are due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from relay import logs
from relay.pace import SLICE_S

log = logs.get(__name__)


class Timed(Protocol):
    """What the wheel visits. ``slot`` is the wheel's own note of where the entry hangs."""

    slot: int

    def on_due(self, now: float, /) -> None:
        """Do what is due at ``now`` (loop time) and schedule the next visit."""
        ...


class Wheel:
    """Visits each entry in the second after its time has come.

    ``clock`` returns seconds, and must go on within a turn of the loop, unlike the loop's.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._slots: dict[int, dict[Timed, None]] = {}
        self._done = 0

    def schedule(self, entry: Timed, at: float) -> None:
        """Visit ``entry`` at ``at`` (loop time, seconds) instead of when it was due before."""
        self.cancel(entry)
        entry.slot = max(int(at) + 1, self._done + 1)
        self._slots.setdefault(entry.slot, {})[entry] = None

    def cancel(self, entry: Timed) -> None:
        """Forget ``entry``."""
        if (slot := self._slots.get(entry.slot)) is not None:
            slot.pop(entry, None)

    def advance(self, now: float) -> None:
        """Visit everything due by ``now``."""
        for entry in self._due(now):
            _visit(entry, now)

    async def run(self) -> None:
        """Advance once a second, until cancelled; after each slice the others get a turn."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            now, began = loop.time(), self._clock()
            for entry in self._due(now):
                _visit(entry, now)
                if self._clock() - began >= SLICE_S:
                    await asyncio.sleep(0)
                    began = self._clock()

    def _due(self, now: float) -> Iterator[Timed]:
        last = int(now)
        for slot in sorted(slot for slot in self._slots if slot <= last):
            self._done = slot
            entries = self._slots[slot]
            while entries:  # one that is cancelled between two visits is not visited
                yield entries.popitem()[0]
            del self._slots[slot]
        self._done = max(self._done, last)


def _visit(entry: Timed, now: float) -> None:
    """Visit one entry; what goes wrong there must not stop the clock of all others."""
    try:
        entry.on_due(now)
    except Exception:
        log.exception("visit failed")
