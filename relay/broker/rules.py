"""What both brokers agree on: by what a repeat is found, how long things live, how long a page is.

Pure. Ids belong to their call and their sender: nobody can burn an id of someone else's.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from relay.broker import Limits
from relay.events import CLOCK_AHEAD_S, Event

PAGE_BYTES: Final = 262_144
PAGE_COUNT: Final = 1000
"""A page of history ends with the entry that reaches either."""


def seen_key(event: Event) -> str | None:
    """Return what repeats of ``event`` are found under, None when it has no identity."""
    if event.identity is None:
        return None
    return _digest("identity", event.cid, event.sender, event.identity)


def alias_key(event: Event) -> str | None:
    """Return what the reuse of the event's unsigned id is found under, None without one."""
    if event.alias is None or event.identity is None:
        return None
    return _digest("alias", event.cid, event.sender, event.alias)


def _digest(*parts: str) -> str:
    """Return 32 hex digits; each part's length goes in, so no two lists read alike."""
    digest = blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.hexdigest()


def given_window_s(limits: Limits) -> float:
    """Return how long, in seconds, an id that the sender chose is remembered."""
    return limits.dedupe_window_s + CLOCK_AHEAD_S


def call_life_s(limits: Limits) -> float:
    """Return how long, in seconds, an idle call keeps its position.

    Longer than anything that refers to it: a seen id names a position, history has offsets.
    """
    return 60.0 + max(limits.history_age_s, given_window_s(limits), limits.minted_window_s)
