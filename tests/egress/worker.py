"""A process that only delivers: ``python -m tests.egress.worker URL PREFIX STEP``.

At the named step it says so and waits there to be killed; everything else in it goes on. With ``-``
it works like any other. What stops it stands around the relay's own parts, not in them.
"""

from __future__ import annotations

import asyncio
import sys
from random import Random
from typing import Final
from uuid import uuid4

from relay.broker import Changes, Lease, Limits
from relay.broker.redis import RedisBroker, RedisOutbox, RedisStore
from relay.egress import AnySink, Dispatcher
from relay.egress.sinks import Delivery, Result
from relay.forwarded import read_networks
from relay.hooks import Hook
from tests.contract.harness import Recorder

LEASED, RECORDED, SENT, UNSETTLED = STEPS = ("leased", "attempt recorded", "sent", "before settled")
HEARTBEAT_S: Final = 0.2
DEAD_AFTER_S: Final = 3.0
LEASE_S: Final = 3.0
"""Short, but long enough for a machine with more to do."""
API_KEY, SECRET = "key", "a secret of at least thirty-two bytes"


class Step:
    """Where the process stops."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.armed = name == LEASED  # the others once the work is shared out

    async def reached(self, name: str) -> None:
        if name == self.name and self.armed:
            print(f"at {name}", flush=True)
            await asyncio.Event().wait()


class SteppedOutbox(RedisOutbox):
    """The outbox, with the steps at which a process may die."""

    step: Step

    async def lease(self, partition: int, token: str = "") -> Lease | None:
        lease = await super().lease(partition, token)
        if lease is not None and lease.length:
            await self.step.reached(LEASED)
        return lease

    async def record(self, lease: Lease, changes: Changes) -> None:
        if changes.trim or None in changes.tried.values():
            await self.step.reached(UNSETTLED)
        await super().record(lease, changes)
        if any(tried and tried.under_way for tried in changes.tried.values()):
            await self.step.reached(RECORDED)


class SteppedSink(AnySink):
    """The sinks, with the moment after the receiver has answered."""

    step: Step

    async def send(self, hook: Hook, delivery: Delivery, limit_s: float) -> Result:
        result = await super().send(hook, delivery, limit_s)
        await self.step.reached(SENT)
        return result


def broker_on(url: str, prefix: str, limits: Limits) -> RedisBroker:
    """Return a broker that finds out soon who is dead."""
    return RedisBroker(
        url, prefix, limits, uuid4().hex, heartbeat_s=HEARTBEAT_S, dead_after_s=DEAD_AFTER_S
    )


async def work(url: str, prefix: str, step: Step) -> None:
    broker = broker_on(url, prefix, Limits(publish_timeout_s=1.0))
    recorder = Recorder()
    await broker.start(recorder, recorder.on_live)
    outbox = SteppedOutbox(broker, lease_s=LEASE_S)
    sink = SteppedSink(
        api_key=API_KEY, secret=SECRET, clock=lambda: 0, networks=read_networks("127.0.0.0/8")
    )
    outbox.step = sink.step = step
    dispatcher = Dispatcher(
        outbox=outbox,
        store=RedisStore(broker),
        sink=sink,
        rng=Random(),
    )
    await dispatcher.start()
    step.armed = True
    print("working", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], Step(sys.argv[3])))
