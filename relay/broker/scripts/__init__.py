"""The server-side functions of the Redis broker: Lua scripts, named by the digest of their text.

Two versions of the relay can run side by side: each runs its own text. Every script begins with
``common.lua``, put behind its first line, which says what Redis must allow it.
"""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path
from typing import Final

import msgspec

__all__ = [
    "CLAIM", "CONNECTIONS", "DUE", "END", "HEARTBEAT", "HISTORY", "JOIN", "LEASE", "LEAVE", "MARKS",
    "NODES", "NOTIFY", "POSITIONS", "PUBLISH", "REPLACE", "ROSTER", "SEATS", "SPEND", "TICKET",
    "TICKETS", "Script",
]  # fmt: skip

_HERE: Final = Path(__file__).parent


class Script(msgspec.Struct, frozen=True):
    """A script's text and the name under which Redis runs it."""

    text: str
    sha: str


def _load(name: str) -> Script:
    flags, _, body = (_HERE / f"{name}.lua").read_text("utf-8").partition("\n")
    text = "\n".join((flags, (_HERE / "common.lua").read_text("utf-8"), body))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


CLAIM: Final = _load("claim")
CONNECTIONS: Final = _load("connections")
DUE: Final = _load("due")
END: Final = _load("end")
HEARTBEAT: Final = _load("heartbeat")
HISTORY: Final = _load("history")
JOIN: Final = _load("join")
LEASE: Final = _load("lease")
LEAVE: Final = _load("leave")
MARKS: Final = _load("marks")
NODES: Final = _load("nodes")
NOTIFY: Final = _load("notify")
POSITIONS: Final = _load("positions")
PUBLISH: Final = _load("publish")
REPLACE: Final = _load("replace")
ROSTER: Final = _load("roster")
SEATS: Final = _load("seats")
SPEND: Final = _load("spend")
TICKET: Final = _load("ticket")
TICKETS: Final = _load("tickets")
