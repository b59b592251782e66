"""What the gateway talks to, as the tests need it: a broker that fails on demand, watchers that
write down what they get, a transport with a buffer, and a loop on which an hour takes no time.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

from relay import wire
from relay.broker import Entry, Epoch, History, Listener, Receiver, Roster, Unavailable
from relay.events import Event, Position, Publication
from relay.gateway.call import Batch
from relay.users import User

CID = "default:standup"


# -- time ---------------------------------------------------------------------------------------


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Where nothing is ready, the clock moves on to the next timer at once."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        self._now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: FakeTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the test waits for something that nothing will bring about")
        self._loop.jump(max(0.0, timeout))
        return super().select(0)


FAKE_TIME = ("asyncio", {"loop_factory": FakeTimeLoop})
BOTH_LOOPS = [("asyncio", {}), ("asyncio", {"use_uvloop": True})]
"""The loop that everybody has, and the one that the relay runs on."""


async def turns(count: int = 10) -> None:
    """Let everything run that can, without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- frames -------------------------------------------------------------------------------------


def texts_in(data: bytes) -> Iterator[bytes]:
    """Take the relay's own frames apart again."""
    while data:
        assert data[0] == 0x81, data[:20]
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        assert len(data) >= start + length, "a frame was cut"
        yield data[start : start + length]
        data = data[start + length :]


def at(offset: int, epoch: str = "e1") -> Position:
    return Position(epoch, offset)


def body(offset: int, epoch: str = "e1") -> bytes:
    """What watchers get of the publication at an offset."""
    return wire.encode({"type": "custom", "epoch": epoch, "offset": offset})


def user(user_id: str = "john") -> User:
    return User(id=user_id, created_at=0, updated_at=0)


# -- the broker ---------------------------------------------------------------------------------


class FakeCall:
    def __init__(self) -> None:
        self.epochs = [Epoch("e1", 1)]
        self.taken_over = 0
        self.offset = 0
        self.entries: list[Entry] = []

    @property
    def top(self) -> Position:
        return Position(self.epochs[-1].name, self.offset)


