"""Compare the positions of watched calls with the broker's: nothing else reveals a lost tail.

Calls that were silent for long, and those whose publications may have been lost, are *suspects*.
The calls of a partition are compared together and apart from all others: a server that is away
holds up its own calls alone. Used by the hub only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Final

from relay import metrics
from relay.broker import Broker, Unavailable
from relay.gateway.call import WatchedCall
from relay.retry import backoff
from relay.tasks import Tasks

SILENCE_S: Final = (20.0, 28.0)
"""After that long without a publication a call's position is compared."""
CHECK_INTERVAL_S: Final = 1.0
CHECK_BATCH: Final = 500


class Comparisons:
    """The comparisons of a process. ``repair`` is given the calls that are behind the broker."""

    def __init__(
        self,
        broker: Broker,
        calls: Mapping[str, WatchedCall],
        repair: Callable[[WatchedCall], None],
        tasks: Tasks,
        rng: random.Random,
    ) -> None:
        self._broker = broker
        self._calls = calls
        self._repair = repair
        self._tasks = tasks
        self._random = rng
        self._suspects: dict[int, set[str]] = {}
        # Held for a loop turn before each question: to build many at once would hold up everything.
        self._turn = asyncio.Lock()

    def done(self, call: WatchedCall) -> None:
        """Note that a call's position was just compared."""
        call.heard_at = asyncio.get_running_loop().time()
        call.patience = self._random.uniform(*SILENCE_S)

    def suspect(self, cids: Iterable[str]) -> None:
        """Compare these calls soon, and again until the broker has answered."""
        for cid in cids:
            partition = self._broker.partition(cid)
            if (suspects := self._suspects.get(partition)) is None:
                suspects = self._suspects[partition] = set()
                self._tasks.keep(partial(self._check, partition), "comparing positions")
            suspects.add(cid)

    async def run(self) -> None:
        """Look for calls that have been silent, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            now = loop.time()
            joined = [call for call in self._calls.values() if call.feed is not None]
            self.suspect(call.cid for call in joined if now - call.heard_at > call.patience)
            oldest = min((call.heard_at for call in joined), default=now)
            metrics.COMPARED.set(time.time() - (now - oldest))

    async def _check(self, partition: int) -> None:
        """Compare the suspects of a partition until there are none."""
        suspects, failures = self._suspects[partition], 0
        while batch := list(islice(suspects, CHECK_BATCH)):
            suspects.difference_update(batch)  # who is suspected meanwhile is compared again
            try:
                await self._compare([self._calls[cid] for cid in batch if cid in self._calls])
                failures = 0
            except Unavailable:
                suspects.update(batch)
                failures += 1
                await asyncio.sleep(backoff(failures, self._random))
            except BaseException:
                suspects.update(batch)
                raise
        del self._suspects[partition]

    async def _compare(self, calls: list[WatchedCall]) -> None:
        """Repair the calls that are behind the broker; raises ``Unavailable``."""
        calls = [call for call in calls if call.feed is not None]
        async with self._turn:
            await asyncio.sleep(0)
        positions = await self._broker.positions([call.cid for call in calls])
        for call, position in zip(calls, positions, strict=True):
            self.done(call)
            # What came live meanwhile may have brought the feed beyond the answer.
            behind = position.offset > call.position.offset or position.epoch != call.position.epoch
            if behind and self._calls.get(call.cid) is call:
                self._repair(call)
