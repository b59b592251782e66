"""The server-side functions of the Redis broker: Lua scripts, named by the digest of their text.

Two versions of the relay can run side by side: each runs its own text. Every script begins with
``common.lua``, put behind its first line, which says what Redis must allow it.
"""

from __future__ import annotations

from hashlib import sha1
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

__all__ = [
    "CANARY", "CLAIM", "CONNECTIONS", "DUE", "END", "HEARTBEAT", "HISTORY", "JOIN", "LEASE",
    "LEAVE", "MARKS", "NODES", "NOTIFY", "OUT_DUE", "OUT_HOOKS", "OUT_LEASE", "OUT_READ",
    "OUT_RECORD", "OUT_REPLAY", "POSITIONS", "PUBLISH", "REPLACE", "ROSTER", "SEATS", "SPEND",
    "TICKET", "TICKETS", "Script",
]  # fmt: skip

COPIES: Final = 1024
"""Redis never forgets a script: so few that they cost it a few megabytes, so many that two live
processes hardly ever share one."""

_HERE: Final = Path(__file__).parent


class Script(msgspec.Struct, frozen=True):
    """A script's text and the name under which Redis runs it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> Script:
        """Return the script of a text."""
        return cls(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

    def copy(self, name: str) -> Script:
        """Return a copy that Redis knows as another script, one of ``COPIES``.

        After a SCRIPT FLUSH every step on its way must fail until its own process has loaded the
        script again. Would another process's loading do, a step could pass one that has failed.
        """
        return Script.of(f"{self.text}-- copy {crc32(name.encode()) % COPIES}\n")


def _load(name: str) -> Script:
    flags, _, body = (_HERE / f"{name}.lua").read_text("utf-8").partition("\n")
    return Script.of("\n".join((flags, (_HERE / "common.lua").read_text("utf-8"), body)))


CANARY: Final = _load("canary")
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
OUT_DUE: Final = _load("out_due")
OUT_HOOKS: Final = _load("out_hooks")
OUT_LEASE: Final = _load("out_lease")
OUT_READ: Final = _load("out_read")
OUT_RECORD: Final = _load("out_record")
OUT_REPLAY: Final = _load("out_replay")
POSITIONS: Final = _load("positions")
PUBLISH: Final = _load("publish")
REPLACE: Final = _load("replace")
ROSTER: Final = _load("roster")
SEATS: Final = _load("seats")
SPEND: Final = _load("spend")
TICKET: Final = _load("ticket")
TICKETS: Final = _load("tickets")