class FakeBroker:
    """Keeps what was published, hands over what the test wants, and is away when told so.

    ``log`` has every request; ``away`` counts, by method, how often it raises ``Unavailable`` (-1:
    for ever), ``bugs`` how often something that nobody foresaw; ``gates`` hold requests of a
    method, before they look, until the event is set; ``at_once`` says whether it publishes without
    being waited for. ``partitions`` has those of calls; of ``lost_partitions`` neither positions
    nor watchers are told, which is known after ``silence_s``.
    """

    def __init__(self, page_count: int = 1000, node: str = "here") -> None:
        self.calls: dict[str, FakeCall] = {}
        self.log: list[tuple[str, Any]] = []
        self.away: Counter[str] = Counter()
        self.bugs: Counter[str] = Counter()
        self.gates: dict[str, asyncio.Event] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self.page_count = page_count
        self.partitions: dict[str, int] = {}
        self.lost_partitions: set[int] = set()
        self.silence_s = 3.0
        self.at_once = False
        self.listener: Listener | None = None
        self.subscribed: set[str] = set()
        self.all_rosters: dict[str, dict[str, Roster]] = {}
        self.node = node
        self.alive = frozenset({node})
        self.receiver: Receiver | None = None
        self.counts: dict[str, int] = {}
        self.others: dict[str, FakeBroker] = {node: self}

    def joins(self, other: FakeBroker) -> None:
        """Make the two brokers of one relay."""
        self.others = other.others = {**self.others, **other.others}
        self.alive = other.alive = frozenset(self.others)

    async def start(self, listener: Listener, live: Callable[[bytes], None]) -> None:
        self.listener = listener

    async def aclose(self) -> None:
        pass

    async def publish(self, event: Event) -> Publication:
        await self._asked("publish", event.cid)
        return self._published(event)

    def publish_now(self, event: Event) -> Publication | None:
        if not self.at_once:
            return None
        self.log.append(("publish_now", event.cid))
        if self.away["publish"]:
            raise Unavailable("away")
        return self._published(event)

    def _published(self, event: Event) -> Publication:
        if event.volatile:
            self.volatile(event.cid, event.body)
            return Publication(cid=event.cid, event_id=event.event_id, position=None)
        position = self.append(event.cid)
        self.hand_over(event.cid, position)
        return Publication(cid=event.cid, event_id=event.event_id, position=position)

    async def subscribe(self, cid: str) -> None:
        await self._asked("subscribe", cid)
        self.subscribed.add(cid)

    async def unsubscribe(self, cid: str) -> None:
        self.subscribed.discard(cid)
        await self._asked("unsubscribe", cid)

    def partition(self, cid: str) -> int:
        return self.partitions.get(cid, 0)

    async def positions(self, cids: Sequence[str]) -> list[Position]:
        await self._asked("positions", list(cids))
        await self._served(cids)
        found = [self.call(cid).top for cid in cids]
        await self._answers("positions")
        return found

    async def history(self, cid: str, after: int) -> History:
        await self._asked("history", after)
        call = self.call(cid)
        entries = [entry for entry in call.entries if entry.offset > after]
        found = History(call.top, tuple(call.epochs), tuple(entries[: self.page_count]))
        await self._answers("history")
        return found

    async def set_roster(self, cid: str, roster: Roster) -> None:
        await self._asked("set_roster", (cid, roster.count))
        await self._served([cid])
        rosters = self.all_rosters.setdefault(cid, {})
        rosters.pop(self.node, None)
        if roster.count:
            rosters[self.node] = roster

    async def rosters(self, cid: str) -> dict[str, Roster]:
        await self._asked("rosters", cid)
        await self._served([cid])
        rosters = self.all_rosters.get(cid, {})
        return {node: roster for node, roster in rosters.items() if node in self.alive}

    async def nodes(self) -> frozenset[str]:
        await self._asked("nodes", None)
        return self.alive

    async def set_connections(self, user_id: str, count: int) -> dict[str, int]:
        await self._asked("set_connections", (user_id, count))
        self.counts[user_id] = count
        counts = {node: self.others[node].counts.get(user_id, 0) for node in self.alive}
        return {node: count for node, count in counts.items() if count}

    def receive(self, receiver: Receiver) -> None:
        self.receiver = receiver

    async def tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        await self._asked("tell", (list(user_ids), cid, body))
        for other in self.others.values():
            if other.receiver is not None:
                other.receiver.on_told(user_ids, cid, body)

    async def broadcast(self, notice: bytes) -> None:
        await self._asked("broadcast", notice)
        for other in self.others.values():
            if other.receiver is not None:
                other.receiver.on_notice(notice)

    async def ask(self, node: str, question: bytes) -> bytes:
        await self._asked("ask", (node, question))
        other = self.others.get(node)
        if other is None or other.receiver is None:
            raise Unavailable(f"{node} does not answer")
        return await other.receiver.on_question(question)

    async def _asked(self, method: str, argument: Any) -> None:
        self.log.append((method, argument))
        await asyncio.sleep(0)
        if (gate := self.gates.get(method)) is not None:
            await gate.wait()
        if self.bugs[method]:
            self.bugs[method] -= 1
            raise ValueError("a bug")
        if self.away[method] > 0:
            self.away[method] -= 1
            raise Unavailable("away")
        if self.away[method] < 0:
            raise Unavailable("away")

    async def _served(self, cids: Iterable[str]) -> None:
        """Say nothing about calls whose server is away."""
        if not self.lost_partitions.isdisjoint(map(self.partition, cids)):
            await asyncio.sleep(self.silence_s)
            raise Unavailable("a server is away")

    async def _answers(self, method: str) -> None:
        """Hold an answer that has been found: it is old when it arrives."""
        if (slow := self.slow.get(method)) is not None:
            await slow.wait()

    # -- what the test does ---------------------------------------------------------------------

    def call(self, cid: str = CID) -> FakeCall:
        return self.calls.setdefault(cid, FakeCall())

    def asked(self, method: str) -> list[Any]:
        return [argument for name, argument in self.log if name == method]

    def append(self, cid: str = CID) -> Position:
        """Publish without handing it over: as if the message were lost."""
        call = self.call(cid)
        call.offset += 1
        call.entries.append(Entry(call.offset, body(call.offset, call.top.epoch)))
        return call.top

    def hand_over(self, cid: str, position: Position) -> None:
        if cid in self.subscribed and self.listener is not None:
            self.listener.on_publication(cid, position, body(position.offset, position.epoch))

    def send(self, count: int = 1, cid: str = CID) -> None:
        for _ in range(count):
            self.hand_over(cid, self.append(cid))

    def lose(self, count: int = 1, cid: str = CID) -> None:
        for _ in range(count):
            self.append(cid)

    def volatile(self, cid: str, data: bytes = b'{"type":"volatile"}') -> None:
        if cid in self.subscribed and self.listener is not None:
            self.listener.on_publication(cid, None, data)

    def trim(self, upto: int, cid: str = CID) -> None:
        call = self.call(cid)
        call.entries = [entry for entry in call.entries if entry.offset > upto]

    def fail_over(self, *, keep: int, cid: str = CID) -> None:
        """Another primary takes over that has the first ``keep`` publications only."""
        call = self.call(cid)
        call.entries = [entry for entry in call.entries if entry.offset <= keep]
        call.offset = keep
        call.epochs = [epoch for epoch in call.epochs if epoch.start <= keep + 1]
        call.taken_over += 1
        call.epochs.append(Epoch(f"e{1 + call.taken_over}", keep + 1))


