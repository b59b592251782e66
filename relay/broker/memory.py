"""The embedded broker: one process, nothing to install, nothing survives it.

The same steps as in Redis, in process. Publications are handed over in a later turn of the event
loop, so that code which works here does not rely on more than Redis gives it. Everything is
bounded: history by count and age, seen ids by their window and number, calls by their idle time.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Final, NamedTuple

from relay.broker import Entry, Epoch, Health, History, Limits, Listener, Receiver, Roster
from relay.broker.desk import Desk
from relay.broker.memory_outbox import MemoryOutbox
from relay.broker.memory_store import MemoryStore
from relay.broker.rules import (
    PAGE_BYTES,
    PAGE_COUNT,
    alias_key,
    call_life_s,
    given_window_s,
    seen_key,
)
from relay.errors import Unavailable
from relay.events import Event, Position, Publication, placed

__all__ = ["MemoryBroker", "MemoryOutbox", "MemoryStore"]

SEEN_BOUND: Final = 1_000_000
"""Seen ids kept at once, about 400 bytes each: with the default window 137 new ones a second."""


class _Call:
    """What is kept of one call; of an entry: when (the broker's clock in ns), offset and body."""

    __slots__ = ("entries", "epoch", "offset", "touched")

    def __init__(self) -> None:
        self.epoch = secrets.token_urlsafe(6)
        self.offset = 0
        self.entries: deque[tuple[int, int, bytes]] = deque()
        self.touched = 0

    @property
    def top(self) -> Position:
        return Position(self.epoch, self.offset)

    def forget(self, before: int) -> None:
        """Drop what was published before a time of the broker's clock."""
        while self.entries and self.entries[0][0] < before:
            self.entries.popleft()


class _Seen(NamedTuple):
    """What is remembered of an id: until when, what it said, and where it was published."""

    until: int
    fingerprint: str
    position: Position | None


def _publication(
    event: Event, position: Position | None, *, duplicate: bool = False, reused: bool = False
) -> Publication:
    return Publication(
        cid=event.cid,
        event_id=event.event_id,
        position=position,
        duplicate=duplicate,
        reused=reused,
    )


class MemoryBroker:
    """A broker for one process. ``clock`` returns nanoseconds and never goes back."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], int],
        node: str,
        *,
        seen_bound: int = SEEN_BOUND,
        outbox: MemoryOutbox | None = None,
    ) -> None:
        self._limits = limits
        self._outbox = outbox
        self._clock = clock
        self._node = node
        self._seen_bound = seen_bound
        self._history_age = int(limits.history_age_s * 1e9)
        self._window = int(given_window_s(limits) * 1e9)
        self._call_life = int(call_life_s(limits) * 1e9)
        # Both in the order in which they expire: what is touched or new goes to the end.
        self._calls: OrderedDict[str, _Call] = OrderedDict()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._expires = 0  # nothing does before this time of the clock
        self._subscribed: set[str] = set()
        self._due: list[tuple[str, Position | None, bytes]] = []
        self._rosters: dict[str, Roster] = {}
        self._listener: Listener | None = None
        self._desk = Desk()

    @property
    def node(self) -> str:
        """This process's incarnation."""
        return self._node

    async def start(self, listener: Listener, live: Callable[[bytes], None]) -> None:
        """Begin to hand over; ``live`` is never called, there is no channel for outsiders."""
        self._listener = listener

    def hang_up(self) -> None:
        """Do nothing: nobody waits here."""

    async def aclose(self) -> None:
        """Stop handing over."""
        await self._desk.aclose()
        self._listener = None
        self._subscribed.clear()

    async def publish(self, event: Event) -> Publication:
        """Do the atomic step; raises ``Unavailable`` when too many ids are remembered."""
        publication = self.publish_now(event)
        # Redis makes every publisher wait; without this one that only publishes would never let
        # anything be delivered.
        await asyncio.sleep(0)
        return publication

    def publish_now(self, event: Event) -> Publication:
        """Do the atomic step; raises ``Unavailable`` when too many ids are remembered."""
        now = self._clock()
        self._expire(now)
        # The step cannot fail half-way here, so the relay never repeats an id that it minted.
        if event.minted:
            return _publication(event, self._show(event, now))
        key, alias = seen_key(event), alias_key(event)
        seen, seen_alias = self._find(key, now), self._find(alias, now)
        reused = any(
            known is not None and known.fingerprint != event.fingerprint
            for known in (seen, seen_alias)
        )
        if seen is not None:
            return _publication(event, seen.position, duplicate=True, reused=reused)
        keys = [name for name in (key, alias) if name is not None]
        if keys and len(self._seen) + len(keys) > self._seen_bound:
            raise Unavailable("the relay remembers too many event ids: try again later")
        position = self._show(event, now)
        for name in keys:
            self._remember(name, _Seen(now + self._window, event.fingerprint, position), now)
        return _publication(event, position, reused=reused)

    def _show(self, event: Event, now: int) -> Position | None:
        """Keep the event where it is to be kept, and hand it over in the next loop turn."""
        position, body = (None, event.body) if event.volatile else self._append(event, now)
        if event.cid in self._subscribed:
            if not self._due:
                asyncio.get_running_loop().call_soon(self._hand_over)
            self._due.append((event.cid, position, body))
        return position

    def _find(self, key: str | None, now: int) -> _Seen | None:
        """Return what is remembered of an id, None when nothing or no longer."""
        seen = self._seen.get(key) if key else None
        return seen if seen is not None and seen.until > now else None

    def _remember(self, key: str, seen: _Seen, now: int) -> None:
        if self._find(key, now) is None:
            self._seen[key] = seen
            self._seen.move_to_end(key)  # an expired one may still stand further ahead

    def _append(self, event: Event, now: int) -> tuple[Position, bytes]:
        call = self._call(event.cid, now)
        call.offset += 1
        top = call.top
        body = placed(event.body, top)
        call.entries.append((now, call.offset, body))
        if len(call.entries) > self._limits.history_count:
            call.entries.popleft()
        if self._outbox is not None:
            self._outbox.append(event, top, body)
        return top, body

    def _hand_over(self) -> None:
        due, self._due = self._due, []
        for cid, position, body in due:
            if self._listener is not None and cid in self._subscribed:
                self._listener.on_publication(cid, position, body)

    def _call(self, cid: str, now: int) -> _Call:
        """Return a call, new if need be, as the one used last and with nothing that is too old."""
        if (call := self._calls.get(cid)) is None:
            call = self._calls[cid] = _Call()
        call.touched = now
        call.forget(now - self._history_age)
        self._calls.move_to_end(cid)
        return call

    def _expire(self, now: int) -> None:
        """Forget what has expired: a few at each publish, more than one publish can add."""
        if now < self._expires:
            return
        for _ in range(4):
            if not self._seen or next(iter(self._seen.values())).until > now:
                break
            self._seen.popitem(last=False)
        for _ in range(2):
            cid, call = next(iter(self._calls.items()), (None, None))
            if cid is None or call is None or call.touched > now - self._call_life:
                break
            if cid in self._subscribed:
                self._call(cid, now)
            else:
                del self._calls[cid]
        seen_until = next((seen.until for seen in self._seen.values()), now + self._window)
        touched = next((call.touched for call in self._calls.values()), now)
        self._expires = min(seen_until, touched + self._call_life)

    async def subscribe(self, cid: str) -> None:
        """Hand over publications of ``cid`` from now on."""
        self._subscribed.add(cid)

    async def unsubscribe(self, cid: str) -> None:
        """Stop handing over publications of ``cid``."""
        self._subscribed.discard(cid)

    def partition(self, cid: str) -> int:
        """Return the one partition that there is."""
        return 0

    async def positions(self, cids: Sequence[str]) -> list[Position]:
        """Return the calls' positions, in the order given."""
        now = self._clock()
        self._expire(now)
        return [self._call(cid, now).top for cid in cids]

    async def history(self, cid: str, after: int) -> History:
        """Return a page of what was kept after the offset ``after``."""
        call = self._call(cid, self._clock())
        first = call.offset - len(call.entries) + 1
        entries: list[Entry] = []
        size = 0
        for _, offset, body in islice(call.entries, max(0, after + 1 - first), None):
            if len(entries) == PAGE_COUNT or size >= PAGE_BYTES:
                break
            entries.append(Entry(offset, body))
            size += len(body)
        return History(top=call.top, epochs=(Epoch(call.epoch, 1),), entries=tuple(entries))

    async def set_roster(self, cid: str, roster: Roster) -> None:
        """Say who watches ``cid`` (count 0: nobody); there are no others to tell."""
        if roster.count:
            self._rosters[cid] = roster
        else:
            self._rosters.pop(cid, None)

    async def rosters(self, cid: str) -> dict[str, Roster]:
        """Return who watches ``cid``: this process is the only one."""
        return {self._node: self._rosters[cid]} if cid in self._rosters else {}

    async def nodes(self) -> frozenset[str]:
        """Return the processes that are alive: this one."""
        return frozenset((self._node,))

    async def set_connections(self, user_id: str, count: int) -> dict[str, int]:
        """Return the number that is said: this process is the only one."""
        return {self._node: count} if count else {}

    def receive(self, receiver: Receiver) -> None:
        """Hand messages to ``receiver``."""
        self._desk.receiver = receiver

    async def tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        """Give a text to the receiver, for the sockets of these users."""
        asyncio.get_running_loop().call_soon(self._desk.told, user_ids, cid, body)

    async def broadcast(self, notice: bytes) -> None:
        """Give a notice to the receiver, after what was published before."""
        asyncio.get_running_loop().call_soon(self._desk.noticed, notice)

    async def ask(self, node: str, question: bytes) -> bytes:
        """Return what the receiver answers: this process is the only one."""
        if node != self._node:
            raise Unavailable(f"there is no process {node}")
        return await self._desk.answer(question)

    def health(self) -> Health:
        """Return that all is well: what is published is handed over in this process."""
        return Health()
