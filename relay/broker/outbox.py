"""What an outbox promises: kept publications are owed to hooks until that is recorded as done.

The publish step appends one entry when a hook wants the event's type, in the same atomic step as
the publication: never for a volatile event, never for a duplicate. Which hooks an entry is owed to
is matched at dispatch, among those that were there when it was accepted (``HookList.owed``). Once
``save_hooks`` has returned, every publication accepted from then on is owed to the new hooks.

Entries lie in the partition of their call and are numbered from 1 without holes. One process holds
the lease of a partition and delivers what lies there; each lease has a token, and whatever is
recorded under another one is refused with ``LeaseLost``. Who takes over finds in ``progress`` what
was done and tried. An attempt is recorded before it is made, so one without an outcome is known.

Bounds: a partition holds ``Limits.outbox_bytes``; beyond, the publish step makes its oldest entries
dead letters without body. It holds ``Limits.dead_letter_bytes`` of dead letters; beyond, the oldest
of those are dropped and counted. As much may wait for later attempts: the leaseholder looks at
``Lease.waiting_room``, and what is replayed comes on top. Publishing never stops for a hook.
Everything but publishing works while Redis is out of memory, so that a full outbox drains.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple, Protocol
from uuid import UUID

import msgspec

from relay.events import Position
from relay.hooks import Hook, Hooks

ALL_TYPES = "*"
MOST_TYPES = 200
"""Event types that the publish step compares; with more wanted, every event is appended."""


class LeaseLost(Exception):
    """Another process delivers this partition now: what was to be recorded is not."""


class HookList(msgspec.Struct, frozen=True):
    """The hooks of the relay at one version.

    Versions grow with every change, also where Redis forgot the older ones (they are times in ms);
    0 means that there never was a hook. ``since`` has the version from which each enabled hook is
    owed events.
    """

    version: int = 0
    hooks: Hooks = Hooks()
    since: dict[str, int] = {}

    def wanted(self) -> str:
        """Return what the publish step looks into: '' (nothing), '*' or ``,type,type,``."""
        enabled = [hook for hook in self.hooks.hooks if hook.enabled]
        types = sorted({kind for hook in enabled for kind in hook.event_types})
        if len(types) > MOST_TYPES or not all(hook.event_types for hook in enabled):
            return ALL_TYPES
        return f",{','.join(types)}," if types else ""

    def owed(self, hook: Hook, entry: Owed) -> bool:
        """Tell whether an entry is owed to a hook of this list."""
        since = self.since.get(hook.id)
        return since is not None and since <= entry.version and hook.wants(entry.type)

    def changed(self, hooks: Hooks, now_ms: int) -> HookList:
        """Return the next version of the list."""
        version = max(self.version + 1, now_ms)
        since = {h.id: self.since.get(h.id, version) for h in hooks.hooks if h.enabled}
        return HookList(version, hooks, since)


class Owed(msgspec.Struct, frozen=True):
    """An entry of the outbox: a publication, and the version of the hooks when it was accepted.

    ``body`` is what the watchers got, position included.
    """

    seq: int
    version: int
    cid: str
    type: str
    event_id: str
    position: Position
    body: bytes


class Attempt(msgspec.Struct, frozen=True):
    """One attempt whose outcome is known (``relay.retry.Outcome``)."""

    at_ms: int
    outcome: str
    status: int | None
    latency_ms: int
    answer: str = ""


class Tried(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has been tried of one delivery.

    ``first_ms`` is when the first attempt of the present row began. ``under_way``: one was begun
    and its outcome is not known. ``lost`` counts those of processes that died meanwhile, ``before``
    the attempts of earlier rows (a replay, the longer schedule), ``later`` how many attempts of the
    longer schedule were made.
    """

    first_ms: int = 0
    under_way: bool = False
    lost: int = 0
    before: int = 0
    later: int = 0
    attempts: tuple[Attempt, ...] = ()

    @property
    def number(self) -> int:
        """The number of attempts begun, over all rows."""
        return self.before + self.lost + len(self.attempts) + self.under_way


class Reason(StrEnum):
    """Why a delivery ended in the dead letters."""

    EXHAUSTED = "exhausted"
    """Every attempt failed."""
    POISON = "poison"
    """The relay died in it too often."""
    HOOK_BOUND = "hook_bound"
    """More waited for the hook than may: the oldest went, without body."""
    WAITING_BOUND = "waiting_bound"
    """More waited for a later attempt than may: there was no room for this one."""
    OUTBOX_BOUND = "outbox_bound"
    """More waited in the partition than may: the oldest went, without body, for every hook that
    had not got it (``hook_id`` is empty)."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A delivery that was given up. ``id`` is its delivery id. ``body`` is JSON text or None."""

    id: str
    at_ms: int
    reason: Reason
    hook_id: str
    cid: str
    type: str
    event_id: str
    epoch: str = ""
    offset: int = 0
    tried: Tried = Tried()
    body: str | None = None


class Mark(NamedTuple):
    """Which waiting delivery is meant, and for which hook it waits."""

    id: str
    hook_id: str


