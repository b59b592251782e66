"""One partition in the hands of this process: what is read of it, and what is recorded.

Entries are read once for all hooks. A hook without room stays behind and reads by itself when it
has room again (``Track.lags``), so that none delays another and nothing is held but what is about
to be delivered. Everything up to the lowest hook's place is removed.

What is to be recorded is gathered while the record before is on its way, so one request carries
what many deliveries have to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Final, Protocol

from relay import logs, metrics
from relay.broker import (
    Changes,
    HookList,
    Key,
    Lease,
    LeaseLost,
    Outbox,
    Owed,
    Progress,
    Reason,
    Tried,
    Unavailable,
    Waiting,
)
from relay.broker.rules import PAGE_BYTES
from relay.egress.jobs import Job
from relay.egress.ledger import Ledger
from relay.egress.shelf import Shelf
from relay.egress.timers import Timers
from relay.egress.tracks import Track, Tracks
from relay.hooks import Hook
from relay.tasks import Tasks

if TYPE_CHECKING:
    from relay.egress.lane import Bounds

log = logs.get(__name__)

PAGE: Final = 64
"""Entries read at once."""
RECORD_LIMIT_S: Final = 2.0
"""How long the end of a partition waits until everything is recorded."""


class Receiver(Protocol):
    """A hook's lane, as a partition sees it."""

    hook: Hook

    def room(self) -> int:
        """Return how many more deliveries it can take now."""

    def take(self, job: Job) -> None:
        """Take a delivery."""

    def stays_behind(self, partition: Partition) -> None:
        """Note that entries of this partition are left to be read when there is room."""

    def catches_up(self, partition: Partition) -> None:
        """Note that none are left."""

    def pump(self) -> None:
        """Read what was left when there is room."""


class Surroundings(Protocol):
    """What a partition needs of the dispatcher."""

    outbox: Outbox
    timers: Timers
    rng: Random
    bounds: Bounds

    @property
    def hooks(self) -> HookList:
        """The hooks as this process knows them."""

    @property
    def receivers(self) -> Mapping[str, Receiver]:
        """The lanes of the enabled hooks, by id."""

    async def refresh(self) -> None:
        """Read the hooks anew; the lanes are then those of the new list."""

    async def know(self, version: int) -> None:
        """Read the hooks anew unless those of this version are known, or later ones."""

    def lost(self, partition: Partition) -> None:
        """Forget a partition whose lease is gone."""

    def failed(self, partition: Partition) -> None:
        """Hand a partition over that a fault has stopped, and read it anew after a pause."""


