"""One watched call on this process: its watchers, and what the current loop turn has for them.

All publications that arrive in one turn of the event loop leave in one write per socket. Used by
the hub only.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from relay import metrics, wire
from relay.events import Position
from relay.gateway.feed import Feed
from relay.users import User

if TYPE_CHECKING:
    from relay.gateway.recovery import HistoryReader


class Batch:
    """What one turn has for the watchers of a call: frames, joined once and shared by all."""

    def __init__(self, frames: list[bytes], volatile: list[int]) -> None:
        self._frames = frames
        self._volatile = volatile
        self.count = len(frames)
        self.everything = frames[0] if len(frames) == 1 else b"".join(frames)

    @property
    def volatile_count(self) -> int:
        """How many of the frames a slow socket goes without."""
        return len(self._volatile)

    @cached_property
    def kept(self) -> bytes:
        """What a slow socket gets: the frames of kept publications."""
        if not self._volatile:
            return self.everything
        dropped = set(self._volatile)
        return b"".join(f for index, f in enumerate(self._frames) if index not in dropped)


class Watcher(Protocol):
    """What the hub needs of a connection."""

    @property
    def user(self) -> User:
        """Who is watching."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether writing still makes sense."""
        ...

    def deliver(self, batch: Batch) -> int:
        """Write a batch, or less when the peer is slow; return how many frames.

        Never waits, and never comes back to the hub: a peer that is cut off leaves in a later turn.
        """
        ...

    def write(self, data: bytes) -> None:
        """Write frames that may not be dropped. Never waits, never comes back to the hub."""
        ...

    async def drained(self) -> None:
        """Return once the unsent bytes are below the soft bound, or the connection is closed."""
        ...


class WatchedCall:
    """A call that at least one connection of this process watches, or did a second ago.

    ``joining`` counts those who wait for ``joined``; ``arrived_early`` notes that something came,
    or may have been lost, before the feed ran; ``heard_at`` and ``patience`` (loop time, seconds)
    say when silence becomes suspicious. ``roster_nodes``, ``shown`` and ``shown_at`` belong to the
    board of watchers.
    """

    __slots__ = (
        "_frames", "_volatile", "arrived_early", "cid", "feed", "heard_at", "joined", "joining",
        "live", "patience", "reader", "recovering", "repair", "roster_nodes", "shown", "shown_at",
        "unused",
    )  # fmt: skip

    def __init__(self, cid: str) -> None:
        self.cid = cid
        self.joined: asyncio.Task[None] | None = None
        self.joining = 0
        self.feed: Feed | None = None
        self.arrived_early = False
        self.live: dict[Watcher, None] = {}
        self.recovering: dict[Watcher, asyncio.Task[None]] = {}
        self.reader: HistoryReader | None = None
        self.repair: asyncio.Task[None] | None = None
        self.unused: asyncio.TimerHandle | None = None
        self.heard_at = 0.0
        self.patience = 0.0
        self.roster_nodes: frozenset[str] = frozenset()
        self.shown = b""
        self.shown_at = 0.0
        self._frames: list[bytes] = []
        self._volatile: list[int] = []

    @property
    def position(self) -> Position:
        """The position up to which the live watchers have everything."""
        assert self.feed is not None, "asked for a position before the call was joined"
        return self.feed.position

    @property
    def is_unused(self) -> bool:
        """Whether nobody watches and nobody is about to."""
        return not (self.live or self.recovering or self.joining)

    def is_watched_by(self, watcher: Watcher) -> bool:
        """Tell whether ``watcher`` receives the call, be it live or still catching up."""
        return watcher in self.live or watcher in self.recovering

    def add(self, body: bytes, *, volatile: bool = False) -> bool:
        """Append a text for the live watchers; return True when it is this turn's first."""
        if not self.live:
            return False
        if volatile:
            self._volatile.append(len(self._frames))
        self._frames.append(wire.text_frame(body))
        return len(self._frames) == 1

    def flush(self) -> None:
        """Write what has gathered to the live watchers, as they are now."""
        if not self._frames:
            return
        batch = Batch(self._frames, self._volatile)
        self._frames, self._volatile = [], []
        written = 0
        for watcher in self.live:
            written += watcher.deliver(batch)
        metrics.WRITTEN.inc(written)
        metrics.OWED.inc(batch.count * len(self.live))
        metrics.WRITES.inc(len(self.live))
