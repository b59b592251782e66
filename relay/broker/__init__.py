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

from collections.abc import Callable, Collection, Mapping, Sequence
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
    Mark,
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
from relay.filters import Found, Query
from relay.hooks import Hooks
from relay.users import Profile, User

__all__ = [
    "Attempt", "Broker", "Change", "Changes", "DeadLetter", "Due", "Entry", "Epoch", "Found",
    "Health", "History", "HookList", "Inbox", "InboxEntry", "Key", "Lease", "LeaseLost", "Limits",
    "Listener", "Mark", "Outbox", "Owed", "Progress", "Reason", "Receiver", "Replayed", "Roster",
    "Span", "Store", "Tried", "Unavailable", "Waiting", "delivery_id",
]  # fmt: skip


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of what a broker keeps; the settings of the same names say what they mean."""

    history_count: int = 1000
    history_age_s: float = 3600.0
    dedupe_window_s: float = 7200.0
    minted_window_s: float = 60.0
    publish_timeout_s: float = 3.0
    publish_queue: int = 10_000
    replicas: int = 0
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


class Health(msgspec.Struct, frozen=True):
    """How well events flow: problems by hop, None where there is none, and warnings in words."""

    problems: Mapping[str, str | None] = {}
    warnings: tuple[str, ...] = ()


class Listener(Protocol):
    """What a broker calls, always on the event loop and never from inside ``publish``."""

    def on_publication(self, cid: str, position: Position | None, body: bytes, /) -> None:
        """Take a publication of a subscribed call; ``position`` None means volatile."""

    def on_roster(self, cid: str, /) -> None:
        """Learn that who watches a subscribed call has changed on another process."""

    def on_interrupted(self, cids: Collection[str], /) -> None:
        """Learn that publications of these calls may have been lost: compare positions."""


class Receiver(Protocol):
    """What a broker hands the messages of processes to, always on the event loop."""

    def on_told(self, user_ids: Collection[str], cid: str | None, body: bytes, /) -> None:
        """Take a text for the sockets of these users, except those that watch ``cid``."""

    def on_notice(self, notice: bytes, /) -> None:
        """Take what a process, perhaps this one, says to all."""

    async def on_question(self, question: bytes, /) -> bytes:
        """Answer another process, or this one; who raises gives no answer."""
        ...


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

    def hang_up(self) -> None:
        """Wait for no answer of Redis any more: what waits for one, here and in what stands on this
        broker, gets ``Unavailable``, and so does what asks after that. ``aclose`` is then quick.
        """
        ...

    async def aclose(self) -> None:
        """Disconnect and end every task. Publications already answered are committed."""
        ...

    async def publish(self, event: Event) -> Publication:
        """Do the atomic step. The event takes its place in the queue before the first await."""
        ...

    def publish_now(self, event: Event) -> Publication | None:
        """Do the atomic step without waiting; None, with nothing done, where it has to be waited
        for: then ``publish``. For callers that return to the loop: it is the loop that delivers.
        """
        ...

    async def subscribe(self, cid: str) -> None:
        """Hand over publications of ``cid`` from now on; returns when the broker confirmed."""
        ...

    async def unsubscribe(self, cid: str) -> None:
        """Stop handing over publications of ``cid``."""
        ...

    def partition(self, cid: str) -> int:
        """Return the partition of a call: all calls of one are kept by the same server."""
        ...

    async def positions(self, cids: Sequence[str]) -> list[Position]:
        """Return the calls' positions, in the order given; a call never used before gets one.

        Asking keeps a call's position from expiring, so hubs ask for every call they watch. There
        is an answer for all or for none: ask for the calls of one partition at a time where some
        may be out of reach.
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

    async def set_connections(self, user_id: str, count: int) -> dict[str, int]:
        """Say how many sockets a user has on this process; return the numbers by process.

        Processes that died are left out once that is known (after ten seconds).
        """
        ...

    def receive(self, receiver: Receiver) -> None:
        """Hand messages of processes to ``receiver``; until then they are dropped."""
        ...

    async def tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        """Give a text to the receivers of all processes, for the sockets of these users.

        Live and at most once. Who watches ``cid`` has the same text from its publication.
        """
        ...

    async def broadcast(self, notice: bytes) -> None:
        """Give a notice to the receivers of all processes, this one's included.

        It comes after what this process has published before, as far as one Redis carries both. A
        process that cannot hear it just now gets it when it can, for up to an hour.
        """
        ...

    async def ask(self, node: str, question: bytes) -> bytes:
        """Return what the receiver of a process answers.

        Raises ``Unavailable`` when it has not answered within two seconds, or is unknown.
        """
        ...

    def health(self) -> Health:
        """Return what is known of how events flow; does not ask."""
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


