"""A dispatcher at work in memory: a clock moved by hand, a sink that answers as it is told."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import Any

import msgspec

from relay.broker import (
    Changes,
    DeadLetter,
    Due,
    HookList,
    Lease,
    Limits,
    Owed,
    Progress,
    Span,
    Unavailable,
    Waiting,
)
from relay.broker.memory import MemoryBroker, MemoryOutbox, MemoryStore
from relay.egress.dispatcher import Dispatcher
from relay.egress.lane import Bounds
from relay.egress.sinks import Delivery, Result
from relay.hooks import Hook, Hooks, HookType
from relay.retry import Outcome
from tests.contract.harness import CID, Recorder, content, event

DEFAULTS = Bounds()
START_MS = 1_900_000_000_000


class Call:
    """A call to come."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timers:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.ms = float(START_MS)
        self._calls: list[tuple[float, int, Call]] = []
        self._numbers = count()

    def now_ms(self) -> int:
        return int(self.ms)

    def now_ns(self) -> int:
        return int(self.ms) * 1_000_000

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Call:
        call = Call(callback)
        heapq.heappush(self._calls, (self.ms + delay_s * 1000, next(self._numbers), call))
        return call

    async def advance(self, seconds: float) -> None:
        """Let time pass, with everything that happens meanwhile."""
        end = self.ms + seconds * 1000
        await settled()
        while self._calls and self._calls[0][0] <= end:
            self.ms, _, call = heapq.heappop(self._calls)
            if call.callback is not None:
                call.callback()
            await settled()
        self.ms = end
        await settled()


async def settled() -> None:
    """Let the event loop do all that can be done without time passing."""
    for _ in range(60):
        await asyncio.sleep(0)


def hook(name: str = "one", *types: str, **fields: Any) -> Hook:
    return Hook(
        id=name,
        hook_type=HookType.WEBHOOK,
        webhook_url=f"https://{name}.test/",
        event_types=types,
        **fields,
    )


def result(outcome: Outcome = Outcome.DELIVERED, latency_s: float = 0.0, **more: Any) -> Result:
    status = {Outcome.DELIVERED: 200, Outcome.RETRYABLE: 503, Outcome.REFUSED: 400}.get(outcome)
    return Result(outcome=outcome, latency_s=latency_s, status=status, **more)


OK = result()
BUSY = result(Outcome.RETRYABLE, answer=b"busy")
NO = result(Outcome.REFUSED)

Answer = Callable[[Hook, Delivery], "Result | asyncio.Future[Result]"]


class Sink:
    """Writes down what is sent; ``answer`` says how each attempt ends, at once or later."""

    def __init__(self, timers: Timers) -> None:
        self.answer: Answer = lambda _hook, _delivery: OK
        self.attempts: list[tuple[float, str, Delivery, float]] = []
        self.under_way = 0
        self.most = 0
        self.is_closed = False
        self._timers = timers

    async def send(self, hook: Hook, delivery: Delivery, limit_s: float) -> Result:
        at_s = (self._timers.ms - START_MS) / 1000
        self.attempts.append((at_s, hook.id, delivery, limit_s))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            answer = self.answer(hook, delivery)
            return answer if isinstance(answer, Result) else await answer
        finally:
            self.under_way -= 1

    async def aclose(self) -> None:
        self.is_closed = True

    def contents(self, hook_id: str = "") -> list[Any]:
        """Return what was in the events, one of each attempt."""
        return [content(d.body) for _, name, d, _ in self.attempts if hook_id in ("", name)]

    @property
    def times(self) -> list[float]:
        return [at_s for at_s, *_ in self.attempts]

    @property
    def numbers(self) -> list[int]:
        return [delivery.attempt for _, _, delivery, _ in self.attempts]


class Gate:
    """An answer that comes when it is opened, for some events."""

    def __init__(self, *contents: Any) -> None:
        self._contents = contents
        self.futures: list[asyncio.Future[Result]] = []

    def __call__(self, _: Hook, delivery: Delivery) -> Result | asyncio.Future[Result]:
        if self._contents and content(delivery.body) not in self._contents:
            return OK
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]

    def open(self, answer: Result = OK) -> None:
        futures, self.futures = self.futures, []
        for future in futures:
            if not future.done():
                future.set_result(answer)


