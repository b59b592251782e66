"""Bring a watcher that returns with a position up to the live feed, from shared history reads.

A recovery is a cursor, not a buffer: it pulls a little of a shared page whenever its connection
has room, holds on to nothing while it waits, and goes live in the loop turn in which it reaches the
hub. However many return at once, a call costs one history read per ``READ_INTERVAL_S`` and process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from relay import metrics, wire
from relay.broker import Broker, Entry, History, Unavailable
from relay.events import Position
from relay.gateway.call import WatchedCall, Watcher
from relay.tasks import Tasks

READ_INTERVAL_S: Final = 0.1
CHUNK_BYTES: Final = 65_536
"""How much a cursor writes before it looks again at the connection's unsent bytes."""
CHUNKS_SHARED: Final = 64
"""Joined chunks a page remembers: those who return together stand at few different offsets."""


class Page:
    """A page of history as many cursors share it: a run of frames is joined once for all."""

    def __init__(self, history: History, after: int) -> None:
        self.history = history
        self._after = after
        self._chunks: dict[tuple[int, int], Chunk] = {}

    @property
    def end(self) -> int:
        """The offset up to which this page has everything."""
        entries = self.history.entries
        return entries[-1].offset if entries else self.history.top.offset

    def covers(self, after: int) -> bool:
        """Tell whether this page says what follows ``after``, be it that nothing does."""
        if after < self._after:
            return False
        return after < self.end or self.end >= self.history.top.offset

    def serves(self, after: int, known: Position) -> bool:
        """Tell whether nothing newer need be read to continue ``after`` towards ``known``."""
        top = self.history.top
        if not self.covers(after) or top.epoch != known.epoch:
            return False
        return after < self.end or top.offset >= known.offset

    def chunk(self, after: int, upto: int) -> Chunk:
        """Return the frames above one offset and up to another, as many as one write takes."""
        key = (after, upto)
        if (chunk := self._chunks.get(key)) is None:
            chunk = self._chunks[key] = _joined(self.history.after(after), after, upto)
            if len(self._chunks) > CHUNKS_SHARED:
                del self._chunks[next(iter(self._chunks))]
        return chunk


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
    """Reads one call's history for everyone who recovers: one read at a time, spaced out.

    Whoever a page covers gets it; for the rest it reads on upwards, and begins again at the lowest
    once it has been at the top, so that nobody waits longer than one sweep of the history.
    """

    def __init__(self, broker: Broker, cid: str, tasks: Tasks) -> None:
        self._broker = broker
        self._cid = cid
        self._tasks = tasks
        self._page: Page | None = None
        self._waiting: dict[asyncio.Future[Page], int] = {}
        self._reading: asyncio.Task[None] | None = None
        self._next_read = 0.0
        self._swept = 0

    async def page(self, after: int, known: Position) -> Page:
        """Return a page that says what follows ``after``; raises ``Unavailable``.

        ``known`` is how far the call has come on this process; a page from before is read again.
        """
        if self._page is not None and self._page.serves(after, known):
            return self._page
        waiter: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = after
        if self._reading is None:
            self._reading = self._tasks.spawn(self._read_while_wanted())
        try:
            return await waiter
        finally:
            self._waiting.pop(waiter, None)

    async def _read_while_wanted(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                await asyncio.sleep(max(0.0, self._next_read - loop.time()))
                if self._waiting:
                    await self._read(self._next_offset())
        except Exception as error:
            for waiter in self._take(list(self._waiting)):
                waiter.set_exception(error)
            raise
        finally:
            self._reading = None
            for waiter in self._waiting:  # nobody, unless this was cancelled
                waiter.cancel()

    def _next_offset(self) -> int:
        wanted = self._waiting.values()
        return min((after for after in wanted if after >= self._swept), default=min(wanted))

    async def _read(self, after: int) -> None:
        loop = asyncio.get_running_loop()
        self._next_read = loop.time() + READ_INTERVAL_S
        metrics.HISTORY_READS.inc()
        try:
            page = Page(await self._broker.history(self._cid, after), after)
        except Unavailable as error:
            for waiter in self._take(list(self._waiting)):
                waiter.set_exception(Unavailable(error.message))
            return
        self._page = page
        self._swept = page.end if page.end < page.history.top.offset else 0
        loop.call_later(READ_INTERVAL_S, self._forget, page)
        for waiter in self._take([w for w, at in self._waiting.items() if page.covers(at)]):
            waiter.set_result(page)

    def _take(self, waiters: list[asyncio.Future[Page]]) -> list[asyncio.Future[Page]]:
        """Return those of the waiting that still do, and wait for them no longer."""
        for waiter in waiters:
            del self._waiting[waiter]
        return [waiter for waiter in waiters if not waiter.done()]

    def _forget(self, page: Page) -> None:
        """Let go of a page once a fresh one may be read: it is old news and costs memory."""
        if self._page is page:
            self._page = None


class Recovery:
    """One watcher's way back: ``position`` is what it has, ``read`` gives what follows it.

    ``read`` returns a page of the epoch in which the call's feed is, or one that does not continue
    the position.
    """

    def __init__(
        self,
        call: WatchedCall,
        watcher: Watcher,
        position: Position,
        read: Callable[[Position], Awaitable[Page]],
    ) -> None:
        self._call = call
        self._watcher = watcher
        self._position = position
        self._read = read

    async def run(self) -> bool:
        """Write what the watcher missed until it has caught up with the live feed.

        Returns in the loop turn in which it has: the caller makes it live before anything else
        runs. False means that the rest cannot be continued (trimmed under a slow cursor, or a
        failover lost it). Raises ``Unavailable``; run again, it goes on from where it was.
        """
        while True:
            self._call.flush()
            if self._position == self._call.position:
                return True
            page = await self._read(self._position)
            if not page.history.continues(self._position):
                return False
            await self._write(page)

    async def _write(self, page: Page) -> None:
        chunk = page.chunk(self._position.offset, self._call.position.offset)
        self._position = Position(page.history.top.epoch, chunk.offset)
        if chunk.frames:
            self._watcher.write(chunk.data)
            metrics.RECOVERED.inc(chunk.frames)
            metrics.WRITES.inc()
            await self._watcher.drained()
