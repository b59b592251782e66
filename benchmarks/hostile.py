"""What well-behaved watchers feel of hostile peers: latency alone, and with each kind at work.

The watchers' load is the C client at a modest rate. The hostile peers are a process of their own at
idle priority. What they do to others through the machine alone is told apart by a control: the same
peers at work on a sink, on the relay's core.
"""

import contextlib
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from json import loads
from statistics import median

from benchmarks import doors, machine
from benchmarks.load import Load, Slice
from benchmarks.plan import Plan
from benchmarks.servers import API_KEY, API_SECRET, Broken, Child, Relay
from benchmarks.table import HostileRow

WATCHERS, PACE_PER_S, PAYLOAD = 200, 50, 200
SETTINGS = {
    "RELAY_HOST": "127.0.0.1",
    "RELAY_API_KEY": API_KEY,
    "RELAY_API_SECRET": API_SECRET,
    "RELAY_FIRST_FRAME_TIMEOUT": "3",
    "RELAY_HEAD_TIMEOUT": "3",
    "RELAY_SLOW_TIMEOUT": "5",
}
"""Every limit as it is by default; only the times are shorter, so that a slice sees the ends."""
GONE_S = 20.0
UNSEEN_MS = 4.0
"""What a p99 may move by without anybody seeing it: a quarter of a frame on a screen."""
LIMIT = 2.0
"""How many times the p99 with the same peers at the sink."""
MANY = 100
"""Below that a quick run has as many peers as a full one: memory is shared by too few else."""
IDLE_KIB = 40.0
"""A socket that has said little, in the middle of a crowd that arrives."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of hostile peer: the script of ``peers`` that it follows, and what it may cost."""

    script: str
    what: str
    count: int
    pause_s: float = 0.05
    bound_kib: float = IDLE_KIB


FRAME_KIB, HARD_KIB, READ_KIB = 64.0, 4096.0, 256.0
CALLS_KIB = 120 * 5.0
"""Of the calls that a socket may begin to watch before it is too fast; the history is among it."""
KINDS = (
    Kind("never_authenticates", "never authenticate, in waves", 3000),
    Kind("herd", "leave all at once, every second", 1500),
    Kind("bad_token", "log in with a bad token, again and again", 50, 0.0),
    Kind("stops_reading", "watch a busy call, read nothing", 50, bound_kib=HARD_KIB + IDLE_KIB),
    Kind("sips", "watch a busy call, read a byte a second", 50, bound_kib=HARD_KIB + IDLE_KIB),
    Kind("drips", "send a byte a second", 1000),
    Kind("pings", "flood with pings", 50, 0.2, READ_KIB + IDLE_KIB),
    Kind("fragments", "flood with fragments", 50, 0.2, READ_KIB + IDLE_KIB),
    Kind("giants", "send giant frames", 50, 0.2, READ_KIB + 2 * FRAME_KIB + IDLE_KIB),
    Kind("commands", "flood with commands", 50, 0.2, CALLS_KIB + IDLE_KIB),
    Kind("loris", "HTTP heads of a byte a second", 1000),
)


@dataclass(slots=True)
class Seen:
    """The slices of one kind, and what the relay counted while it was at work."""

    alone: list[Slice] = field(default_factory=list)
    sink: list[Slice] = field(default_factory=list)
    relay: list[Slice] = field(default_factory=list)
    kib: list[float] = field(default_factory=list)
    whys: "Counter[str]" = field(default_factory=Counter)
    told: "Counter[str]" = field(default_factory=Counter)


