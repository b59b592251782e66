"""Every metric of the relay, by name. The one home of ``prometheus_client``.

With several workers the counters live in files that all of them share: ``server`` names the folder
in ``PROMETHEUS_MULTIPROC_DIR`` before a worker starts. So any of them answers for all.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

__all__ = ["CONTENT_TYPE_LATEST", "Tally", "forget_process", "render", "settle"]

disable_created_metrics()  # type: ignore[no-untyped-call] # a series for when each counter began helps nobody

ACCEPTED: Final = Counter(
    "relay_events_accepted", "Events that a door took from a sender.", ["door"]
)
PUBLISHED: Final = Counter(
    "relay_events_published", "Events that were published.", ["door", "kind"]
)
DUPLICATES: Final = Counter(
    "relay_events_duplicate", "Repeats of an event that had been published before.", ["door"]
)
FAILED: Final = Counter(
    "relay_events_failed", "Events that a door took and that were not, or not surely, published.",
    ["door"],
)  # fmt: skip
REUSED_IDS: Final = Counter(
    "relay_event_ids_reused", "Events whose id had come with other content before.", ["door"]
)
IGNORED: Final = Counter(
    "relay_events_ignored", "Valid webhooks, and messages of the queue, about no call.", ["door"]
)
REFUSED: Final = Counter(
    "relay_refused", "Requests, frames and entries that were refused.", ["door", "reason"]
)
RATE_LIMITED: Final = Counter(
    "relay_rate_limited", "Requests of users who made too many.", ["operation"]
)
CONNECTIONS: Final = Gauge(
    "relay_connections", "Open, authenticated sockets.", multiprocess_mode="livesum"
)
WATCHES: Final = Gauge(
    "relay_watches", "Calls watched, summed over the sockets.", multiprocess_mode="livesum"
)
CALLS: Final = Gauge(
    "relay_watched_calls", "Calls with a watcher, by process.", multiprocess_mode="livesum"
)
RECEIVED: Final = Counter(
    "relay_publications_received", "Publications that reached a hub.", ["kind"]
)
OWED: Final = Counter(
    "relay_deliveries_owed", "Publications and notices, each times the watchers it was for."
)
WRITTEN: Final = Counter("relay_deliveries_written", "Deliveries written to sockets.")
WRITES: Final = Counter("relay_writes", "Writes to sockets that carried publications.")
SKIPPED: Final = Counter(
    "relay_deliveries_skipped", "Volatile publications not written to a slow socket."
)
DROPPED: Final = Counter(
    "relay_deliveries_dropped", "Deliveries not written because the socket was closed or cut off."
)
RECOVERED: Final = Counter(
    "relay_deliveries_recovered", "Publications written from history to watchers that came back."
)
OPENED: Final = Counter("relay_sockets_opened", "Connections that became sockets.")
CLOSED: Final = Counter("relay_sockets_closed", "Sockets that have ended, by why.", ["why"])
SOCKETS: Final = Gauge(
    "relay_sockets", "Open sockets, authenticated or not.", multiprocess_mode="livesum"
)
REPAIRS: Final = Counter("relay_repairs", "Gaps in a call's publications, by outcome.", ["outcome"])
RECOVERIES: Final = Counter(
    "relay_recoveries", "Watches from a position, by whether nothing was lost.", ["recovered"]
)
TICKETS: Final = Counter(
    "relay_tickets", "Tickets of sockets that watched over HTTP, by what became of them.", ["what"]
)
ROSTERS_UNREAD: Final = Counter(
    "relay_rosters_unread", "Lists of watchers left out because another version wrote them."
)
COMPARED: Final = Gauge(
    "relay_positions_compared_timestamp_seconds",
    "When the watched call that waits longest published or had its position compared last.",
    multiprocess_mode="livemin",
)
HISTORY_READS: Final = Counter("relay_history_reads", "Pages of history read from the broker.")
READY: Final = Gauge(
    "relay_ready", "Whether what /readyz checks is well: the lowest of all processes.", ["hop"],
    multiprocess_mode="livemin",
)  # fmt: skip
REDIS_UP: Final = Gauge(
    "relay_redis_up", "Whether canaries come back: events flow through Redis.",
    multiprocess_mode="livemin",
)  # fmt: skip
REDIS_RECONNECTS: Final = Counter(
    "relay_redis_reconnects", "Times a connection to Redis had to be made anew.", ["link"]
)
REDIS_DETOURS: Final = Counter(
    "relay_redis_detours", "Slots of a Cluster whose requests were held, by what for.", ["why"]
)
REDIS_EVICTS: Final = Gauge(
    "relay_redis_evicts",
    "Whether Redis may evict keys (maxmemory-policy is not noeviction).",
    multiprocess_mode="livemax",
)
REPLICAS_SHORT: Final = Counter(
    "relay_replicas_short", "Publishes refused because too few replicas had them in time."
)
CANARY_SECONDS: Final = Histogram(
    "relay_canary_seconds",
    "From publishing a canary to its arrival on this process's own subscription.",
    buckets=(0.001, 0.005, 0.025, 0.1, 0.5, 2.5),
)
CANARIES_MISSED: Final = Counter(
    "relay_canaries_missed", "Subscriptions made anew because a canary did not come back."
)
BACKGROUND_FAILURES: Final = Counter(
    "relay_background_failures", "Failures of background work that nobody foresaw; it goes on."
)

ATTEMPTS: Final = Counter(
    "relay_hook_attempts", "Attempts to deliver an event, by how they ended.", ["hook", "outcome"]
)
DELIVERED: Final = Counter("relay_hook_delivered", "Deliveries that a hook took.", ["hook"])
DEAD_LETTERS: Final = Counter(
    "relay_dead_letters", "Deliveries that were given up, by reason.", ["hook", "reason"]
)
DEAD_LETTERS_DROPPED: Final = Counter(
    "relay_dead_letters_dropped", "Dead letters dropped because more are not kept."
)
UNOWED: Final = Counter(
    "relay_hook_dropped", "Deliveries dropped because their hook was removed.", ["hook"]
)
IN_FLIGHT: Final = Gauge(
    "relay_hook_attempts_under_way", "Attempts under way.", multiprocess_mode="livesum"
)
PENDING: Final = Gauge(
    "relay_hook_pending", "Entries of the outbox that a hook has not got.", ["hook"],
    multiprocess_mode="livesum",
)  # fmt: skip
HOOK_OPEN: Final = Gauge(
    "relay_hook_open", "Whether a hook is left alone because it keeps failing (per process).",
    ["hook"], multiprocess_mode="livemax",
)  # fmt: skip
OUTBOX_ENTRIES: Final = Gauge(
    "relay_outbox_entries", "Entries of the outbox in the partitions this process delivers.",
    multiprocess_mode="livesum",
)  # fmt: skip
PARTITIONS: Final = Gauge(
    "relay_outbox_partitions", "Partitions that this process delivers.",
    multiprocess_mode="livesum",
)  # fmt: skip


class Tally:
    """Adds up what one loop turn has for a counter, and counts it when the turn ends.

    A counter takes a lock, and with several workers it writes to a file: three of them for every
    event are a tenth of what taking the event in costs.
    """

    __slots__ = ("_count", "_counter")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._count = 0

    def inc(self) -> None:
        """Count one. Only inside a running event loop."""
        if not self._count:
            _turn.enlist(self)
        self._count += 1

    def settle(self) -> None:
        """Hand over what has been added up."""
        count, self._count = self._count, 0
        self._counter.inc(count)


class _Turn:
    """The tallies that the current loop turn has something for."""

    def __init__(self) -> None:
        self._tallies: list[Tally] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def enlist(self, tally: Tally) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self.settle)
        self._tallies.append(tally)

    def settle(self) -> None:
        self._loop = None
        tallies, self._tallies = self._tallies, []
        for tally in tallies:
            tally.settle()


_turn: Final = _Turn()


def settle() -> None:
    """Count what the current loop turn has added up so far."""
    _turn.settle()


def render() -> bytes:
    """Return all metrics in Prometheus' text format, those of every worker."""
    settle()
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_process(pid: int, folder: str) -> None:
    """Drop the gauges of a worker that has ended; what it counted stays counted."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