class Change(NamedTuple):
    """A call before and after a change; the same object twice when the change changed nothing."""

    before: Call
    after: Call


class Store(Protocol):
    """Calls, users and hooks. Reads see every write that was answered before.

    Whatever is changed is changed as one: two changes at once both happen, one after the other. A
    function that describes a change is pure and may be called more than once; what it raises
    (a ``Refused``) goes to the caller, and nothing was changed. Each method raises ``Unavailable``
    when Redis is away.
    """

    async def user(self, user_id: str) -> User | None:
        """Return a user, None when unknown."""
        ...

    async def users(self, user_ids: Collection[str]) -> dict[str, User]:
        """Return users by their ids; unknown ones are left out."""
        ...

    async def save_user(self, user_id: str, profile: Profile, now_ns: int) -> User:
        """Create or change a user and return it."""
        ...

    async def change_user(
        self, user_id: str, change: Callable[[User], Profile], now_ns: int
    ) -> User | None:
        """Save what ``change`` makes of a user as it is, and return it; None when unknown."""
        ...

    async def query_users(self, query: Query) -> Found[User]:
        """Return the users that a query matches, found and bounded as ``query_calls`` does it.

        Guests are found by ``id`` alone: they are many, and soon forgotten.
        """
        ...

    async def call(self, cid: str) -> Call | None:
        """Return a call, None when it was never created."""
        ...

    async def calls(self, cids: Collection[str]) -> dict[str, Call]:
        """Return calls by their cids; those that were never created are left out."""
        ...

    async def create_call(self, call: Call) -> tuple[Call, bool]:
        """Create a call unless it exists; return what is kept, and whether it was created."""
        ...

    async def change_call(self, cid: str, change: Callable[[Call], Call]) -> Change | None:
        """Apply ``change`` to a call; None when there is no such call."""
        ...

    async def delete_call(self, cid: str) -> Call | None:
        """Delete a call and return it as it was; None when there is no such call."""
        ...

    async def note_gone(self, cid: str, created_at: int, now_ns: int) -> None:
        """Remember for ``GONE_S`` that this call, created then (ns), was deleted elsewhere."""
        ...

    async def gone(self, cid: str, now_ns: int) -> int | None:
        """Return when the call was created that was noted to be gone; None when none was."""
        ...

    async def query_calls(self, query: Query) -> Found[Call]:
        """Return the calls that a query matches.

        An index narrows (``cid``, ``type``, ``created_by_user_id``, ``members``, ``created_at``),
        the rest is filtered. Raises ``BadInput`` when more would have to be looked at than the
        budget allows: the message says what to narrow the query by.
        """
        ...

    async def spend(self, key: str, window_s: int, now_ns: int) -> int:
        """Count one more use of ``key`` in the current window; return how many there were in it.

        Windows are aligned: ``now_ns`` falls into the one that began at the last multiple of
        ``window_s`` seconds. All processes count together.
        """
        ...

    async def hooks(self) -> HookList:
        """Return the hooks as they are now."""
        ...

    async def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        """Replace the hooks that were read as ``based_on``; None when others came in between.

        When it returns, every publication accepted from then on is owed to the new hooks. After
        ``Unavailable`` some partitions may know them and others not: ``tell_hooks``.
        """
        ...

    async def tell_hooks(self, hooks: HookList) -> None:
        """Let every partition know saved hooks, as ``save_hooks`` does."""
        ...
