"""What every sink is: it tries one delivery once, and says how that ended.

The dispatcher decides when and how often; a sink knows how. It never raises (but for being
cancelled) and ends within the time it is given.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import msgspec

from relay.hooks import Hook
from relay.retry import Outcome

ANSWER_BYTES: Final = 512
"""How much of a receiver's answer is kept for whoever looks into a failure."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event owed to one hook, about to be tried.

    ``delivery_id`` is the same on every attempt and differs between hooks. ``body`` is what the
    watchers got: JSON with RFC 3339 times, ``event_id``, ``epoch`` and ``offset``. ``attempt``
    counts from 1.
    """

    delivery_id: str
    event_id: str
    cid: str
    type: str
    body: bytes
    attempt: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended.

    ``answer`` has the first bytes of what the receiver said, or why nothing was heard of it.
    """

    outcome: Outcome
    latency_s: float
    status: int | None = None
    answer: bytes = b""
    retry_after_s: float | None = None


class Sink(Protocol):
    """One way of sending."""

    async def send(self, hook: Hook, delivery: Delivery, limit_s: float) -> Result:
        """Try once. Never raises but ``CancelledError``; ends within ``limit_s`` seconds."""
        ...

    async def aclose(self) -> None:
        """Let go of every connection."""
        ...


class Checked(NamedTuple):
    """What a queue or a topic said when it was asked whether it is there: None is no error."""

    error: str | None
    data: dict[str, str]