class Partition:
    """One leased partition. ``close`` ends its use; jobs of a closed one are dropped."""

    def __init__(self, lease: Lease, around: Surroundings) -> None:
        self.lease = lease
        self.is_closed = False
        self.is_closing = False
        self._around = around
        self._outbox = around.outbox
        self._tracks = Tracks()
        self._front = 0
        self._progress = Progress({}, set(), {})
        self._attempts = 0
        self._ended = asyncio.Event()
        self._is_opened = False
        self._has_news = True
        self._is_reading = False
        self._ledger = Ledger(
            around.outbox, lease, around.rng, complete=self._settle_up, lost=self._lost,
            failed=self.give_up,
        )  # fmt: skip
        self._tasks = Tasks(f"partition {lease.partition}")
        self._shelf = Shelf(self, around, self._ledger, self._tasks)

    @property
    def number(self) -> int:
        """Which partition it is."""
        return self.lease.partition

    def open(self) -> None:
        """Begin to deliver."""
        self._tasks.spawn(self._open())

    async def aclose(self) -> None:
        """Record what is to be recorded, for a limited time, and end everything."""
        self.is_closing = True
        if not self.is_closed and not await self._ledger.aclose(RECORD_LIMIT_S):
            log.info("deliveries are left to be repeated", partition=self.number)
        self.close()
        await self._tasks.aclose()

    def close(self) -> None:
        """Drop everything: another process has the lease, or may have it."""
        self.is_closed = self.is_closing = True
        self._ledger.close()
        self._shelf.close()
        for receiver in self._around.receivers.values():
            receiver.catches_up(self)

    async def is_idle(self) -> None:
        """Return when no attempt of its deliveries is under way."""
        while self._attempts:
            self._ended.clear()
            await self._ended.wait()

    def give_up(self) -> None:
        """Begin nothing more, after a fault that nobody foresaw, and be read anew after a pause.

        What was recorded of it stands, the rest is repeated. So one fault stops nothing for long,
        and one that comes again each time is met now and then only. Whoever calls this logs it.
        """
        metrics.BACKGROUND_FAILURES.inc()
        self.is_closing = True
        self._around.failed(self)

    @contextmanager
    def or_given_up(self) -> Iterator[None]:
        """Give the partition up when the body fails, but for what is foreseen: that goes on."""
        try:
            yield
        except (LeaseLost, Unavailable):
            raise
        except Exception:
            log.exception("partition failed: it is read anew", partition=self.number)
            self.give_up()

    def left(self, hook_id: str) -> int:
        """Return how many entries a hook has not come to yet."""
        track = self._tracks.get(hook_id)
        return 0 if track is None else self._top - track.cursor

    @property
    def _top(self) -> int:
        """The number of the last entry, as far as it is known."""
        return max(self.lease.top, self._front)

    # -- taking over ----------------------------------------------------------------------------

    async def _open(self) -> None:
        """Find out how far the leaseholder before has come, and begin there."""
        persistently = self._ledger.persistently
        with suppress(LeaseLost), self.or_given_up():
            lease = self.lease  # a later one may owe to hooks that are not known yet
            await persistently(lambda: self._around.know(lease.hooks_version))
            progress = await persistently(lambda: self._outbox.progress(self.lease))
            first = await persistently(lambda: self._outbox.read(self.lease, 0, 1))
            self._begin(progress, first, lease.top)

    def _begin(self, progress: Progress, first: Sequence[Owed], top: int) -> None:
        """Take up every hook where its deliveries stand; ``first`` has the oldest entry.

        Who is owed nothing up to ``top`` begins behind it.
        """
        head = first[0].seq - 1 if first else top
        receivers = self._around.receivers
        for key in (*progress.tried, *progress.done):
            if key.hook_id not in receivers or key.seq <= head:
                self._ledger.forget(key)
        self._ledger.changes.gone |= progress.settled.keys() - receivers.keys()
        self._progress = progress
        self._tracks.trimmed = head
        places = {hook_id: max(head, progress.settled.get(hook_id, 0)) for hook_id in receivers}
        self._front = max(places.values(), default=top)
        self._is_opened = True
        for hook_id, place in places.items():
            self._track(hook_id, place)
        self._shelf.look()
        self.wake()
        self._dirty()

    def _track(self, hook_id: str, cursor: int) -> Track:
        track = self._tracks[hook_id] = Track(cursor)
        self._tracks.moved.add(hook_id)
        if cursor < self._front:
            track.lags = True
            self._around.receivers[hook_id].stays_behind(self)
            self._around.receivers[hook_id].pump()
        return track

    async def renewed(self, lease: Lease) -> None:
        """Take note of the renewed lease, and look for what no one has told of.

        Raises ``Unavailable``.
        """
        if shed := lease.shed - self.lease.shed:
            metrics.DEAD_LETTERS.labels("", Reason.OUTBOX_BOUND.value).inc(shed)
            log.warning("the outbox is full: its oldest go", partition=self.number, entries=shed)
        self.lease = lease
        self._shelf.room = lease.waiting_room
        if self._is_opened and lease.waiting > len(self._shelf.taken):
            self._shelf.look()
        if self._is_opened and not self._tracks:
            await self._pass_over(lease)
        if self._has_news or lease.top > self._front:
            self.wake()

    async def _pass_over(self, lease: Lease) -> None:
        """Settle what is owed to nobody; without all hooks, what is owed to a new one looks so."""
        await self._around.know(lease.hooks_version)
        if not self._tracks and not self.is_closing:
            self._front = max(self._front, lease.top)
            self._dirty()

    def hooks_changed(self, removed: Sequence[str]) -> None:
        """Drop what is owed to hooks that are no more, and make room for new ones."""
        if not self._is_opened:
            return
        for hook_id in removed:
            self._drop(hook_id)
        if removed:
            self._shelf.sweep()
        for hook_id in self._around.receivers:
            if hook_id not in self._tracks:
                self._track(hook_id, self._front)
        self._dirty()

    def _drop(self, hook_id: str) -> None:
        track = self._tracks.pop(hook_id, None)
        if track is None:
            return
        metrics.UNOWED.labels(hook_id).inc(len(track.open) + self._top - track.cursor)
        for seq in (*track.open, *track.done):
            self._ledger.forget(Key(seq, hook_id))
        for job in [job for job in self._shelf.taken.values() if job.hook_id == hook_id]:
            self.finish(job)
        self._ledger.changes.settled.pop(hook_id, None)
        self._ledger.changes.gone.add(hook_id)

    # -- reading --------------------------------------------------------------------------------

    def wake(self) -> None:
        """Look whether something is new."""
        self._has_news = True
        if self._is_opened and not (self._is_reading or self.is_closing):
            self._is_reading = True
            self._tasks.spawn(self._read())

    async def _read(self) -> None:
        try:
            with self.or_given_up():
                while self._has_news and not self.is_closing and self._is_anyone_here():
                    self._has_news = False
                    await self._read_page()
        except Unavailable:
            self._has_news = True  # the next renewal of the lease looks again
        finally:
            self._is_reading = False

    async def _read_page(self) -> None:
        page = await self._outbox.read(self.lease, self._front, PAGE)
        if not page:
            return
        await self._around.know(page[-1].version)
        self._take(page)
        self._has_news |= _is_full(page, PAGE)

    def _is_anyone_here(self) -> bool:
        """Tell whether a hook is where new entries are read; without hooks they are passed over."""
        return not self._tracks or not all(track.lags for track in self._tracks.values())

    def _take(self, page: Sequence[Owed]) -> None:
        if self.is_closing:
            return
        receivers = self._around.receivers
        for entry in page:
            for hook_id, track in self._tracks.items():
                if entry.seq > track.cursor and not track.lags:
                    receiver = receivers[hook_id]
                    if not self._offer(receiver, track, entry):
                        track.lags = True
                        receiver.stays_behind(self)
            self._front = entry.seq
        self._dirty()

    def _offer(self, receiver: Receiver, track: Track, entry: Owed) -> bool:
        """Give an entry to a hook, unless it is not owed or done; False when there is no room."""
        key = Key(entry.seq, receiver.hook.id)
        self._tracks.moved.add(receiver.hook.id)
        if key in self._progress.done:
            self._progress.done.discard(key)
            track.done.add(entry.seq)
        elif self._around.hooks.owed(receiver.hook, entry):
            if not receiver.room():
                return False
            tried = self._progress.tried.pop(key, Tried())
            job = track.open[entry.seq] = Job(self, receiver.hook.id, entry, tried)
            track.cursor = entry.seq
            receiver.take(job)
        track.cursor = entry.seq
        return True

    async def catch_up(self, receiver: Receiver) -> None:
        """Read on for a hook that stayed behind, as far as it has room."""
        track = self._tracks.get(receiver.hook.id)
        if track is None or self.is_closing:
            receiver.catches_up(self)
            return
        count = max(1, min(PAGE, receiver.room()))
        with self.or_given_up():
            page = await self._outbox.read(self.lease, track.cursor, count)
            if not self.is_closing and self._tracks.get(receiver.hook.id) is track:
                self._take_left(receiver, track, page)

    def _take_left(self, receiver: Receiver, track: Track, page: Sequence[Owed]) -> None:
        for entry in page:
            if entry.seq > self._front:
                break
            # The oldest may have been shed while the page was read.
            if entry.seq > track.cursor and not self._offer(receiver, track, entry):
                self._dirty()
                return
        self._is_level(receiver, track, page)

    async def shed(self, receiver: Receiver, count: int) -> None:
        """Give up the oldest entries of a hook that stayed behind; raises ``LeaseLost``."""
        track = self._tracks.get(receiver.hook.id)
        if track is None or not track.lags or self.is_closing:
            receiver.catches_up(self)
            return
        with self.or_given_up():
            page = await self._outbox.read(self.lease, track.cursor, min(PAGE, count))
            if not self.is_closing and self._tracks.get(receiver.hook.id) is track:
                self._shed(receiver, track, page)
                await asyncio.shield(self._ledger.commit())

    def _shed(self, receiver: Receiver, track: Track, page: Sequence[Owed]) -> None:
        for entry in page:
            if entry.seq > self._front:
                break
            if entry.seq > track.cursor and self._around.hooks.owed(receiver.hook, entry):
                job = Job(self, receiver.hook.id, entry, Tried())
                self._bury(job, Reason.HOOK_BOUND)
            track.cursor = max(track.cursor, entry.seq)
        self._is_level(receiver, track, page)

    def _is_level(self, receiver: Receiver, track: Track, page: Sequence[Owed]) -> None:
        """Let a hook read with the others again when it has come as far as they have."""
        self._tracks.moved.add(receiver.hook.id)
        if not page or page[-1].seq >= self._front:
            track.cursor = max(track.cursor, self._front)
            track.lags = False
            receiver.catches_up(self)
            self.wake()
        self._dirty()

    # -- what lanes tell ------------------------------------------------------------------------

    async def begin(self, job: Job) -> None:
        """Record that an attempt begins; raises ``LeaseLost``."""
        if self.is_closing:
            raise LeaseLost
        job.begin(self._around.timers.now_ms())
        self._note(job)
        self._attempts += 1
        try:
            await asyncio.shield(self._ledger.commit())
        except BaseException:
            self.ended()
            raise

    def ended(self) -> None:
        """Note that an attempt that was begun has ended, after what it came to was noted."""
        self._attempts -= 1
        self._ended.set()

    def note(self, job: Job) -> None:
        """Record what was tried, soon."""
        self._note(job)
        self._dirty()

    def _note(self, job: Job) -> None:
        if job.waiting is not None:
            self._ledger.wait(job.as_waiting(job.waiting.due_ms))
        else:
            self._ledger.put(job.key, job.tried)

    def finish(self, job: Job) -> None:
        """Record that a delivery is over."""
        if job.waiting is not None:
            self._shelf.finish(job)
        elif (track := self._tracks.get(job.hook_id)) and track.open.pop(job.seq, None):
            self._tracks.moved.add(job.hook_id)
            if job.seq > track.settled:
                track.done.add(job.seq)
                self._ledger.put(job.key, None)
            else:
                self._ledger.forget(job.key)
        self._dirty()

    def postpone(self, job: Job, waiting: Waiting) -> bool:
        """Record that a delivery waits for a later attempt; False when there is no room for it.

        One that has waited before goes back to its place.
        """
        if job.waiting is None and not self._shelf.admits(waiting):
            return False
        self.finish(job)
        self._shelf.add(waiting)
        return True

    def bury(self, job: Job, reason: Reason) -> None:
        """Record that a delivery is given up."""
        self._bury(job, reason)
        self.finish(job)

    def _bury(self, job: Job, reason: Reason) -> None:
        self._ledger.bury(job.as_dead(reason, self._around.timers.now_ms()))
        metrics.DEAD_LETTERS.labels(job.hook_id, reason.value).inc()

    # -- recording ------------------------------------------------------------------------------

    def _settle_up(self, changes: Changes) -> None:
        """Add to the changes how far the hooks have come."""
        self._tracks.settle_up(changes, self._front)

    def _dirty(self) -> None:
        """Have recorded, soon, what has changed."""
        if self._is_opened and not self.is_closed:
            self._ledger.commit()

    def _lost(self) -> None:
        self._around.lost(self)


def _is_full(page: Sequence[Owed], count: int) -> bool:
    """Tell whether a page ended at a bound, so that there may be more."""
    return len(page) >= count or sum(len(entry.body) for entry in page) >= PAGE_BYTES
