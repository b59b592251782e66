"""What both brokers and both stores agree on: how a repeat is found, how long things live, bounds.

Pure. Ids belong to their call and their sender: nobody can burn an id of someone else's.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from relay import wire
from relay.broker import DeadLetter, Limits, Tried, Waiting
from relay.calls import MEMBERS_MOST, Call
from relay.errors import BadInput, TooLarge
from relay.events import CLOCK_AHEAD_S, Event
from relay.users import User

PAGE_BYTES: Final = 262_144
PAGE_COUNT: Final = 1000
"""A page of history ends with the entry that reaches either."""

GONE_S: Final = 24 * 3600
"""How long it is remembered that a call was deleted elsewhere: news of it that are late come within
that."""
CALL_BYTES: Final = 512 * 1024
"""What a call may be as JSON: it is read and written whole."""

GUEST: Final = "guest"
"""The role of users that are forgotten when they stay away; they are in no index."""

GUEST_LIFE_S: Final = 48 * 3600
"""A guest is forgotten this long after it was last saved: its token is good for half of that."""

ENTRY_BYTES: Final = 200
"""What an entry of the outbox counts besides its body (scripts/publish.lua counts the same)."""


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


def call_text(call: Call) -> bytes:
    """Return a call as it is kept; raises a ``Refused`` when it would be too large."""
    if len(call.members) > MEMBERS_MOST:
        raise BadInput(
            f"members: the call would have {len(call.members)}, at most {MEMBERS_MOST} are possible"
        )
    text = wire.encode(call)
    if len(text) > CALL_BYTES:
        raise TooLarge(
            f"the call would take {len(text)} bytes, at most {CALL_BYTES} are kept of one: shorten "
            "its custom, or that of its members"
        )
    return text


def life_of_user_s(user: User) -> int:
    """Return after how many seconds a user that was not saved again is forgotten; 0 = never."""
    return GUEST_LIFE_S if user.role == GUEST else 0


def waiting_size(waiting: Waiting) -> int:
    """Return what a waiting delivery counts where its bytes are not at hand."""
    return len(waiting.body) + ENTRY_BYTES


def replayed(letter: DeadLetter) -> Waiting | None:
    """Return what a dead letter becomes when it is replayed; None when its body is gone.

    Attempts are numbered on; everything else about the row begins anew. It is due at once.
    """
    if letter.body is None:
        return None
    return Waiting(
        id=letter.id,
        due_ms=0,
        hook_id=letter.hook_id,
        cid=letter.cid,
        type=letter.type,
        event_id=letter.event_id,
        epoch=letter.epoch,
        offset=letter.offset,
        body=letter.body,
        tried=Tried(before=letter.tried.number),
    )
