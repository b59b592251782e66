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
    "HEARTBEAT", "HISTORY", "LEASE", "NODES", "OUT_DUE", "OUT_HOOKS", "OUT_LEASE", "OUT_READ",
    "OUT_RECORD", "OUT_REPLAY", "POSITIONS", "PUBLISH", "REPLACE", "ROSTER", "Script",
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


HEARTBEAT: Final = _load("heartbeat")
HISTORY: Final = _load("history")
LEASE: Final = _load("lease")
NODES: Final = _load("nodes")
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
