"""Deliveries to hooks: what one costs, how soon it comes, and whether slow hooks delay a fast one.

The cost is that of the relay's process for reading the outbox, recording the attempt, signing,
sending over a connection that is kept, and settling: measured while it works off what had gathered
while the receiver was away, on Redis, over a hundred calls.
"""

import http.client
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import jwt
import redis

from benchmarks import machine
from benchmarks.plan import Plan
from benchmarks.servers import API_KEY, API_SECRET, Broken, Child, Redis, Relay
from benchmarks.table import Row

LIMIT_PER_S = 2000
CALLS = 100
SLOW_HOOKS = 1000
DELAYED_BY = 10.0
"""How many times the fast hook's p99 may grow, with this many slow ones, and the milliseconds that
are nobody's business."""
NOISE_MS = 50.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the rows, on Redis; none without one."""
    if not Redis.installed():
        return
    with ExitStack() as stack:
        bench = _Bench(plan, stack)
        bench.gather(2_000 if plan.quick else 20_000)
        yield bench.cost_row()
        alone = bench.delays(50 if plan.quick else 300)
        yield Row(
            what="publish → first byte at the hook",
            broker="Redis",
            door="POST …/event",
            latency=f"{alone['p50']:.2f} / {alone['p99']:.2f}",
        )
        yield bench.slow_row(alone)


class _Bench:
    """A Redis, a receiver and a relay that delivers to it."""

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self._plan = plan
        self._stack = stack
        self._redis = stack.enter_context(Redis(plan.scratch))
        self._client = redis.Redis(port=self._redis.port)
        self._port = machine.free_port()
        self._relay: Relay
        self._receiver: Child

    def gather(self, count: int) -> None:
        """Let deliveries gather for a receiver that is away, then start both anew."""
        with self._start(measured=False) as relay:
            self._ask_at(relay)
            self._set_hooks(self._hook("fast"))
            self._write(count)
        command = [sys.executable, "-m", "benchmarks.receiver", str(self._port)]
        self._receiver = self._stack.enter_context(Child(command, machine.cores().load))
        if self._receiver.hear() != "ready":
            raise Broken("the receiver did not start")
        self._relay = self._stack.enter_context(self._start(measured=True))
        self._ask_at(self._relay)
        self._count = count

    def _start(self, *, measured: bool) -> Relay:
        relay = Relay(self._plan.relay, self._plan.scratch, self._redis.port, measured=measured)
        relay.env |= {"RELAY_HOOK_ALLOW": "127.0.0.0/8", "RELAY_LOG_LEVEL": "error"}
        return relay

    def _hook(self, path: str) -> dict[str, Any]:
        return {"hook_type": "webhook", "webhook_url": f"http://127.0.0.1:{self._port}/{path}"}

    def _ask_at(self, relay: Relay) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)

    def _write(self, count: int) -> None:
        """Write events to the ingest stream, and wait until the relay has published them."""
        custom = {"sent_ns": str(time.time_ns()), "text": "x" * self._plan.payload}
        with self._client.pipeline(transaction=False) as pipeline:
            for n in range(count):
                event = {"type": "custom", "call_cid": f"default:{n % CALLS}", "custom": custom}
                pipeline.xadd("relay:ingest", {"event": json.dumps(event)})
            pipeline.execute()
        end = time.monotonic() + 120
        while self._client.xlen("relay:ingest"):
            if time.monotonic() > end:
                raise Broken("the events were not published")
            time.sleep(0.1)

    def cost_row(self) -> Row:
        """Return what a delivery costs, from soon after the start until nearly all are done."""
        pids = self._relay.pids()
        self._until(self._count // 10)
        before, cpu, began = self._report()["total"], machine.cpu_s(pids), time.monotonic()
        self._until(self._count * 9 // 10)
        done = self._report()["total"] - before
        cpu, took = machine.cpu_s(pids) - cpu, time.monotonic() - began
        machine.settle(pids)  # a few were given up before the hook was left alone
        per_s = done / cpu
        return Row(
            what="delivery to a hook, signed",
            broker="Redis",
            cost=f"{cpu * 1e6 / done:.0f} µs/delivery",
            limit=f"{1e6 / LIMIT_PER_S:.0f} µs",
            events_per_s=f"{done / took:.0f}",
            busy=f"{cpu / took:.0%}",
            trouble="" if per_s >= LIMIT_PER_S else f"{per_s:.0f} a second and core",
        )

    def _until(self, total: int) -> None:
        end = time.monotonic() + 120
        while self._report()["total"] < total:
            if time.monotonic() > end:
                raise Broken(f"not even {total} deliveries arrived")
            time.sleep(0.05)

    def _report(self) -> dict[str, Any]:
        self._receiver.tell("report")
        report: dict[str, Any] = json.loads(self._receiver.hear())
        return report

    def delays(self, count: int) -> dict[str, Any]:
        """Publish events one by one; return how long they took to the receiver."""
        before = self._report()["total"]
        for n in range(count):
            custom = {"sent_ns": str(time.time_ns())}
            path = f"/api/v2/video/call/default/{n % CALLS}/event"
            self._ask("POST", path, {"custom": custom, "user_id": "bench"})
            time.sleep(0.01)
        time.sleep(0.5)
        report = self._report()
        if report["total"] - before != count:
            raise Broken(f"{report['total'] - before} of {count} deliveries arrived")
        return report

    def slow_row(self, alone: dict[str, Any]) -> Row:
        """Return how soon deliveries come to a fast hook among slow ones."""
        slow = [self._hook(f"slow/{n}") for n in range(SLOW_HOOKS)]
        self._set_hooks(self._hook("fast"), *slow)
        self.delays(50)
        time.sleep(6)  # by then every slow hook is known to be slow
        found = self.delays(50 if self._plan.quick else 200)
        limit = DELAYED_BY * alone["p99"] + NOISE_MS
        return Row(
            what=f"the same among {SLOW_HOOKS} slow hooks",
            broker="Redis",
            door="POST …/event",
            limit=f"p99 {limit:.0f} ms",
            latency=f"{found['p50']:.2f} / {found['p99']:.2f}",
            trouble="" if found["p99"] <= limit else "the slow hooks delay the fast one",
        )

    def _set_hooks(self, *hooks: dict[str, Any]) -> None:
        self._ask("PATCH", "/api/v2/app", {"event_hooks": hooks})

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> None:
        token = jwt.encode({"server": True}, API_SECRET, algorithm="HS256")
        headers = {"Authorization": token, "stream-auth-type": "jwt"}
        self._connection.request(method, f"{path}?api_key={API_KEY}", json.dumps(body), headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise Broken(f"{method} {path}: {response.status} {answer[:200]!r}")
