"""One watched call on this process: its watchers, and what the current loop turn has for them.

All publications that arrive in one turn of the event loop leave in one write per socket. Used by
the hub only.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Final, Protocol

from relay import logs, metrics, wire
from relay.events import Position
from relay.gateway.feed import Feed
from relay.users import User

if TYPE_CHECKING:
    from relay.gateway.recovery import HistoryReader

log = logs.get(__name__)

_send: Final = socket.socket.send


class Batch:
    """What one turn has for the watchers of a call: frames, joined once and shared by all."""

    def __init__(self, frames: list[bytes], volatile: list[int]) -> None:
        self._frames = frames
        self._volatile = volatile
        self.count = len(frames)
        self.everything = frames[0] if len(frames) == 1 else b"".join(frames)

    @property
    def volatile_count(self) -> int:
        """How many of the frames a slow socket goes without."""
        return len(self._volatile)

    @cached_property
    def kept(self) -> bytes:
        """What a slow socket gets: the frames of kept publications."""
        if not self._volatile:
            return self.everything
        dropped = set(self._volatile)
        return b"".join(f for index, f in enumerate(self._frames) if index not in dropped)

    def write_to(self, audience: Audience) -> int:
        """Write it to each of them; return how many frames that were.

        What the kernel does not take, and every error, goes the transport's way.
        """
        data, sockets = self.everything, audience.sockets
        sent: list[int] = []
        sends = map(_send, sockets, repeat(data))  # between two calls of the kernel, nothing but C
        while len(sent) < len(sockets):
            try:
                sent.extend(sends)
            except OSError:
                sent.append(0)  # by the one that failed; extending goes on with the next
        if sum(sent) < len(data) * len(sent):
            for watcher, size in zip(audience.direct, sent, strict=True):
                if size < len(data):
                    _write(watcher, data[size:])
        written = self.count * len(sockets)
        for watcher in audience.others:
            try:
                written += watcher.deliver(self)
            except Exception:  # noqa: BLE001 - it is logged there
                _cut_off(watcher)
                metrics.DROPPED.inc(self.count)
        return written


def _write(watcher: Watcher, data: bytes) -> None:
    """Write what the kernel did not take."""
    try:
        watcher.write(data)
    except Exception:  # noqa: BLE001 - it is logged there
        _cut_off(watcher)


def _cut_off(watcher: Watcher) -> None:
    """End a watcher that could not be written to: the others get theirs, and it comes back."""
    log.exception("delivery failed", user_id=watcher.user.id)
    metrics.BACKGROUND_FAILURES.inc()
    watcher.abort("internal")


class Changes:
    """Counts the changes of every ``Watcher.direct`` of a process: while it stands, they do."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Audience:
    """Watchers as a batch is written to them, good until ``changes`` counts on.

    The sockets of ``direct`` are written to past their transports. They lie side by side: going
    through transports, or even through the connections, touches objects that are out of the cache,
    as those of a thousand sockets are each time.
    """

    __slots__ = ("direct", "others", "sockets", "version")

    def __init__(self, watchers: Iterable[Watcher], changes: Changes) -> None:
        self.version = changes.count
        self.sockets: list[socket.socket] = []
        self.direct: list[Watcher] = []
        self.others: list[Watcher] = []
        for watcher in watchers:
            if (direct := watcher.direct) is None:
                self.others.append(watcher)
            else:
                self.sockets.append(direct)
                self.direct.append(watcher)


def plain_socket(transport: asyncio.Transport) -> socket.socket | None:
    """Return the socket under a transport that carries our bytes as they are, None under TLS.

    It shares the transport's descriptor: ``detach`` it in ``connection_lost``, after which the
    transport closes that.
    """
    plain = transport.get_extra_info("socket")
    if plain is None or transport.get_extra_info("sslcontext") is not None:
        return None
    return socket.socket(plain.family, plain.type, plain.proto, fileno=plain.fileno())


def unsent(direct: socket.socket, data: bytes) -> bytes:
    """Send what the kernel takes at once; return the rest, which is the transport's to write."""
    try:
        return data[direct.send(data) :]
    except OSError:
        return data


