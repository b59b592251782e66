"""How long to wait before trying again. Pure: randomness and time come in as arguments.

``backoff`` is for the relay's own connections. The rest is the table of docs/delivery.md: how often
one event is tried at one hook, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from random import Random
from typing import Final

REQUEST_LIMIT_S: Final = 6.0
"""The longest one attempt may take."""
BUDGET_S: Final = 15.0
"""The longest all attempts of the table may take, from the beginning of the first."""
SHORTEST_ATTEMPT_S: Final = 1.0
"""Time that a wait leaves for the attempt after it: with less, it would be made to fail."""
LONGEST_LATER_S: Final = 86_400
"""The longest that a receiver's ``Retry-After`` puts off an attempt of the longer schedule."""


class Outcome(StrEnum):
    """How an attempt ended."""

    DELIVERED = "delivered"
    """Answered 200 to 299."""
    REFUSED = "refused"
    """Any other answer, redirects included."""
    RETRYABLE = "retryable"
    """Answered 408, 429 or 500 and above."""
    NETWORK = "network"
    """No answer: the connection could not be made, or broke."""
    TIMEOUT = "timeout"
    """No answer in time."""


ATTEMPTS: Final = {
    Outcome.DELIVERED: 1,
    Outcome.REFUSED: 1,
    Outcome.NETWORK: 2,
    Outcome.RETRYABLE: 3,
    Outcome.TIMEOUT: 3,
}
"""How many attempts there are in all, when the latest one ended like this."""


def backoff(failures: int, rng: Random, *, first_s: float = 0.1, longest_s: float = 2.0) -> float:
    """Return seconds to wait after ``failures`` in a row (from 1): doubling, capped, jittered.

    Between half and the whole of the doubled time, so that many who failed together do not return
    together.
    """
    ceiling = min(longest_s, first_s * 2.0 ** min(failures - 1, 16))
    return ceiling * rng.uniform(0.5, 1.0)


def outcome_of(status: int) -> Outcome:
    """Return what an HTTP answer means."""
    if 200 <= status <= 299:
        return Outcome.DELIVERED
    return Outcome.RETRYABLE if status in (408, 429) or status >= 500 else Outcome.REFUSED


def attempt_limit(elapsed_s: float, timeout_s: float = REQUEST_LIMIT_S) -> float:
    """Return how long an attempt may take that begins ``elapsed_s`` after the first began.

    0 or less: there is no time left for it.
    """
    return min(REQUEST_LIMIT_S, timeout_s, BUDGET_S - max(elapsed_s, 0.0))


def next_attempt(
    outcome: Outcome,
    made: int,
    elapsed_s: float,
    rng: Random,
    retry_after_s: float | None = None,
) -> float | None:
    """Return the delay in seconds before the next attempt, or None when the table is exhausted.

    ``made`` counts attempts so far, from 1; ``elapsed_s`` is the time since the first began.
    ``retry_after_s`` is what the receiver asked for: it is waited for when it fits into the budget.
    """
    room_s = BUDGET_S - max(elapsed_s, 0.0) - SHORTEST_ATTEMPT_S
    if outcome is Outcome.DELIVERED or made >= ATTEMPTS[outcome] or room_s < 0:
        return None
    delay_s = min(backoff(made, rng, first_s=1.0, longest_s=4.0), room_s)
    if retry_after_s is not None and retry_after_s <= room_s:
        return max(delay_s, retry_after_s)
    return delay_s


def later_attempt(
    schedule: Sequence[int], made: int, rng: Random, retry_after_s: float | None = None
) -> float | None:
    """Return the delay in seconds before the next attempt after the table; None: there is none.

    ``schedule`` has a hook's waits in seconds, each followed by one attempt; ``made`` counts how
    many of those were made. Up to a tenth is added, so that not everything comes back at once.
    """
    if made >= len(schedule):
        return None
    wait_s = max(float(schedule[made]), min(retry_after_s or 0.0, LONGEST_LATER_S))
    return wait_s * rng.uniform(1.0, 1.1)


def read_retry_after(text: str | None, now_s: float) -> float | None:
    """Return the seconds of a ``Retry-After`` header, given as a number or as an HTTP date.

    None when there is none or it cannot be read; 0 for a date that has passed.

    Source: RFC 9110, section 10.2.3.
    """
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
        # A date that names no zone is in GMT, as every HTTP date is.
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now_s)
    except (ValueError, OverflowError, IndexError):
        return None
