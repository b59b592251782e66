"""Publishing: what one event costs the relay in each door, with a single watcher to prove it came.

Throughput is with a window of events under way, latency with one event after the other.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import doors
from benchmarks.doors import Door
from benchmarks.load import Load
from benchmarks.plan import Plan
from benchmarks.servers import Broken, Redis, Relay
from benchmarks.table import Row

WINDOW = 64


def measure(plan: Plan) -> Iterator[Row]:
    """Yield a row for each door of both brokers, as far as there is a Redis."""
    for door in doors.EMBEDDED_DOORS:
        yield _row(plan, door, on_redis=False)
    for door in doors.REDIS_DOORS if Redis.installed() else ():
        yield _row(plan, door, on_redis=True)


def _row(plan: Plan, door: Door, *, on_redis: bool) -> Row:
    broker = "Redis" if on_redis else "embedded"
    try:
        return _measured(plan, door, broker)
    except Broken as error:
        return Row("publish, 1 watcher", broker, door.name, cost="failed", trouble=str(error))


def _measured(plan: Plan, door: Door, broker: str) -> Row:
    seconds = 0.4 if plan.quick else 1.0
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(plan.scratch)) if broker == "Redis" else None
        relay = stack.enter_context(Relay(plan.relay, plan.scratch, redis.port if redis else None))
        load = Load(stack.enter_context(Load.program(plan.load_program)), relay).to_relay(1)
        ports = {"socket": 0, "http": relay.port, "redis": redis.port if redis else 0}
        load.publish_by(door.connections, ports[door.way], door.publish(doors.custom(plan.payload)))
        load.saturate(seconds / 4, WINDOW)
        many, one = load.saturate(seconds, WINDOW), load.saturate(seconds / 2, 1)
    return Row(
        what="publish, 1 watcher",
        broker=broker,
        door=door.name,
        cost=f"{many.us_per_event:.0f} µs/event",
        events_per_s=f"{many.events_per_s:.0f}",
        per_write=f"{many.events_per_write:.1f}",
        busy=f"{many.busy:.0%}",
        latency=f"{one.p50_ms:.2f} / {one.p99_ms:.2f}",
    )
