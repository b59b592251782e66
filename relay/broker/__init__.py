"""What a broker promises. ``memory`` and ``redis`` keep it; one contract suite holds both to it.

A broker turns events into publications in one atomic step, hands them to the hubs of all processes
that subscribed to the call, and keeps a bounded history of each call. ``publish`` is the only way
to a position. Delivery to hubs is *at most once*: a hub notices what is missing by the offsets and
asks for it with ``history``.

The atomic step: seen this identity? → offset + 1 → append to history → remember the identity →
append to the outbox, when a hook wants it (``relay.broker.outbox``) → publish. Whoever got an
answer from ``publish`` knows that all of it happened, whoever got ``Unavailable`` may repeat the
same event: what had happened is found and answered as a duplicate.

Order: publications of one call are handed over in the order of their offsets, and events that one
task gives to ``publish`` one after another are published in that order.

A position ``(epoch, offset)`` is *good* while nothing that a client saw up to it can have been
replaced: its epoch is still known and the offset lies below the start of the next epoch. A new
epoch begins where another primary or a restart took over; counting goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from relay.broker.outbox import (
    Attempt,
    Changes,
    DeadLetter,
    Due,
    HookList,
    Key,
    Lease,
    LeaseLost,
    Outbox,
    Owed,
    Progress,
    Reason,
    Replayed,
    Span,
    Tried,
    Waiting,
    delivery_id,
)
from relay.calls import Call
from relay.errors import Unavailable
from relay.events import Event, Position, Publication
from relay.hooks import Hooks
from relay.users import Profile, User

__all__ = [
    "Attempt", "Broker", "Changes", "DeadLetter", "Due", "Entry", "Epoch", "History", "HookList",
    "Inbox", "InboxEntry", "Key", "Lease", "LeaseLost", "Limits", "Listener", "Outbox", "Owed",
    "Progress", "Reason", "Replayed", "Roster", "Span", "Store", "Tried", "Unavailable", "Waiting",
    "delivery_id",
]  # fmt: skip


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what a broker keeps; the settings of the same names say what they mean."""

    history_count: int = 1000
    history_age_s: float = 3600.0
    dedupe_window_s: float = 7200.0
    minted_window_s: float = 60.0
    publish_timeout_s: float = 3.0
    publish_queue: int = 10_000
    outbox_bytes: int = 16_777_216
    dead_letter_bytes: int = 4_194_304


class Epoch(NamedTuple):
    """An epoch and the first offset that was counted in it."""

    name: str
    start: int


class Entry(NamedTuple):
    """One kept publication: its offset and the bytes that watchers get, position included."""

    offset: int
    body: bytes


class History(msgspec.Struct, frozen=True):
    """A call's kept publications after some offset, as they were at one moment.

    ``top`` is the call's position then. ``entries`` are in order, without holes between them; they
    may start later than asked (the older ones were trimmed) and stop before ``top`` (a page is
    bounded in bytes).
    """

    top: Position
    epochs: tuple[Epoch, ...]
    entries: tuple[Entry, ...]

    def is_good(self, position: Position) -> bool:
        """Tell whether what was seen up to ``position`` still is what happened."""
        names = [epoch.name for epoch in self.epochs]
        if position.epoch not in names:
            return False
        following = names.index(position.epoch) + 1
        if following < len(names):
            return position.offset < self.epochs[following].start
        return position.offset <= self.top.offset

    def continues(self, position: Position) -> bool:
        """Tell whether this history has everything that happened right after ``position``."""
        if not self.is_good(position):
            return False
        if position.offset == self.top.offset:
            return True
        return bool(self.entries) and self.entries[0].offset <= position.offset + 1

    def after(self, offset: int) -> tuple[Entry, ...]:
        """Return the entries above ``offset``."""
        if not self.entries or offset < self.entries[0].offset:
            return self.entries
        return self.entries[offset - self.entries[0].offset + 1 :]


