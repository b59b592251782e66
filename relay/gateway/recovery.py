"""Bring a watcher that returns with a position up to the live feed, from shared history reads.

A recovery is a cursor, not a buffer: it pulls a little of the shared page whenever its connection
has room, and goes live in the loop turn in which it reaches the hub. However many return at once,
a call costs one history read per ``READ_INTERVAL_S`` and process.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from relay import metrics, wire
from relay.broker import Broker, Entry, History
from relay.events import Position
from relay.gateway.call import WatchedCall, Watcher

READ_INTERVAL_S: Final = 0.1
CHUNK_BYTES: Final = 65_536
"""How much a cursor writes before it looks again at the connection's unsent bytes."""


class Page:
    """A page of history as many cursors share it: each run of frames is joined once."""

    def __init__(self, history: History, after: int) -> None:
        self.history = history
        self._after = after
        self._chunks: dict[tuple[int, int], Chunk] = {}

    def serves(self, after: int) -> bool:
        """Tell whether this page says what follows ``after``, be it that nothing is left of it."""
        if after < self._after:
            return False
        if self.history.entries:
            return after < self.history.entries[-1].offset
        return after <= self.history.top.offset

    def chunk(self, after: int, upto: int) -> Chunk:
        """Return the frames above one offset and up to another, as many as one write takes."""
        key = (after, upto)
        if key not in self._chunks:
            self._chunks[key] = _joined(self.history.after(after), after, upto)
        return self._chunks[key]


class Chunk(NamedTuple):
    """Frames joined for one write, how many they are, and the offset of the last."""

    data: bytes
    frames: int
    offset: int


def _joined(entries: tuple[Entry, ...], offset: int, upto: int) -> Chunk:
    frames: list[bytes] = []
    size = 0
    for entry in entries:
        if entry.offset > upto or size >= CHUNK_BYTES:
            break
        frames.append(wire.text_frame(entry.body))
        size += len(entry.body)
        offset = entry.offset
    return Chunk(b"".join(frames), len(frames), offset)


class HistoryReader:
    """Reads one call's history for everyone who recovers: one read at a time, spaced out."""

    def __init__(self, broker: Broker, cid: str) -> None:
        self._broker = broker
        self._cid = cid
        self._page: Page | None = None
        self._turn = asyncio.Lock()
        self._wanted: list[int] = []
        self._next_read = 0.0

    async def page(self, after: int) -> Page:
        """Return a page that says what follows ``after``; raises ``Unavailable``."""
        self._wanted.append(after)
        try:
            async with self._turn:
                if self._page is not None and self._page.serves(after):
                    return self._page
                page = await self._read(min(self._wanted))
                # The lowest of the waiting may be so far back that its page ends before ours.
                if after >= page.history.top.offset or page.serves(after):
                    return page
                return await self._read(after)
        finally:
            self._wanted.remove(after)

    async def _read(self, after: int) -> Page:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._next_read - loop.time()))
        self._next_read = loop.time() + READ_INTERVAL_S
        metrics.HISTORY_READS.inc()
        page = Page(await self._broker.history(self._cid, after), after)
        self._page = page
        loop.call_later(READ_INTERVAL_S, self._forget, page)
        return page

    def _forget(self, page: Page) -> None:
        """Let go of a page once a fresh one may be read: it is old news and costs memory."""
        if self._page is page:
            self._page = None


class Recovery:
    """One watcher's way back: where it is, and the page it reads from."""

    def __init__(
        self, call: WatchedCall, watcher: Watcher, reader: HistoryReader, page: Page, offset: int
    ) -> None:
        self._call = call
        self._watcher = watcher
        self._reader = reader
        self._page = page
        self._offset = offset

    async def run(self) -> bool:
        """Write what the watcher missed until it has caught up with the live feed.

        Returns in the loop turn in which it has: the caller makes it live before anything else
        runs. False means that the rest cannot be continued (trimmed under a slow cursor, or a
        failover lost it). Raises ``Unavailable``; run again, it goes on from where it was.
        """
        while True:
            self._call.flush()
            if self._offset >= self._call.position.offset:
                return True
            chunk = self._page.chunk(self._offset, self._call.position.offset)
            if chunk.frames:
                await self._write(chunk)
            else:
                self._page = await self._reader.page(self._offset)
                history = self._page.history
                if not history.continues(Position(history.top.epoch, self._offset)):
                    return False

    async def _write(self, chunk: Chunk) -> None:
        self._watcher.write(chunk.data)
        metrics.WRITTEN.inc(chunk.frames)
        metrics.WRITES.inc()
        self._offset = chunk.offset
        await self._watcher.drained()
