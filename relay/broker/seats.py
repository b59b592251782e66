"""What a keeper of sessions promises."""

from __future__ import annotations

from typing import NamedTuple


class Seat(NamedTuple):
    """A user's place in the session of a call."""

    cid: str
    user_id: str