class Roster(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who watches a call on one process: how many connections, and up to 50 users' summaries."""

    count: int
    users: tuple[dict[str, str], ...] = ()


class Listener(Protocol):
    """What a broker calls, always on the event loop and never from inside ``publish``."""

    def on_publication(self, cid: str, position: Position | None, body: bytes, /) -> None:
        """Take a publication of a subscribed call; ``position`` None means volatile."""

    def on_roster(self, cid: str, /) -> None:
        """Learn that who watches a subscribed call has changed on another process."""

    def on_interrupted(self, cids: Collection[str], /) -> None:
        """Learn that publications of these calls may have been lost: compare positions."""


class Broker(Protocol):
    """Publish, subscribe and history, across processes. Every wait is bounded.

    Each method raises ``Unavailable`` when Redis is away or does not answer in time.
    """

    @property
    def node(self) -> str:
        """This process's incarnation: unique, without ``-``, new at every start."""
        ...

    async def start(self, listener: Listener, live: Callable[[bytes], None]) -> None:
        """Connect. ``live`` gets what outsiders published on the live channel, unchecked.

        Raises ``Unavailable`` when Redis cannot be reached now.
        """
        ...

    async def aclose(self) -> None:
        """Disconnect and end every task. Publications already answered are committed."""
        ...

    async def publish(self, event: Event) -> Publication:
        """Do the atomic step. The event takes its place in the queue before the first await."""
        ...

    async def subscribe(self, cid: str) -> None:
        """Hand over publications of ``cid`` from now on; returns when the broker confirmed."""
        ...

    async def unsubscribe(self, cid: str) -> None:
        """Stop handing over publications of ``cid``."""
        ...

    async def positions(self, cids: Sequence[str]) -> list[Position]:
        """Return the calls' positions, in the order given; a call never used before gets one.

        Asking keeps a call's position from expiring, so hubs ask for every call they watch.
        """
        ...

    async def history(self, cid: str, after: int) -> History:
        """Return a page of what was kept after the offset ``after``."""
        ...

    async def set_roster(self, cid: str, roster: Roster) -> None:
        """Say who watches ``cid`` on this process (count 0: nobody) and tell the others."""
        ...

    async def rosters(self, cid: str) -> dict[str, Roster]:
        """Return who watches ``cid``, by process; processes that died are left out."""
        ...

    async def nodes(self) -> frozenset[str]:
        """Return the processes that are alive (heard of in the last ten seconds)."""
        ...

    async def ping(self) -> None:
        """Prove that the broker answers."""
        ...


class InboxEntry(NamedTuple):
    """One entry of the ingest stream: its id there, and what the backend wrote (unchecked)."""

    id: str
    text: bytes


class Inbox(Protocol):
    """The ingest stream: kept events from backends. One process at a time holds the lease."""

    async def take(self) -> list[InboxEntry]:
        """Return the oldest entries, at most 100; waits up to a second, then returns none.

        The entries stay in the stream until ``settle``: who dies in between loses nothing.
        """
        ...

    async def settle(self, ids: Sequence[str]) -> None:
        """Delete entries whose events were published or refused."""
        ...

    async def aclose(self) -> None:
        """Give the lease back."""
        ...


class Store(Protocol):
    """Calls, users and hooks. Reads see every write that was answered before."""

    async def user(self, user_id: str) -> User | None:
        """Return a user, None when unknown."""
        ...

    async def save_user(self, user_id: str, profile: Profile, now_ns: int) -> User:
        """Create or change a user and return it."""
        ...

    async def call(self, cid: str) -> Call | None:
        """Return a call, None when it was never created."""
        ...

    async def create_call(self, call: Call) -> tuple[Call, bool]:
        """Create a call unless it exists; return what is kept, and whether it was created."""
        ...

    async def hooks(self) -> HookList:
        """Return the hooks as they are now."""
        ...

    async def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        """Replace the hooks that were read as ``based_on``; None when others came in between.

        When it returns, every publication accepted from then on is owed to the new hooks. After
        ``Unavailable`` some partitions may know them already: save again.
        """
        ...
