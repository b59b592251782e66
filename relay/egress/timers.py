"""The dispatcher's clock: the time, and calls that come later. Tests bring one moved by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Handle(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """Let it not come."""


class Timers(Protocol):
    """Tells the time and calls later, on the event loop."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970: processes compare them."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        """Call ``callback`` after ``delay_s`` seconds."""
        ...


class LoopTimers:
    """The machine's clock and the event loop's timers."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        """Call ``callback`` after ``delay_s`` seconds."""
        return asyncio.get_running_loop().call_later(delay_s, callback)