class _Bench:
    """A relay with well-behaved watchers, and a sink beside it."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._seconds = 2.0 if plan.quick else 4.0
        self._scale = 4 if plan.quick else 1
        self._relay = stack.enter_context(Relay(plan.relay, plan.scratch, None, settings=SETTINGS))
        sink = Child([sys.executable, "-m", "benchmarks.sink"], machine.cores().server)
        self._sink_port = int(stack.enter_context(sink).hear())
        self._load = Load(stack.enter_context(Load.program(plan.load_program)), self._relay)
        self._load.to_relay(WATCHERS)
        door = doors.SOCKET_KEPT
        self._load.publish_by(door.connections, 0, door.publish(doors.custom(PAYLOAD)))
        self._well_behaved = WATCHERS + door.connections
        machine.settle(self._relay.pids())
        self._load.pace(1.0, PACE_PER_S)  # warms up

    def round(self, kind: Kind, seen: Seen) -> None:
        """Measure alone, with the peers at the sink, and with the peers at the relay."""
        turns: dict[str, Callable[[], None]] = {
            "alone": lambda: seen.alone.append(self._pace()),
            "sink": lambda: self._at_sink(kind, seen),
            "relay": lambda: self._at_relay(kind, seen),
        }
        for turn in random.sample(list(turns), len(turns)):
            turns[turn]()

    def _pace(self) -> Slice:
        return self._load.pace(self._seconds, PACE_PER_S)

    def _at_sink(self, kind: Kind, seen: Seen) -> None:
        with self._peers(kind, self._sink_port) as peers:
            peers.tell("go")
            seen.sink.append(self._pace())

    def _at_relay(self, kind: Kind, seen: Seen) -> None:
        before, memory = self._counters(), machine.private_bytes(self._relay.pids())
        with self._peers(kind, self._relay.port) as peers:
            peers.tell("go")
            seen.relay.append(self._pace())
            memory = machine.private_bytes(self._relay.pids()) - memory
            peers.tell("report")
            report = loads(peers.hear())
        seen.told.update(report["ends"])
        seen.kib.append(memory / 1024 / self._count(kind))
        self._until_gone()
        seen.whys.update(self._counters() - before)

    @contextlib.contextmanager
    def _peers(self, kind: Kind, port: int) -> Iterator[Child]:
        command = [sys.executable, "-m", "benchmarks.peers", str(port), kind.script]
        command += [str(self._count(kind)), str(kind.pause_s)]
        with Child(command, machine.cores().load) as peers:
            if peers.hear() != "ready":
                raise Broken("the hostile peers did not start")
            yield peers

    def _count(self, kind: Kind) -> int:
        return kind.count // self._scale if kind.count > MANY else kind.count

    def _until_gone(self) -> None:
        """Wait until only those are left who belong here."""
        end = time.monotonic() + GONE_S
        while (left := int(self._metrics()["relay_sockets"])) > self._well_behaved:
            if time.monotonic() > end:
                raise Broken(f"{left - self._well_behaved} hostile sockets are still open")
            time.sleep(0.2)

    def _counters(self) -> "Counter[str]":
        """Return why sockets have ended, and what HTTP was refused for."""
        found: Counter[str] = Counter()
        for name, value in self._metrics().items():
            ended = re.match(r'relay_sockets_closed_total{why="(\w+)"}', name)
            refused = re.match(r'relay_refused_total{door="http",reason="(\w+)"}', name)
            if mark := ended or refused:
                found[mark[1]] += int(value)
        return found

    def _metrics(self) -> dict[str, float]:
        url = f"http://127.0.0.1:{self._relay.port}/metrics"
        with urllib.request.urlopen(url, timeout=GONE_S) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


def measure(plan: Plan) -> Iterator[HostileRow]:
    """Yield a row for each kind."""
    with ExitStack() as stack:
        bench = _Bench(plan, stack)
        for kind in KINDS:
            if plan.kind in ("", kind.script):
                seen = Seen()
                for _ in range(1 if plan.quick else 3):
                    bench.round(kind, seen)
                yield _row(kind, seen)


def _row(kind: Kind, seen: Seen) -> HostileRow:
    ratios = [with_.p99_ms / sink.p99_ms for with_, sink in zip(seen.relay, seen.sink, strict=True)]
    kib = median(seen.kib)
    return HostileRow(
        what=kind.what,
        alone=_latency(seen.alone),
        sink=_latency(seen.sink),
        relay=_latency(seen.relay),
        ratio=f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        busy=f"{median(s.busy for s in seen.alone):.0%} → {median(s.busy for s in seen.relay):.0%}",
        closed=_counts(seen.whys),
        told=_counts(seen.told),
        memory=f"{kib:.0f}",
        bound=f"{kind.bound_kib:.0f}",
        trouble=_trouble(kind, seen, median(ratios), kib),
    )


def _trouble(kind: Kind, seen: Seen, ratio: float, kib: float) -> str:
    moved = median(s.p99_ms for s in seen.relay) - median(s.p99_ms for s in seen.sink)
    troubles = []
    if ratio > LIMIT and moved > UNSEEN_MS:
        troubles.append(f"p99 is {ratio:.1f} × that with the same peers at the sink")
    if kib > kind.bound_kib:
        troubles.append(f"{kib:.0f} KiB a peer")
    return ", ".join(troubles)


def _latency(slices: list[Slice]) -> str:
    figures = [median(getattr(s, name) for s in slices) for name in ("p50_ms", "p99_ms", "max_ms")]
    return " / ".join(f"{figure:.1f}" for figure in figures)


def _counts(found: "Counter[str]") -> str:
    return ", ".join(f"{what} {count}" for what, count in found.most_common(4)) or "–"
