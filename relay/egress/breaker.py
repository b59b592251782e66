"""When a hook or a partition is left alone, and how many attempts at once a hook has earned. Pure.

A hook whose attempts keep failing is opened: nothing new is begun for it but one probe now and
then, and what it is owed waits in the outbox. A hook that answers fast may have many attempts under
way, one that is slow few, so that a thousand slow hooks leave room for a fast one.
"""

from __future__ import annotations

from random import Random
from typing import Final

from relay.retry import backoff

FAILURES: Final = 10
"""Attempts in a row that fail before a hook is opened."""
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 60.0

FIRST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 8.0
"""Less than the 15 s of an event: who was between two attempts gets the next one all the same."""
STEADY_AFTER_S: Final = 60.0

MOST_AT_ONCE: Final = 64
"""Attempts that one hook may have under way."""
SLOW_S: Final = 1.0
"""An attempt that takes this long is a slow one."""


class Breaker:
    """Counts a hook's failures in a row. Closed; open for a pause; probing until one tells."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._failures = 0
        self._pauses = 0
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Tell whether the hook has failed and not yet succeeded again."""
        return self._pauses > 0

    def admits(self, begun: int) -> bool:
        """Tell whether another delivery may be begun while ``begun`` are: when open, one probe."""
        return not self.is_open or (self._is_probing and not begun)

    def succeeded(self) -> None:
        """Note an attempt that succeeded: the hook is closed."""
        self._failures = self._pauses = 0
        self._is_probing = False

    def failed(self) -> float | None:
        """Note an attempt that failed; return the seconds of the pause that begins now, if any."""
        self._failures += 1
        if self._failures < FAILURES or (self.is_open and not self._is_probing):
            return None
        self._is_probing = False
        self._pauses += 1
        return backoff(self._pauses, self._rng, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)

    def pause_is_over(self) -> None:
        """Let one delivery tell whether the hook works again."""
        self._is_probing = self.is_open


class Allowance:
    """How many attempts at once a hook has earned by answering fast, from 1."""

    def __init__(self) -> None:
        self.earned = 1

    def ended(self, latency_s: float) -> None:
        """Note how long an attempt took."""
        if latency_s < SLOW_S:
            self.earned = min(MOST_AT_ONCE, self.earned + 1)
        else:
            self.earned = max(1, self.earned // 2)


class Slots:
    """The attempts that a process has under way, over all hooks."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0

    def admits(self, under_way: int, earned: int) -> bool:
        """Tell whether a hook may begin an attempt; each may always have one.

        While less than half of all is under way a hook may have many whatever it has earned.
        """
        if not under_way:
            return True
        if self.taken >= self.total or under_way >= MOST_AT_ONCE:
            return False
        return under_way < earned or 2 * self.taken < self.total


class Rests:
    """Until when partitions are left alone that a fault has stopped: longer each time.

    One that went on for a minute has recovered: its next fault begins a new row of them.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._until: dict[int, tuple[int, float]] = {}

    def failed(self, partition: int, now_ms: int) -> None:
        """Note that a fault has stopped a partition."""
        failures, until_ms = self._until.get(partition, (0, 0.0))
        if now_ms > until_ms + STEADY_AFTER_S * 1000:
            failures = 0
        rest_s = backoff(failures + 1, self._rng, first_s=FIRST_REST_S, longest_s=LONGEST_REST_S)
        self._until[partition] = failures + 1, now_ms + rest_s * 1000

    def admits(self, partition: int, now_ms: int) -> bool:
        """Tell whether a partition may be taken."""
        return partition not in self._until or self._until[partition][1] <= now_ms
