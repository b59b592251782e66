"""The outbox of the embedded broker: deliveries owed for as long as the process lives.

It also keeps the hooks, since the publish step looks at what they want. One partition is enough:
there is nobody to share the work with.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from itertools import count, islice
from operator import itemgetter
from typing import Final

import msgspec

from relay import metrics
from relay.broker import (
    Changes,
    DeadLetter,
    Due,
    HookList,
    Key,
    Lease,
    LeaseLost,
    Limits,
    Owed,
    Progress,
    Reason,
    Replayed,
    Span,
    Tried,
    Waiting,
)
from relay.broker.outbox import ALL_TYPES
from relay.broker.rules import ENTRY_BYTES, replayed, waiting_size
from relay.events import Event, Position
from relay.hooks import Hooks

__all__ = ["MemoryOutbox"]

_DEFAULTS: Final = Limits()


class MemoryOutbox:
    """Deliveries owed in this process. ``clock`` returns nanoseconds since 1970."""

    partitions: Final = 1
    lease_s: Final = 10.0

    def __init__(self, clock: Callable[[], int], limits: Limits = _DEFAULTS) -> None:
        self._clock = clock
        self._bound = limits.outbox_bytes
        self._dead_bound = limits.dead_letter_bytes
        self._hooks = HookList()
        self._wanted = ""
        self._woken: Callable[[int], None] = _nobody
        self._numbers = count(1)
        self._top = 0
        self._entries: deque[Owed] = deque()
        self._bytes = 0
        self._shed_count = 0
        self._leases = count(1)
        self._token = ""
        self._settled: dict[str, int] = {}
        self._tried: dict[Key, Tried | None] = {}
        self._waiting: dict[str, Waiting] = {}
        self._waiting_bytes = 0
        self._due: list[tuple[int, str]] = []  # when each of them is due, and its id; in order
        self._dead: OrderedDict[str, DeadLetter] = OrderedDict()
        self._dead_bytes = 0

    async def start(self, woken: Callable[[int], None]) -> None:
        """Begin to wake whoever delivers."""
        self._woken = woken

    async def aclose(self) -> None:
        """Wake nobody any more."""
        self._woken = _nobody

    # -- hooks ----------------------------------------------------------------------------------

    @property
    def hooks(self) -> HookList:
        """The hooks as they are now."""
        return self._hooks

    def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        """Replace the hooks that were read as ``based_on``; None when others came in between."""
        if self._hooks.version != based_on.version:
            return None
        self._hooks = based_on.changed(hooks, now_ms)
        self._wanted = self._hooks.wanted()
        self._wake()
        return self._hooks

    # -- the publish step's part ----------------------------------------------------------------

    def append(self, event: Event, position: Position, body: bytes) -> None:
        """Owe a publication to whoever wants it."""
        if self._wanted != ALL_TYPES and f",{event.type}," not in self._wanted:
            return
        self._top = next(self._numbers)
        self._entries.append(
            Owed(
                self._top, self._hooks.version, event.cid, event.type, event.event_id, position,
                body,
            )
        )  # fmt: skip
        self._bytes += _size(self._entries[-1])
        while self._bytes > self._bound and len(self._entries) > 1:
            self._shed(self._entries.popleft())
        self._wake()

    def _shed(self, entry: Owed) -> None:
        """Make an entry a dead letter without body, for every hook that had not got it."""
        self._bytes -= _size(entry)
        self._shed_count += 1
        self._bury(
            DeadLetter(
                id=f"{entry.cid}/{entry.position.epoch}/{entry.position.offset}",
                at_ms=self._now_ms(),
                reason=Reason.OUTBOX_BOUND,
                hook_id="",
                cid=entry.cid,
                type=entry.type,
                event_id=entry.event_id,
                epoch=entry.position.epoch,
                offset=entry.position.offset,
            )
        )

    def _wake(self) -> None:
        if self._token:
            asyncio.get_running_loop().call_soon(self._woken, 0)

    def _now_ms(self) -> int:
        return self._clock() // 1_000_000

    # -- leases ---------------------------------------------------------------------------------

    node: Final = "here"

    async def join(self) -> frozenset[str]:
        """Return the processes that deliver: this one."""
        return frozenset((self.node,))

    async def leave(self) -> None:
        """Tell nobody: there is nobody else."""

    async def lease(self, partition: int, token: str = "") -> Lease | None:
        """Take the partition, or renew its lease. There is nobody else to have it."""
        if not token or token != self._token:
            self._token = str(next(self._leases))
        return Lease(
            partition, self._token, self._hooks.version, self._top, len(self._entries),
            len(self._waiting), self._shed_count, self._dead_bound - self._waiting_bytes,
        )  # fmt: skip

    async def inform(self, lease: Lease, hooks: HookList) -> None:
        """Do nothing: the publish step looks at the hooks themselves."""

    async def give_back(self, lease: Lease) -> None:
        """Let it be taken anew."""
        if lease.token == self._token:
            self._token = ""

    # -- what the leaseholder does --------------------------------------------------------------

    async def progress(self, lease: Lease) -> Progress:
        """Return what has been recorded."""
        done = {key for key, tried in self._tried.items() if tried is None}
        tried = {key: tried for key, tried in self._tried.items() if tried is not None}
        return Progress(dict(self._settled), done, tried)

    async def read(self, lease: Lease, after: int, count: int) -> list[Owed]:
        """Return the next entries after a number."""
        if not self._entries:
            return []
        # Some in the middle may have been shed or trimmed, never any but the oldest.
        skip = max(0, after + 1 - self._entries[0].seq)
        return list(islice(self._entries, skip, skip + count))

    async def due(self, lease: Lease, now_ms: int, count: int, skip: int = 0) -> Due:
        """Return which waiting deliveries are due, the most overdue first, without some of them."""
        edge = bisect_right(self._due, now_ms, key=itemgetter(0))
        page = self._due[skip : min(edge, skip + count)]
        following = self._due[edge][0] if edge < len(self._due) else None
        return Due([self._waiting[waiting_id].mark for _, waiting_id in page], following)

    async def waiting(self, lease: Lease, ids: Sequence[str]) -> list[Waiting]:
        """Return some waiting deliveries; what waits no longer is left out."""
        return [self._waiting[waiting_id] for waiting_id in ids if waiting_id in self._waiting]

    def _let_wait(self, waiting: Waiting) -> None:
        self._wait_no_more(waiting.id)
        self._waiting[waiting.id] = waiting
        self._waiting_bytes += waiting_size(waiting)
        insort(self._due, (waiting.due_ms, waiting.id))

    def _wait_no_more(self, waiting_id: str) -> None:
        if (waiting := self._waiting.pop(waiting_id, None)) is not None:
            self._waiting_bytes -= waiting_size(waiting)
            del self._due[bisect_left(self._due, (waiting.due_ms, waiting_id))]

    async def record(self, lease: Lease, changes: Changes) -> None:
        """Record changes; raises ``LeaseLost``."""
        if lease.token != self._token:
            raise LeaseLost
        while self._entries and self._entries[0].seq <= changes.trim:
            self._bytes -= _size(self._entries.popleft())
        self._tried.update(changes.tried)
        self._settled.update(changes.settled)
        for key in changes.forget:
            self._tried.pop(key, None)
        for hook_id in changes.gone:
            self._settled.pop(hook_id, None)
        for letter in changes.dead.values():
            self._bury(letter)
        for waiting in changes.waiting.values():
            self._let_wait(waiting)
        for mark in changes.ended:
            self._wait_no_more(mark.id)

    # -- dead letters ---------------------------------------------------------------------------

    def _bury(self, letter: DeadLetter) -> None:
        self._unbury(letter.id)
        self._dead[letter.id] = letter
        self._dead_bytes += _letter_size(letter)
        while self._dead_bytes > self._dead_bound and len(self._dead) > 1:
            self._unbury(next(iter(self._dead)))
            metrics.DEAD_LETTERS_DROPPED.inc()

    def _unbury(self, letter_id: str) -> None:
        if (letter := self._dead.pop(letter_id, None)) is not None:
            self._dead_bytes -= _letter_size(letter)

    async def dead_letters(self, span: Span, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters without their bodies, the oldest first."""
        found = (
            letter
            for letter in self._dead.values()
            if span.since_ms <= letter.at_ms
            and (span.until_ms is None or letter.at_ms < span.until_ms)
            and span.hook_id in ("", letter.hook_id)
        )
        letters = sorted(found, key=lambda letter: (letter.at_ms, letter.id))
        return [_without_body(letter) for letter in letters[:limit]]

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """Return one with its body."""
        return self._dead.get(letter_id)

    async def replay(self, ids: Sequence[str], hook_ids: Collection[str]) -> Replayed:
        """Put dead letters back."""
        put_back = bodiless = hookless = 0
        for letter_id in ids:
            letter = self._dead.get(letter_id)
            if letter is None:
                continue
            waiting = replayed(letter)
            if waiting is None:
                bodiless += 1
                continue
            if letter.hook_id not in hook_ids:
                hookless += 1
                continue
            self._unbury(letter_id)
            self._let_wait(waiting)
            put_back += 1
        if put_back:
            self._wake()
        return Replayed(put_back, bodiless, hookless)


def _nobody(_: int) -> None:
    """Wake nobody: the outbox has not been started."""


def _size(entry: Owed) -> int:
    return len(entry.body) + ENTRY_BYTES


def _letter_size(letter: DeadLetter) -> int:
    return len(letter.body or "") + ENTRY_BYTES


def _without_body(letter: DeadLetter) -> DeadLetter:
    return msgspec.structs.replace(letter, body=None)