class SharedOutbox(MemoryOutbox):
    """An outbox that others may deliver too, and that can be away or forget what it was told.

    ``faults`` has how often each of its methods has still to fail as a bug does; ``failed_at`` has
    when one did, in seconds. ``spoiled`` has events whose bodies are read as what is no text, and
    how often. ``before`` and ``after`` have what a method waits for before it does its work, and
    after. ``looked_at`` has when it was asked what is due, ``asked`` for how many bodies each time.
    ``partitions`` beyond the first are empty; of ``silent`` ones the lease cannot be asked for,
    ``taken`` ones another process has.
    """

    partitions: int = 1  # type: ignore[misc] # it has one for good

    def __init__(self, clock: Callable[[], int], limits: Limits) -> None:
        super().__init__(clock, limits)
        self.others: set[str] = set()
        self.is_away = False
        self.faults: dict[str, float] = {}
        self.failed_at: list[float] = []
        self.spoiled: dict[str, float] = {}
        self.before: dict[str, asyncio.Event] = {}
        self.after: dict[str, asyncio.Event] = {}
        self.asked: list[int] = []
        self.looked_at: list[float] = []
        self.silent: set[int] = set()
        self.taken: set[int] = set()
        self.forgets = False
        self.informed: list[int] = []

    async def join(self) -> frozenset[str]:
        if self.is_away:
            raise Unavailable("away")
        return await super().join() | self.others

    async def leave(self) -> None:
        if "leave" in self.before:
            await self.before["leave"].wait()

    async def lease(self, partition: int, token: str = "") -> Lease | None:
        if partition in self.silent:
            raise Unavailable("away")
        if partition in self.taken:
            return None
        if partition:
            return Lease(partition, str(partition), self.hooks.version, 0, 0, 0, 0)
        lease = await super().lease(partition, token)
        if lease is not None and self.forgets:
            return msgspec.structs.replace(lease, hooks_version=1)
        return lease

    async def inform(self, lease: Lease, hooks: HookList) -> None:
        self.informed.append(hooks.version)

    def _may_fail(self, method: str) -> None:
        if self.is_away:
            raise Unavailable("away")
        if self.faults.get(method, 0) > 0:
            self.faults[method] -= 1
            self.failed_at.append((self._now_ms() - START_MS) / 1000)
            raise OverflowError("a bug")

    async def progress(self, lease: Lease) -> Progress:
        self._may_fail("progress")
        if "progress" in self.before:
            await self.before["progress"].wait()
        if lease.partition:
            return Progress({}, set(), {})
        return await super().progress(lease)

    async def read(self, lease: Lease, after: int, count: int) -> list[Owed]:
        self._may_fail("read")
        if lease.partition:
            return []
        page = [self._spoil(entry) for entry in await super().read(lease, after, count)]
        if "read" in self.after:
            await self.after["read"].wait()
        return page

    def _spoil(self, entry: Owed) -> Owed:
        if self.spoiled.get(entry.event_id, 0) <= 0:
            return entry
        self.spoiled[entry.event_id] -= 1
        return msgspec.structs.replace(entry, body=b"\xff")

    async def due(self, lease: Lease, now_ms: int, count: int, skip: int = 0) -> Due:
        self._may_fail("due")
        if lease.partition:
            return Due([], None)
        self.looked_at.append((self._now_ms() - START_MS) / 1000)
        due = await super().due(lease, now_ms, count, skip)
        if "due" in self.after:
            await self.after["due"].wait()
        return due

    async def waiting(self, lease: Lease, ids: Sequence[str]) -> list[Waiting]:
        self._may_fail("waiting")
        self.asked.append(len(ids))
        if "waiting" in self.before:
            await self.before["waiting"].wait()
        return await super().waiting(lease, ids)

    async def give_back(self, lease: Lease) -> None:
        self._may_fail("give_back")
        await super().give_back(lease)

    async def record(self, lease: Lease, changes: Changes) -> None:
        self._may_fail("record")
        if lease.partition:
            return
        if "record" in self.before:
            await self.before["record"].wait()
        await super().record(lease, changes)


class Works:
    """Everything that is needed to deliver, in one process."""

    def __init__(self, limits: Limits) -> None:
        self.timers = Timers()
        self.outbox = SharedOutbox(self.timers.now_ns, limits)
        self.broker = MemoryBroker(limits, self.timers.now_ns, "here", outbox=self.outbox)
        self.store = MemoryStore(self.outbox)
        self.sink = Sink(self.timers)
        self.file: list[Hook] = []
        self.dispatcher = self._dispatcher()

    def _dispatcher(self, bounds: Bounds = DEFAULTS) -> Dispatcher:
        return Dispatcher(
            outbox=self.outbox,
            store=self.store,
            sink=self.sink,
            rng=Random(1),
            timers=self.timers,
            bounds=bounds,
            restore=self._restore,
        )

    async def _restore(self) -> None:
        if self.file:
            await self.set_hooks(*self.file)

    async def set_hooks(self, *hooks: Hook) -> HookList:
        saved = await self.store.save_hooks(
            Hooks(hooks), await self.store.hooks(), self.timers.now_ms()
        )
        assert saved is not None
        return saved

    async def start(self, *hooks: Hook, bounds: Bounds = DEFAULTS) -> Works:
        """Start a dispatcher with these hooks."""
        if hooks:
            await self.set_hooks(*hooks)
        self.dispatcher = self._dispatcher(bounds)
        await self.dispatcher.start()
        await settled()
        return self

    async def publish(self, *contents: Any, cid: str = CID) -> None:
        for each in contents:
            await self.broker.publish(event(each, cid=cid))
        await self.quiet()

    async def quiet(self) -> None:
        """Return when nothing more is sent without time passing."""
        before = -1
        while before < len(self.sink.attempts):
            before = len(self.sink.attempts)
            await settled()

    async def dead(self, **span: Any) -> list[DeadLetter]:
        return await self.outbox.dead_letters(Span(**span), 10_000)

    async def left(self) -> int:
        """Return how many entries the outbox has."""
        lease = await self.outbox.lease(0, self.outbox._token)
        assert lease is not None
        return lease.length

    async def crash(self) -> None:
        """Let the dispatcher vanish as a killed process does: it records nothing any more."""
        self.outbox._token = ""
        await self.dispatcher.aclose()
        await settled()


@asynccontextmanager
async def works(limits: Limits | None = None) -> AsyncIterator[Works]:
    made = Works(limits or Limits())
    recorder = Recorder()
    await made.broker.start(recorder, recorder.on_live)
    try:
        yield made
    finally:
        await made.dispatcher.aclose()
        await made.broker.aclose()
