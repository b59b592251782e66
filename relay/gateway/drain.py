"""Let the sockets of a process go without a herd: in small batches, each told before it is closed.

Who hears the notice opens its new socket while the old one still delivers, so nothing is missed.
Who does not know the word is closed with a code that makes it reconnect. Either way the others see
as many newcomers in each moment as in any other.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from relay.errors import Close

TICK_S: Final = 0.05
UNHURRIED: Final = 200
"""Sockets a second that nobody feels: few need not be spread over the whole time."""
SPREAD: Final = 0.6
"""The part of the time over which the batches are spread; the rest is for moving over."""
HANDOVER: Final = 0.3
LONGEST_HANDOVER_S: Final = 5.0
REASON: Final = "this process makes room for another: reconnect"


class Leaving(Protocol):
    """A socket that is to go."""

    def announce_end(self, within_ms: int, /) -> None:
        """Tell the peer to open another socket, because this one ends so soon."""
        ...

    def end(self, code: Close, reason: str, why: str, /) -> None:
        """Close with a code; does nothing when that has happened."""
        ...


class Plan(NamedTuple):
    """One batch leaves per tick; ``lead`` is how many ticks lie between its notice and its end."""

    batches: int
    lead: int

    @property
    def handover_s(self) -> float:
        """How long before its end a socket is told, 0 when it is not."""
        return self.lead * TICK_S


def plan(sockets: int, time_s: float, *, handover: bool) -> Plan:
    """Return how so many sockets leave within a time, with some of it left for stragglers.

    Without ``handover`` there is nowhere to go before the end, so nobody is told of it.
    """
    spread_s = min(SPREAD * time_s, sockets / UNHURRIED)
    lead_s = min(HANDOVER * time_s, LONGEST_HANDOVER_S) if handover else 0.0
    return Plan(max(1, math.ceil(spread_s / TICK_S)), math.ceil(lead_s / TICK_S))


async def let_go(sockets: Sequence[Leaving], plan: Plan, gone: asyncio.Event) -> None:
    """Tell and close every socket by the plan, and return when ``gone`` says that all have left."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    batches = [sockets[number :: plan.batches] for number in range(plan.batches)]
    for tick in range(plan.batches + plan.lead):
        if plan.lead and tick < plan.batches:
            for leaving in batches[tick]:
                leaving.announce_end(round(plan.handover_s * 1000))
        if tick >= plan.lead:
            for leaving in batches[tick - plan.lead]:
                leaving.end(Close.SERVICE_RESTART, REASON, "drained")
        with suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), max(0.0, began + (tick + 1) * TICK_S - loop.time()))
            return
    await gone.wait()
