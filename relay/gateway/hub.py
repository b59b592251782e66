"""The hub: which connections of this process watch which call, and what each of them is owed.

It encodes a publication once and writes the same bytes to every watcher. It notices gaps by the
offsets and repairs them from history; what cannot be repaired is told. No other module thinks about
gaps. One per process; everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection
from functools import partial
from typing import Final, NamedTuple

from relay import logs, metrics, wire
from relay.broker import Broker, Unavailable
from relay.events import Position
from relay.gateway import frames
from relay.gateway.call import Changes, WatchedCall, Watcher
from relay.gateway.comparisons import Comparisons
from relay.gateway.feed import Feed, Verdict
from relay.gateway.recovery import HistoryReader, Page, Recovery
from relay.gateway.watchers import WatcherBoard
from relay.retry import backoff
from relay.tasks import Tasks, within

log = logs.get(__name__)

UNSUBSCRIBE_AFTER_S: Final = 1.0
"""A page reload must not cost an unsubscribe and a subscribe."""
REPAIRS_AT_ONCE: Final = 16
WATCH_TIMEOUT_S: Final = 5.0


class Watching(NamedTuple):
    """The state of a watch as it begins; ``recovered`` is None when no position was given."""

    position: Position
    recovered: bool | None


class Hub:
    """Implements ``broker.Listener``; ``start`` it before the broker delivers.

    Whoever changes a watcher's ``direct`` counts that in ``changes``.
    """

    def __init__(self, broker: Broker, rng: random.Random | None = None) -> None:
        self.changes = Changes()
        self._broker = broker
        self._random = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self._calls: dict[str, WatchedCall] = {}
        self._dirty: list[WatchedCall] = []
        self._owed = 0
        self._tasks = Tasks("hub")
        self._repair_slots = asyncio.Semaphore(REPAIRS_AT_ONCE)
        self._comparisons = Comparisons(
            broker, self._calls, self._repair, self._tasks, self._random
        )
        self._board = WatcherBoard(broker, self._calls, self._announce, self._tasks)
        self._received_kept = metrics.Tally(metrics.RECEIVED.labels("kept"))
        self._received_volatile = metrics.Tally(metrics.RECEIVED.labels("volatile"))

    async def start(self) -> None:
        """Begin to look after silent calls and lists of watchers."""
        self._tasks.keep(self._comparisons.run, "looking for silent calls")
        self._board.start()

    async def aclose(self) -> None:
        """End every task. The sockets are the gateway's to close."""
        for call in self._calls.values():
            if call.unused is not None:
                call.unused.cancel()
        await self._tasks.aclose()

    # -- watching -------------------------------------------------------------------------------

    async def watch(self, watcher: Watcher, cid: str, since: Position | None = None) -> Watching:
        """Make ``watcher`` receive a call, continuing after ``since`` where that is possible.

        The caller writes its reply before it awaits anything: what comes after the reply, first
        what was missed and then what is live, is written from the next loop turn on. Watching again
        restarts the watch. Raises ``Unavailable``.
        """
        call = self._call(cid)
        call.joining += 1
        try:
            async with within(WATCH_TIMEOUT_S, "watching the call"):
                assert call.joined is not None
                await asyncio.shield(call.joined)
                page = None
                if since is not None and since != call.position:
                    page = await self._page_after(call, since)
            return self._enter(call, watcher, since, page)
        finally:
            call.joining -= 1
            self._retire(call)

    def unwatch(self, watcher: Watcher, cid: str) -> None:
        """End a watch; nothing of the call is written to ``watcher`` afterwards."""
        if (call := self._calls.get(cid)) is not None:
            self._drop(call, watcher)
            self._retire(call)

    def place(self, cid: str) -> Position | None:
        """Return up to where everything is written to the live watchers, None when none can be."""
        call = self._calls.get(cid)
        if call is None or call.feed is None:
            return None
        call.flush()
        return call.position

    def is_live(self, watcher: Watcher, cid: str) -> bool:
        """Tell whether a watcher gets a call, with nothing left to replay."""
        return (call := self._calls.get(cid)) is not None and watcher in call.live

    def _enter(
        self, call: WatchedCall, watcher: Watcher, since: Position | None, page: Page | None
    ) -> Watching:
        """Make a watcher live, or start its recovery; all in one loop turn."""
        recovered = None
        if since is not None:
            recovered = since == call.position or (
                page is not None and page.history.continues(since)
            )
            metrics.RECOVERIES.labels(str(recovered).lower()).inc()
        self._drop(call, watcher)
        if watcher.is_open and since is not None and recovered and since != call.position:
            recovery = Recovery(call, watcher, since, partial(self._page_after, call))
            call.recovering[watcher] = self._tasks.spawn(self._recover(call, watcher, recovery))
            self._board.changed(call.cid)
        else:
            self._go_live(call, watcher)
        return Watching(call.position, recovered)

    def _go_live(self, call: WatchedCall, watcher: Watcher) -> None:
        call.flush()  # what gathered so far came before this watcher's position
        if watcher.is_open:
            call.enter(watcher)
            self._board.changed(call.cid)

    def _drop(self, call: WatchedCall, watcher: Watcher) -> None:
        if not call.is_watched_by(watcher):
            return
        call.flush()
        call.leave(watcher)
        if (recovery := call.recovering.pop(watcher, None)) is not None:
            recovery.cancel()
        self._board.changed(call.cid)

    # -- calls coming and going -------------------------------------------------------------------

    def _call(self, cid: str) -> WatchedCall:
        """Return a call that is joined or being joined."""
        call = self._calls.get(cid)
        if call is None:
            call = self._calls[cid] = WatchedCall(cid, self.changes)
            call.joined = self._tasks.spawn(self._join(call))
            metrics.CALLS.set(len(self._calls))
        if call.unused is not None:
            call.unused.cancel()
            call.unused = None
        return call

    async def _join(self, call: WatchedCall) -> None:
        """Subscribe, wait for the confirmation, and only then read the position."""
        try:
            await self._broker.subscribe(call.cid)
            [position] = await self._broker.positions([call.cid])
        except BaseException:
            self._forget(call)
            raise
        call.feed = Feed(position)
        self._comparisons.done(call)
        if call.arrived_early:
            self._repair(call)  # it may have come after the position was read

    def _retire(self, call: WatchedCall) -> None:
        """Forget a call a moment after its last watcher has gone."""
        if call.is_unused and call.unused is None and self._calls.get(call.cid) is call:
            loop = asyncio.get_running_loop()
            call.unused = loop.call_later(UNSUBSCRIBE_AFTER_S, self._forget, call)

    def _forget(self, call: WatchedCall) -> None:
        if self._calls.get(call.cid) is not call:
            return
        del self._calls[call.cid]
        metrics.CALLS.set(len(self._calls))
        if call.repair is not None:
            call.repair.cancel()
        self._tasks.spawn(self._leave(call.cid))

    async def _leave(self, cid: str) -> None:
        try:
            await self._broker.unsubscribe(cid)
        except Unavailable as error:
            # The next connection to the broker begins without this subscription.
            log.info("unsubscribe failed", cid=cid, reason=error.message)

    # -- what arrives (broker.Listener) -----------------------------------------------------------

    def on_publication(self, cid: str, position: Position | None, body: bytes) -> None:
        """Take a publication of a subscribed call. The hot path."""
        call = self._calls.get(cid)
        if call is None:
            return
        if position is None:
            self._received_volatile.inc()
            self._add(call, body, volatile=True)
            return
        self._received_kept.inc()
        if call.feed is None:
            call.arrived_early = True
            return
        call.heard_at = asyncio.get_running_loop().time()
        verdict = call.feed.live(position, body)
        if verdict is Verdict.DELIVER:
            self._add(call, body)
        elif verdict is not Verdict.DROP:
            self._repair(call)

    def on_roster(self, cid: str) -> None:
        """Learn that another process's watchers of a call have changed."""
        if cid in self._calls:
            self._board.nudged(cid)

    def on_interrupted(self, cids: Collection[str]) -> None:
        """Compare the positions of these calls: what they published may have been lost."""
        calls = [call for cid in cids if (call := self._calls.get(cid)) is not None]
        self._board.interrupted([call.cid for call in calls])
        for call in calls:
            if call.feed is None:
                call.arrived_early = True
        self._comparisons.suspect(call.cid for call in calls)

    def deliver_volatile(self, cid: str, body: bytes) -> None:
        """Hand a volatile event of this process's own door to the call's watchers here."""
        self.on_publication(cid, None, body)

    def _add(self, call: WatchedCall, body: bytes, *, volatile: bool = False) -> None:
        """Owe a text to the live watchers, whatever becomes of it on the way to their sockets."""
        self._owed += len(call.live)
        if call.add(body, volatile=volatile):
            if not self._dirty:
                asyncio.get_running_loop().call_soon(self._flush)
            self._dirty.append(call)

    def _announce(self, cid: str, body: bytes) -> None:
        if (call := self._calls.get(cid)) is not None:
            self._add(call, body, volatile=True)

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        owed, self._owed = self._owed, 0
        metrics.OWED.inc(owed)
        for call in dirty:
            call.flush()

    # -- gaps -------------------------------------------------------------------------------------

    def _repair(self, call: WatchedCall) -> None:
        """Start the call's repair, unless one is under way and will see this too."""
        if call.repair is None:
            log.info("gap suspected", cid=call.cid, offset=call.position.offset)
            call.flush()
            call.repair = self._tasks.spawn(self._fill(call))

    async def _fill(self, call: WatchedCall) -> None:
        """Read history until the feed follows again; retry for as long as the broker is away."""
        assert call.feed is not None
        lost, failures = False, 0
        try:
            while True:
                try:
                    async with self._repair_slots:
                        history = await self._broker.history(call.cid, call.feed.reading())
                except Unavailable:
                    failures += 1
                    await self._pause(failures)
                    continue
                filled = call.feed.page(history)
                if filled.lost is not None:
                    lost = True
                    self._add(call, frames.lost(call.cid, filled.lost))
                for body in filled.bodies:
                    self._add(call, body)
                if filled.done:
                    break
        finally:
            call.repair = None
        self._comparisons.done(call)
        metrics.REPAIRS.labels("lost" if lost else "filled").inc()
        log.info("gap closed", cid=call.cid, lost=lost, offset=call.position.offset)

    async def _pause(self, failures: int) -> None:
        await asyncio.sleep(backoff(failures, self._random))

    # -- recovery ---------------------------------------------------------------------------------

    def _reader(self, call: WatchedCall) -> HistoryReader:
        if call.reader is None:
            call.reader = HistoryReader(self._broker, call.cid, self._tasks)
        return call.reader

    async def _page_after(self, call: WatchedCall, since: Position) -> Page:
        """Return the history after ``since`` as this process's feed sees it.

        A position ahead of the feed is one that another process delivered, a page of another epoch
        was read across a failover: the feed is brought up first, so that nothing is written twice
        and nothing that was replaced is written at all.
        """
        while True:
            page = await self._reader(call).page(since.offset, call.position)
            same_epoch = page.history.top.epoch == call.position.epoch
            if not page.history.is_good(since):
                return page
            if same_epoch and since.offset <= call.position.offset:
                return page
            self._repair(call)
            if call.repair is not None:
                await asyncio.shield(call.repair)

    async def _recover(self, call: WatchedCall, watcher: Watcher, recovery: Recovery) -> None:
        """Bring a watcher up to the live feed and make it live, or tell it what it goes without."""
        complete, failures = False, 0
        while True:
            try:
                complete = await recovery.run()
                break
            except Unavailable:
                failures += 1
                await self._pause(failures)
            except Exception:
                log.exception("recovery failed", cid=call.cid)
                break
        del call.recovering[watcher]
        if not complete:
            watcher.write(wire.text_frame(frames.lost(call.cid, call.position)))
        self._go_live(call, watcher)
