"""What a socket may do and how long it may take, where no setting says so."""

from __future__ import annotations

from typing import Final

CLOSE_TIMEOUT_S: Final = 3.0
"""How long a peer may take to answer a close frame."""
SLICE_BYTES: Final = 512
"""How much of a peer is parsed before it is the others' turn: a hundred microseconds of pings."""
NOISE_LIMIT: Final = 1000
"""Frames without a message (pings, pongs, fragments) that a peer may send per heartbeat."""
SILENCE_S: Final = 65.0
"""A peer that answered none of three pings is gone, whatever its kernel acknowledges."""
MAX_REASON: Final = 120
"""Bytes of a close frame's reason (RFC 6455 allows 123)."""
