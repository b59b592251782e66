"""Which slot of a Redis Cluster a key lies in, and which key a command is routed by.

Pure. Source: the Redis Cluster specification, "Key distribution model" and "Hash tags".
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Sequence
from typing import Final

SLOTS: Final = 16384

_KEY_AFTER: Final = {"XREAD": "STREAMS"}
"""Commands whose keys follow a word."""
_SCRIPTS: Final = frozenset({"EVALSHA", "EVAL"})
_KEYLESS: Final = frozenset({"CLIENT", "CLUSTER", "CONFIG", "ECHO", "INFO", "PING", "TIME", "WAIT"})


def key_slot(key: str | bytes) -> int:
    """Return the slot of a key: of the part in its first braces, where that is not empty."""
    name = key.encode() if isinstance(key, str) else key
    opening = name.find(b"{")
    if opening >= 0:
        closing = name.find(b"}", opening + 1)
        if closing > opening + 1:
            name = name[opening + 1 : closing]
    return crc_hqx(name, 0) % SLOTS


def first_key(command: Sequence[bytes | str | int | float]) -> str | bytes | None:
    """Return the first key of a command, None for one that any node can answer.

    A command that is not known here has its key where most have it: right behind its name.
    """
    name = str(command[0]).upper()
    if name in _SCRIPTS:
        return _text(command[3]) if int(command[2]) else None
    if name in _KEYLESS or len(command) < 2:
        return None
    if (word := _KEY_AFTER.get(name)) is not None:
        return _text(command[list(command).index(word) + 1])
    return _text(command[1])


def _text(part: bytes | str | int | float) -> str | bytes:
    return part if isinstance(part, bytes | str) else str(part)
