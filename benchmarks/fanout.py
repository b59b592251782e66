"""Fan-out: one call, many watchers, saturated and at 20 events a second, beside the C loop.

Slices of the relay and of the floor take turns in shuffled order. The floor joins as many frames
per ``send()`` as the relay was seen to join in its last slice, and its frames have the size of the
relay's.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from benchmarks import doors, machine
from benchmarks.doors import Door
from benchmarks.load import Load, Slice, middle
from benchmarks.plan import Plan
from benchmarks.servers import Floor, Redis, Relay
from benchmarks.table import Row

SATURATED_LIMIT, PACED_LIMIT = 1.3, 1.5
JOINS_AT_LEAST = 2.0
"""Else a relay that joins nothing would pass: it is held to a C loop that joins likewise."""
SATURATED = "saturated"
PACE_PER_S = 20
EMBEDDED = (doors.SOCKET_VOLATILE, doors.SOCKET_KEPT)
ON_REDIS = (doors.REDIS_LIVE, doors.SOCKET_ELSEWHERE)


@dataclass(frozen=True, slots=True)
class Times:
    """How long and how often."""

    slice_s: float
    rounds: int
    paced_s: float
    paced_rounds: int


FULL = Times(slice_s=0.6, rounds=9, paced_s=4.0, paced_rounds=3)
QUICK = Times(slice_s=0.5, rounds=3, paced_s=2.0, paced_rounds=1)


@dataclass(slots=True)
class Pairs:
    """The slices of one row: the relay's, and in each round the floor's beside it."""

    relay: list[Slice] = field(default_factory=list)
    floor: list[Slice] = field(default_factory=list)
    single: list[Slice] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Bench:
    """Both servers with their load, ready to be measured in turns."""

    plan: Plan
    times: Times
    relay: Load
    floor_server: Floor
    floor: Load
    redis_port: int | None

    def aim(self, door: Door) -> None:
        """Let the relay's load publish through a door."""
        port = self.redis_port or 0 if door.way == "redis" else 0
        self.relay.publish_by(door.connections, port, door.publish(doors.custom(self.plan.payload)))

    def floor_like(self, seen: Slice, joined: float) -> None:
        """Let the floor send frames as large as the relay's, and join so many."""
        self.floor_server.join(seen.frame_bytes, joined)
        frame = doors.server_frame(seen.frame_bytes)
        self.floor.publish_by(1, self.floor_server.publisher_port, frame)

    def saturated(self, door: Door) -> Pairs:
        """Measure a door with the publisher always ahead; the first slice only warms up."""
        pairs, window, seconds = Pairs(), self.plan.window, self.times.slice_s
        self.aim(door)
        seen = self.relay.saturate(seconds, window)
        for _ in range(self.times.rounds):
            for turn in random.sample(("relay", "joined", "single"), 3):
                if turn == "relay":
                    seen = self.relay.saturate(seconds, window)
                    pairs.relay.append(seen)
                    continue
                self.floor_like(seen, seen.events_per_write if turn == "joined" else 1.0)
                slices = pairs.floor if turn == "joined" else pairs.single
                slices.append(self.floor.saturate(seconds, window))
        return pairs

    def paced(self, door: Door) -> Pairs:
        """Measure a door at a calm, even rate, where there is nothing to join."""
        pairs, seconds = Pairs(), self.times.paced_s
        self.aim(door)
        self.floor_like(self.relay.pace(0.5, PACE_PER_S), 1.0)
        for _ in range(self.times.paced_rounds):
            for turn in random.sample(("relay", "floor"), 2):
                load, slices = getattr(self, turn), getattr(pairs, turn)
                slices.append(load.pace(seconds, PACE_PER_S))
        return pairs


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the rows of both brokers, as far as there is a Redis."""
    yield from _measure(plan, "embedded", EMBEDDED)
    if Redis.installed():
        yield from _measure(plan, "Redis", ON_REDIS)


def _measure(plan: Plan, broker: str, of: tuple[Door, ...]) -> Iterator[Row]:
    with ExitStack() as stack:
        bench = _start(plan, stack, on_redis=broker == "Redis")
        for door in of:
            yield from _saturated_rows(broker, door, bench.saturated(door))
        yield _row(f"{PACE_PER_S} events/s", broker, of[-1], bench.paced(of[-1]), PACED_LIMIT)


def _start(plan: Plan, stack: ExitStack, *, on_redis: bool) -> Bench:
    redis_port = stack.enter_context(Redis(plan.scratch)).port if on_redis else None
    relay = stack.enter_context(Relay(plan.relay, plan.scratch, redis_port))
    floor = stack.enter_context(Floor(plan.floor_program))
    relay_load = Load(stack.enter_context(Load.program(plan.load_program)), relay)
    floor_load = Load(stack.enter_context(Load.program(plan.load_program)), floor)
    times = QUICK if plan.quick else FULL
    bench = Bench(
        plan,
        times,
        relay_load.to_relay(plan.sockets),
        floor,
        floor_load.to_floor(plan.sockets),
        redis_port,
    )
    if on_redis:
        other = Relay(plan.relay, plan.scratch, redis_port, measured=False)
        relay_load.publish_to(stack.enter_context(other))
    machine.settle(relay.pids())
    return bench


def _saturated_rows(broker: str, door: Door, pairs: Pairs) -> Iterator[Row]:
    yield _row(SATURATED, broker, door, pairs, SATURATED_LIMIT)
    yield Row(
        what="  C loop, not joining",
        broker="",
        floor=_us(middle(pairs.single, lambda s: s.us_per_delivery)),
        events_per_s=f"{middle(pairs.single, lambda s: s.events_per_s):.0f}",
        per_write=f"{middle(pairs.single, lambda s: s.events_per_write):.1f}",
        busy=f"{middle(pairs.single, lambda s: s.busy):.0%}",
        floor_latency=_latency(pairs.single),
    )


def _row(what: str, broker: str, door: Door, pairs: Pairs, limit: float) -> Row:
    cost, floor = (middle(s, lambda s: s.us_per_delivery) for s in (pairs.relay, pairs.floor))
    ratios = sorted(
        a.us_per_delivery / b.us_per_delivery for a, b in zip(pairs.relay, pairs.floor, strict=True)
    )
    ratio = median(ratios)
    return Row(
        what=what,
        broker=broker,
        door=door.name,
        cost=f"{_us(cost)}/delivery",
        floor=_us(floor),
        ratio=f"{ratio:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
        limit=f"{limit:.1f}",
        events_per_s=f"{middle(pairs.relay, lambda s: s.events_per_s):.0f}",
        per_write=f"{middle(pairs.relay, lambda s: s.events_per_write):.1f}",
        busy=f"{middle(pairs.relay, lambda s: s.busy):.0%}",
        latency=_latency(pairs.relay),
        floor_latency=_latency(pairs.floor),
        trouble=_trouble(what, ratio, limit, middle(pairs.relay, lambda s: s.events_per_write)),
    )


def _trouble(what: str, ratio: float, limit: float, per_write: float) -> str:
    if what == SATURATED and per_write < JOINS_AT_LEAST:
        return f"only {per_write:.1f} events per write: it does not join"
    return "" if ratio <= limit else f"{ratio:.2f} × the C loop is over the limit"


def _us(value: float) -> str:
    return f"{value:.2f} µs"


def _latency(slices: list[Slice]) -> str:
    return f"{middle(slices, lambda s: s.p50_ms):.1f} / {middle(slices, lambda s: s.p99_ms):.1f}"
