"""The names of keys and channels in Redis, and what a message on a call's channel looks like.

Pure. All about a call lies in one partition, whose tag ``{p7}`` keeps it in one slot of a Cluster.
"""

from __future__ import annotations

from itertools import count
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from relay.broker.rules import alias_key, seen_key
from relay.broker.slots import key_slot
from relay.events import Event

PARTITIONS: Final = 256

KEPT, VOLATILE, ROSTER, CANARY = 0, 1, 2, 3
"""What a message is: a publication with or without a position, news of who watches, or the proof
that messages arrive."""

HEADER: Final = Struct(">B8sQ")
"""Before the body: the kind, the epoch, the offset (scripts/common.lua writes it)."""

HEADER_SIZE: Final = HEADER.size
VOLATILE_HEADER: Final = HEADER.pack(VOLATILE, b"--------", 0)
CANARY_HEADER: Final = HEADER.pack(CANARY, b"--------", 0)

_CANARY: Final = "!canary"
"""What the cids of canaries begin with: no call's does."""


def is_canary(cid: str) -> bool:
    """Tell whether what has this cid is no call but a canary."""
    return cid.startswith(_CANARY)


class OutboxKeys(NamedTuple):
    """The keys of one partition's outbox.

    ``entries``: a stream, by number. ``state``: a hash of counters and what the publish step knows
    of the hooks. ``wake``: the channel on which it tells that something is new. ``dead``,
    ``dead_at``: dead letters by id, and ids by time. ``lease``: who delivers. ``tried``: what was
    done and tried, by delivery. ``waiting``, ``waiting_at``: deliveries by id, and ids, each with
    its hook, by when they are due.
    """

    entries: str
    state: str
    wake: str
    dead: str
    dead_at: str
    lease: str
    tried: str
    waiting: str
    waiting_at: str

    @classmethod
    def of(cls, stem: str) -> OutboxKeys:
        """Return the keys that begin with ``stem``."""
        names = (
            "state", "wake", "dead", "dead:at", "lease", "tried", "waiting", "waiting:at",
        )  # fmt: skip
        return cls(stem, *(f"{stem}:{name}" for name in names))

    @property
    def of_publish(self) -> tuple[str, ...]:
        """The keys that the publish step takes: entries, state, wake, dead, dead_at."""
        return self[:5]


class Keyspace:
    """Names under one prefix. Never Python's ``hash()``: it differs between processes."""

    def __init__(self, prefix: str, partitions: int = PARTITIONS) -> None:
        self.live = f"{prefix}live"
        self.everybody = f"{prefix}all"
        self.ingest = f"{prefix}ingest"
        self.ingest_lease = f"{prefix}ingest:lease"
        self.notices = f"{prefix}notices"
        self.nodes = f"{prefix}nodes"
        self.seats = f"{prefix}seats"
        self.seats_lease = f"{prefix}seats:lease"
        self.deliverers = f"{prefix}deliverers"
        self.partitions_key = f"{prefix}partitions"
        self.hooks = f"{prefix}hooks"
        self.partitions = partitions
        self._prefix = prefix
        self.outboxes = [
            OutboxKeys.of(f"{prefix}{{p{number}}}:out") for number in range(partitions)
        ]

    def partition(self, cid: str) -> int:
        """Return the partition of a call."""
        return crc32(cid.encode()) % self.partitions

    def canary(self, node: str, partition: int) -> str:
        """Return the cid of a canary that a process keeps in a partition."""
        cids = (f"{_CANARY}:{node}:{number}" for number in count())
        return next(cid for cid in cids if self.partition(cid) == partition)

    def of_canary(self, cid: str) -> list[str]:
        """Return the keys of the canary step, as scripts/canary.lua takes them.

        All processes write one key in a partition.
        """
        return [self.channel(cid), f"{self._prefix}{{p{self.partition(cid)}}}:canary"]

    def slot(self, partition: int) -> int:
        """Return the slot of a Cluster that a partition lies in."""
        return key_slot(f"{self._prefix}{{p{partition}}}")

    def _of_call(self, cid: str, what: str) -> str:
        return f"{self._prefix}{{p{self.partition(cid)}}}:{what}:{cid}"

    def channel(self, cid: str) -> str:
        """Return the channel of a call's publications."""
        return self._of_call(cid, "c")

    def roster(self, cid: str) -> str:
        """Return the hash of who watches a call, by process."""
        return self._of_call(cid, "w")

    def inbox(self, node: str) -> str:
        """Return the channel on which one process is asked and answered."""
        return f"{self._prefix}node:{node}"

    def session(self, cid: str) -> str:
        """Return the hash of a call's session: the session itself, and its participants."""
        return self._of_call(cid, "s")

    def departures(self, cid: str) -> str:
        """Return the hash of those who left a call and whose leaving was not announced yet."""
        return self._of_call(cid, "left")

    def call(self, cid: str) -> str:
        """Return the key of the call as the store keeps it."""
        return self._of_call(cid, "call")

    def gone(self, cid: str) -> str:
        """Return the key that says that a call was deleted elsewhere."""
        return self._of_call(cid, "gone")

    def connections(self, user_id: str) -> str:
        """Return the hash of how many sockets a user has, by process."""
        return f"{self._prefix}sockets:{user_id}"

    def tickets(self, user_id: str) -> str:
        """Return the hash of how far a user's sockets had come, by socket."""
        return f"{self._prefix}tickets:{user_id}"

    def marks(self, node: str) -> str:
        """Return the hash of how far the sockets of a process have come, by call."""
        return f"{self._prefix}marks:{node}"

    def user(self, user_id: str) -> str:
        """Return the key of a user as the store keeps it."""
        return f"{self._prefix}u:{user_id}"

    def index(self, name: str) -> str:
        """Return the key of an index of calls or users."""
        return f"{self._prefix}ix:{name}"

    def spent(self, key: str, window_s: int, window: int) -> str:
        """Return the key of how often something was used in a window."""
        return f"{self._prefix}n:{window_s}:{window}:{key}"

    def of_order(self, cid: str) -> tuple[str, str]:
        """Return the keys of a call's order: meta and history."""
        return self._of_call(cid, "m"), self._of_call(cid, "h")

    def of_publish(self, event: Event) -> list[str]:
        """Return the keys of the publish step, as scripts/publish.lua takes them."""
        cid = event.cid
        number = self.partition(cid)
        tag = f"{self._prefix}{{p{number}}}"
        keys = [
            f"{tag}:c:{cid}", f"{tag}:m:{cid}", f"{tag}:h:{cid}", f"{tag}:w:{cid}",
            *self.outboxes[number].of_publish,
        ]  # fmt: skip
        keys.extend(f"{tag}:i:{key}" for key in (seen_key(event), alias_key(event)) if key)
        return keys