# -- watchers -----------------------------------------------------------------------------------


class FakeWatcher:
    """Writes down what it gets. ``room`` is cleared to make it slow."""

    def __init__(self, user_id: str = "john") -> None:
        self.user = user(user_id)
        self.direct: socket.socket | None = None
        self.is_open = True
        self.is_slow = False
        self.room = asyncio.Event()
        self.room.set()
        self.writes: list[bytes] = []
        self.aborted: list[str] = []

    def deliver(self, batch: Batch) -> int:
        data = batch.kept if self.is_slow else batch.everything
        if data:
            self.writes.append(data)
        return batch.count - (batch.volatile_count if self.is_slow else 0)

    def write(self, data: bytes) -> None:
        if self.is_open:
            self.writes.append(data)

    def abort(self, why: str) -> None:
        self.is_open = False
        self.aborted.append(why)

    async def drained(self) -> None:
        await self.room.wait()

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(text) for data in self.writes for text in texts_in(data)]

    @property
    def offsets(self) -> list[int | str]:
        """The offsets it got, and ``lost N`` where it was told that it is at N without the rest."""
        return [
            f"lost {frame['offset']}" if frame["type"] == "call.position" else frame["offset"]
            for frame in self.frames
            if frame["type"] in ("call.position", "custom")
        ]

    def shown(self) -> list[tuple[int, list[str]]]:
        """The lists of watchers it was sent: the count and the ids."""
        return [
            (frame["count"], [summary["id"] for summary in frame["users"]])
            for frame in self.frames
            if frame["type"] == "call.watchers"
        ]


# -- transports ---------------------------------------------------------------------------------


class FakeTransport(asyncio.Transport):
    """Takes what is written; while ``stuck`` it stays in the buffer as with a peer that does not
    read. Closing calls ``connection_lost`` in a later turn, as real ones do.
    """

    def __init__(self, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(extra)
        self.protocol: asyncio.BaseProtocol | None = None
        self.sent = bytearray()
        self.buffer = bytearray()
        self.stuck = False
        self.reading = True
        self.closing = False
        self.aborted = False
        self.eof = False
        self.watched: Callable[[bytes], None] | None = None

    def write(self, data: Any) -> None:
        assert not self.eof, "written after write_eof"
        if self.watched is not None:
            self.watched(bytes(data))
        if not self.closing:
            (self.buffer if self.stuck else self.sent).extend(data)

    def drain(self) -> None:
        """Let the peer read again."""
        self.stuck = False
        self.sent += self.buffer
        self.buffer.clear()
        assert self.protocol is not None
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self._lost)

    def _lost(self) -> None:
        assert self.protocol is not None
        self.protocol.connection_lost(None)
        self.protocol = None

    def abort(self) -> None:
        self.aborted = True
        self.buffer.clear()
        self.close()


async def eventually(holds: Callable[[], object], what: str = "it", limit_s: float = 10.0) -> None:
    """Wait in real time until something holds."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"{what} did not come about"
        await asyncio.sleep(0.005)


async def gathered(work: Collection[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*work))
