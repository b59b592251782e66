"""What the tests of the brokers share: events, a listener that writes down, rigs of both kinds."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from relay.broker import Broker, Limits, Outbox, Store
from relay.broker.memory import MemoryBroker, MemoryOutbox, MemoryStore
from relay.broker.memory_sessions import MemorySessions
from relay.broker.memory_tickets import MemoryTickets
from relay.broker.redis import (
    RedisBroker,
    RedisOutbox,
    RedisSessions,
    RedisStore,
    RedisTickets,
)
from relay.broker.seats import Sessions
from relay.broker.tickets import LIFE_S, Tickets
from relay.events import Event, Position, fingerprint

CID = "default:demo"
OTHER = "default:other"
FENCE = "default:fence"
PATIENCE_S = 10.0
DEFAULTS = Limits()

_numbers = itertools.count(1)


def event(
    content: object = None,
    *,
    cid: str = CID,
    sender: str = "api:ann",
    identity: str | None = "",
    alias: str | None = None,
    volatile: bool = False,
    minted: bool = False,
) -> Event:
    """Build an event; without ``identity`` one that no other event has."""
    if identity == "":
        identity = f"e{next(_numbers)}"
    custom = msgspec.json.encode(content)
    return Event(
        cid=cid,
        type="custom",
        event_id=identity or "none",
        body=b'{"type":"custom","call_cid":"%b","custom":%b}' % (cid.encode(), custom),
        sender=sender,
        identity=identity,
        fingerprint=fingerprint(custom),
        alias=alias,
        volatile=volatile,
        minted=minted,
    )


def content(body: bytes) -> Any:
    """Return what ``event`` was given."""
    return msgspec.json.decode(body)["custom"]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true; fail naming ``what`` when it does not become so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.002)


class Recorder:
    """A listener and receiver that writes down what it is told.

    It answers when ``answering`` is set, where there is one, and refuses with ``refusal``.
    """

    def __init__(self) -> None:
        self.publications: list[tuple[str, Position | None, bytes]] = []
        self.rosters: list[str] = []
        self.interruptions: list[set[str]] = []
        self.live: list[bytes] = []
        self.told: list[tuple[list[str], str | None, bytes]] = []
        self.notices: list[bytes] = []
        self.questions: list[bytes] = []
        self.answering: asyncio.Event | None = None
        self.refusal: Exception | None = None
        self.inside_a_task = False

    def on_publication(self, cid: str, position: Position | None, body: bytes) -> None:
        self.inside_a_task |= asyncio.current_task() is not None
        self.publications.append((cid, position, body))

    def on_roster(self, cid: str) -> None:
        self.rosters.append(cid)

    def on_interrupted(self, cids: Collection[str]) -> None:
        self.interruptions.append(set(cids))

    def on_live(self, text: bytes) -> None:
        self.live.append(text)

    def on_told(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        self.inside_a_task |= asyncio.current_task() is not None
        self.told.append((list(user_ids), cid, body))

    def on_notice(self, notice: bytes) -> None:
        self.inside_a_task |= asyncio.current_task() is not None
        self.notices.append(notice)

    async def on_question(self, question: bytes) -> bytes:
        self.questions.append(question)
        if self.answering is not None:
            await self.answering.wait()
        if self.refusal is not None:
            raise self.refusal
        return b"you said " + question

    def contents(self, cid: str = CID) -> list[Any]:
        """Return what was published in a call, as far as it arrived."""
        return [content(body) for of, _, body in self.publications if of == cid]

    def offsets(self, cid: str = CID) -> list[int]:
        """Return the offsets that arrived, volatile publications left out."""
        return [position.offset for of, position, _ in self.publications if of == cid and position]


class Rig(Protocol):
    """One kind of broker, to be tried out."""

    async def broker(self, limits: Limits = ..., recorder: Recorder | None = ...) -> Broker:
        """Start a broker that knows nothing yet; it is closed with the rig."""
        ...

    def store(self, broker: Broker) -> Store:
        """Return the store that goes with a broker."""
        ...

    def sessions(self, broker: Broker) -> Sessions:
        """Return the keeper of sessions that goes with a broker."""
        ...

    def tickets(self, broker: Broker, life_s: float = ...) -> Tickets:
        """Return the keeper of tickets that goes with a broker."""
        ...

    async def outbox(self, broker: Broker, woken: Callable[[int], None]) -> Outbox:
        """Start the outbox that goes with a broker; it is closed with the rig."""
        ...

    async def pass_time(self, seconds: float) -> None:
        """Return when the broker's clock shows ``seconds`` more."""
        ...