class Waiting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A delivery that waits outside the row: for its next attempt by the longer schedule, or to be
    replayed. ``id`` is its delivery id."""

    id: str
    due_ms: int
    hook_id: str
    cid: str
    type: str
    event_id: str
    epoch: str
    offset: int
    body: str
    tried: Tried = Tried()

    @property
    def mark(self) -> Mark:
        """What tells which one it is."""
        return Mark(self.id, self.hook_id)


class Lease(msgspec.Struct, frozen=True):
    """The right to deliver a partition, and how things stood when it was taken or renewed.

    ``hooks_version`` is what the publish step knows there, ``top`` the last entry's number,
    ``length`` how many entries lie there, ``waiting`` how many deliveries wait, ``shed`` how many
    entries have become dead letters because the outbox was full, ``waiting_room`` how many bytes
    more may wait.
    """

    partition: int
    token: str
    hooks_version: int = 0
    top: int = 0
    length: int = 0
    waiting: int = 0
    shed: int = 0
    waiting_room: int = 0


class Key(NamedTuple):
    """A delivery of a partition: the number of its entry, and the hook."""

    seq: int
    hook_id: str


class Progress(msgspec.Struct):
    """How far deliveries have come: what the leaseholder before has recorded.

    Everything up to ``settled[hook]`` is done; above it, what is in ``done``.
    """

    settled: dict[str, int]
    done: set[Key]
    tried: dict[Key, Tried]


class Changes(msgspec.Struct):
    """What a leaseholder records at once; what is removed by it is removed last.

    ``tried``: None marks a delivery done that lies above its hook's ``settled``. ``forget``: keys
    that ``settled`` covers now, or that nobody is owed. ``gone``: hooks that are no more. ``trim``:
    entries up to it are done for every hook. ``waiting`` and ``dead`` are put by their ids,
    ``ended`` has the waiting ones that are over.
    """

    tried: dict[Key, Tried | None] = {}
    forget: set[Key] = set()
    settled: dict[str, int] = {}
    gone: set[str] = set()
    trim: int = 0
    waiting: dict[str, Waiting] = {}
    ended: set[Mark] = set()
    dead: dict[str, DeadLetter] = {}

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__struct_fields__)


class Due(NamedTuple):
    """Waiting deliveries whose time has come, and when the next one's will have (None: none)."""

    marks: list[Mark]
    next_ms: int | None


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters are meant: of a hook ('' = of any), from ``since_ms`` until before
    ``until_ms`` (None = no end)."""

    hook_id: str = ""
    since_ms: int = 0
    until_ms: int | None = None


class Replayed(NamedTuple):
    """How many dead letters were put back, and how many were not.

    Of ``bodiless`` ones the event was not kept; ``hookless`` ones nobody would get.
    """

    replayed: int
    bodiless: int
    hookless: int = 0


class Outbox(Protocol):
    """Deliveries owed. Each method raises ``Unavailable`` when Redis is away."""

    @property
    def partitions(self) -> int:
        """How many there are; they are numbered from 0."""
        ...

    @property
    def lease_s(self) -> float:
        """How long a lease lasts that is not renewed, in seconds."""
        ...

    async def start(self, woken: Callable[[int], None]) -> None:
        """Connect. ``woken`` gets a leased partition in which something may be new.

        It is only a hint that comes at once: some are lost, so the leaseholder looks at what each
        renewal of its lease tells.
        """
        ...

    async def aclose(self) -> None:
        """Disconnect. Leases that were not given back run out."""
        ...

    # -- leases ---------------------------------------------------------------------------------

    @property
    def node(self) -> str:
        """This process, as ``join`` tells of it."""
        ...

    async def join(self) -> frozenset[str]:
        """Say that this process delivers, for as long as a lease lasts; return all that do."""
        ...

    async def leave(self) -> None:
        """Say that it no longer does."""
        ...

    async def lease(self, partition: int, token: str = "") -> Lease | None:
        """Take a partition, or renew the lease of ``token``; None while another process has it.

        The lease has another token than the one given when it had run out, or when another server
        answers than before: then the partition must be read anew, from its progress on.
        """
        ...

    async def inform(self, lease: Lease, hooks: HookList) -> None:
        """Let the publish step of a partition know of hooks that it has not been told of.

        ``save_hooks`` tells every partition; this is for one that was cut off, or forgotten.
        """
        ...

    async def give_back(self, lease: Lease) -> None:
        """Let another process have it at once. A lease that was lost is none of our business."""
        ...

    # -- what the leaseholder does --------------------------------------------------------------

    async def progress(self, lease: Lease) -> Progress:
        """Return what has been recorded; after it, no older leaseholder can record any more."""
        ...

    async def read(self, lease: Lease, after: int, count: int) -> list[Owed]:
        """Return the next entries after a number, at most ``count``; a page is bounded in bytes."""
        ...

    async def due(self, lease: Lease, now_ms: int, count: int, skip: int = 0) -> Due:
        """Return which waiting deliveries are due, the most overdue first, without some of them."""
        ...

    async def waiting(self, lease: Lease, ids: Sequence[str]) -> list[Waiting]:
        """Return some waiting deliveries; what waits no longer is left out."""
        ...

    async def record(self, lease: Lease, changes: Changes) -> None:
        """Record changes in one atomic step; raises ``LeaseLost``."""
        ...

    # -- dead letters ---------------------------------------------------------------------------

    async def dead_letters(self, span: Span, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters without their bodies, the oldest first.

        To go on, ask again with ``since_ms`` of the last one; those of that moment come twice.
        """
        ...

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """Return one with its body."""
        ...

    async def replay(self, ids: Sequence[str], hook_ids: Collection[str]) -> Replayed:
        """Put dead letters back, each to be delivered under its old id, with a new row of attempts.

        Whoever replays a span asks for it and gives the ids; unknown ids are ignored. ``hook_ids``
        are those of the enabled hooks: letters of others stay, put back they would be dropped.
        """
        ...


def delivery_id(hook_id: str, cid: str, position: Position) -> str:
    """Return the id of a delivery: the same in every process, another for every publication."""
    text = f"{len(hook_id)}:{hook_id}:{cid}:{position.epoch}:{position.offset}"
    return str(UUID(bytes=blake2b(text.encode(), digest_size=16).digest(), version=4))