class Watcher(Protocol):
    """What the hub needs of a connection."""

    @property
    def direct(self) -> socket.socket | None:
        """What takes bytes as they are and at once; None where only ``deliver`` and ``write`` may.

        It is None while bytes are unsent: what is written past the transport would overtake them.
        Whoever changes it counts that in ``Changes``.
        """
        ...

    @property
    def user(self) -> User:
        """Who is watching."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether writing still makes sense."""
        ...

    def deliver(self, batch: Batch) -> int:
        """Write a batch, or less when the peer is slow; return how many frames.

        Never waits, and never comes back to the hub: a peer that is cut off leaves in a later turn.
        """
        ...

    def write(self, data: bytes) -> None:
        """Write frames that may not be dropped. Never waits, never comes back to the hub."""
        ...

    def abort(self, why: str) -> None:
        """Cut the peer off. Never waits, never comes back to the hub."""
        ...

    async def drained(self) -> None:
        """Return once the unsent bytes are below the soft bound, or the connection is closed."""
        ...


class WatchedCall:
    """A call that at least one connection of this process watches, or did a second ago.

    ``joining`` counts those who wait for ``joined``; ``arrived_early`` notes that something came,
    or may have been lost, before the feed ran; ``heard_at`` and ``patience`` (loop time, seconds)
    say when silence becomes suspicious. ``roster_nodes``, ``shown`` and ``shown_at`` belong to the
    board of watchers.
    """

    __slots__ = (
        "_audience", "_changes", "_frames", "_volatile", "arrived_early", "cid", "feed", "heard_at",
        "joined", "joining", "live", "patience", "reader", "recovering", "repair", "roster_nodes",
        "shown", "shown_at", "unused",
    )  # fmt: skip

    def __init__(self, cid: str, changes: Changes) -> None:
        self.cid = cid
        self._changes = changes
        self._audience: Audience | None = None
        self.joined: asyncio.Task[None] | None = None
        self.joining = 0
        self.feed: Feed | None = None
        self.arrived_early = False
        self.live: dict[Watcher, None] = {}
        self.recovering: dict[Watcher, asyncio.Task[None]] = {}
        self.reader: HistoryReader | None = None
        self.repair: asyncio.Task[None] | None = None
        self.unused: asyncio.TimerHandle | None = None
        self.heard_at = 0.0
        self.patience = 0.0
        self.roster_nodes: frozenset[str] = frozenset()
        self.shown = b""
        self.shown_at = 0.0
        self._frames: list[bytes] = []
        self._volatile: list[int] = []

    @property
    def position(self) -> Position:
        """The position up to which the live watchers have everything."""
        assert self.feed is not None, "asked for a position before the call was joined"
        return self.feed.position

    @property
    def is_unused(self) -> bool:
        """Whether nobody watches and nobody is about to."""
        return not (self.live or self.recovering or self.joining)

    def is_watched_by(self, watcher: Watcher) -> bool:
        """Tell whether ``watcher`` receives the call, be it live or still catching up."""
        return watcher in self.live or watcher in self.recovering

    def enter(self, watcher: Watcher) -> None:
        """Make a watcher live."""
        self.live[watcher] = None
        self._audience = None

    def leave(self, watcher: Watcher) -> None:
        """Write no more to a watcher."""
        self.live.pop(watcher, None)
        self._audience = None

    def add(self, body: bytes, *, volatile: bool = False) -> bool:
        """Append a text for the live watchers; return True when it is this turn's first."""
        if not self.live:
            return False
        if volatile:
            self._volatile.append(len(self._frames))
        self._frames.append(wire.text_frame(body))
        return len(self._frames) == 1

    def flush(self) -> None:
        """Write what has gathered to the live watchers, as they are now. Never raises.

        Whatever goes wrong, what comes next is written; who may lack something is cut off.
        """
        if not self._frames:
            return
        frames, volatile = self._frames, self._volatile
        self._frames, self._volatile = [], []
        try:
            self._write(Batch(frames, volatile))
        except Exception:
            log.exception("flush failed", cid=self.cid)
            metrics.BACKGROUND_FAILURES.inc()
            for watcher in self.live:
                watcher.abort("internal")

    def _write(self, batch: Batch) -> None:
        audience = self._audience
        if audience is None or audience.version != self._changes.count:
            audience = self._audience = Audience(self.live, self._changes)
        metrics.WRITTEN.inc(batch.write_to(audience))
        metrics.WRITES.inc(len(self.live))