class MemoryRig:
    """Brokers in this process, with a clock that is moved by hand."""

    def __init__(self) -> None:
        self._now_ns = 1_800_000_000_000_000_000
        self.started: list[MemoryBroker] = []
        self._outboxes: dict[str, MemoryOutbox] = {}

    async def broker(
        self, limits: Limits = DEFAULTS, recorder: Recorder | None = None
    ) -> MemoryBroker:
        outbox = MemoryOutbox(lambda: self._now_ns, limits)
        broker = MemoryBroker(limits, lambda: self._now_ns, uuid4().hex, outbox=outbox)
        self._outboxes[broker.node] = outbox
        recorder = recorder or Recorder()
        broker.receive(recorder)
        await broker.start(recorder, recorder.on_live)
        self.started.append(broker)
        return broker

    def store(self, broker: Broker) -> Store:
        return MemoryStore(self._outboxes[broker.node])

    async def outbox(self, broker: Broker, woken: Callable[[int], None]) -> MemoryOutbox:
        outbox = self._outboxes[broker.node]
        await outbox.start(woken)
        return outbox

    def sessions(self, broker: Broker) -> Sessions:
        return MemorySessions(lambda: self._now_ns)

    def tickets(self, broker: Broker, life_s: float = LIFE_S) -> Tickets:
        return MemoryTickets(lambda: self._now_ns, life_s=life_s)

    async def pass_time(self, seconds: float) -> None:
        self._now_ns += int(seconds * 1e9)


class Redis(Protocol):
    """A Redis in any shape: ``tests.redis_server`` and ``tests.redis_shapes`` have them."""

    url: str

    def client(self) -> Any:
        """Return a blocking client of one server."""
        ...


class RedisRig:
    """Brokers on one Redis, under a prefix of their own."""

    def __init__(self, server: Redis) -> None:
        self.server = server
        self.prefix = f"test-{uuid4().hex}:"
        self.started: list[RedisBroker] = []
        self.outboxes: list[RedisOutbox] = []

    async def broker(
        self,
        limits: Limits = DEFAULTS,
        recorder: Recorder | None = None,
        *,
        url: str | None = None,
        **options: Any,
    ) -> RedisBroker:
        broker = RedisBroker(url or self.server.url, self.prefix, limits, uuid4().hex, **options)
        recorder = recorder or Recorder()
        broker.receive(recorder)
        await broker.start(recorder, recorder.on_live)
        self.started.append(broker)
        return broker

    def store(self, broker: Broker) -> Store:
        assert isinstance(broker, RedisBroker)
        return RedisStore(broker)

    def sessions(self, broker: Broker) -> RedisSessions:
        assert isinstance(broker, RedisBroker)
        return RedisSessions(broker)

    def tickets(self, broker: Broker, life_s: float = LIFE_S) -> RedisTickets:
        assert isinstance(broker, RedisBroker)
        return RedisTickets(broker, life_s=life_s, beat_s=0)

    async def outbox(
        self, broker: Broker, woken: Callable[[int], None], **options: Any
    ) -> RedisOutbox:
        assert isinstance(broker, RedisBroker)
        outbox = RedisOutbox(broker, **options)
        await outbox.start(woken)
        self.outboxes.append(outbox)
        return outbox

    async def pass_time(self, seconds: float) -> None:
        with self.server.client() as client:
            end = _seconds(client.time()) + seconds
            await until(lambda: _seconds(client.time()) >= end, "time passes")


def _seconds(time_reply: Any) -> float:
    return float(time_reply[0]) + float(time_reply[1]) / 1e6


@asynccontextmanager
async def closing(rig: MemoryRig | RedisRig) -> AsyncIterator[Any]:
    """Close what a rig has started."""
    try:
        yield rig
    finally:
        for outbox in getattr(rig, "outboxes", ()):
            await outbox.aclose()
        for broker in rig.started:
            await broker.aclose()


async def caught_up(broker: Broker, recorder: Recorder) -> None:
    """Return when everything published so far has arrived, as far as it was subscribed to."""
    token = uuid4().hex
    for fence in _fences(broker):
        await broker.subscribe(fence)
        await broker.publish(event(token, cid=fence, volatile=True, identity=None))
        await until(lambda fence=fence: token in recorder.contents(fence), "the fence arrives")


def on_several_servers(broker: Broker) -> bool:
    """Tell whether what is published in two calls may be said by two servers."""
    return len(_fences(broker)) > 1


def _fences(broker: Broker) -> list[str]:
    """Return a call on each server: what one server says comes in order, what two say need not."""
    if not isinstance(broker, RedisBroker):
        return [FENCE]
    partitions = broker._deployment.partitions()
    cids = [f"{FENCE}-{number}" for number in range(20 * broker.keyspace.partitions)]
    return [next(c for c in cids if broker.keyspace.partition(c) == p) for p in partitions]
