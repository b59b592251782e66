"""Delivering processes that can be killed, and a ledger of what they owe and what arrived."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from uuid import uuid4

from relay.broker import Limits, Span
from relay.broker.redis import RedisBroker, RedisOutbox, RedisStore
from relay.events import Event, custom_event
from relay.hooks import Hook, Hooks, HookType
from tests.contract.harness import Recorder
from tests.egress.receiver import Answer, Peer, Receiver, status
from tests.egress.worker import broker_on
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
CALLS = [f"default:call-{n}" for n in range(100)]
"""So many that of three processes which share the partitions each has some."""
NOW = 1_900_000_000_000


class Worker:
    """One delivering process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self, line: str) -> None:
        """Return once it has printed a line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while (said := (await self.process.stdout.readline()).decode().strip()) != line:
                assert said or self.process.returncode is None, f"it never says {line!r}"

    async def kill(self) -> None:
        """End it as a crash does."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Fleet:
    """The relays on one Redis: a publisher in this process, workers in others, a receiver."""

    def __init__(self, server: RedisServer, prefix: str, receiver: Receiver) -> None:
        self.receiver = receiver
        self.published: set[str] = set()
        self.accepted: Counter[str] = Counter()
        self.broker: RedisBroker
        self.store: RedisStore
        self.outbox: RedisOutbox
        self._server = server
        self._prefix = prefix
        self._workers: list[Worker] = []

    async def open(self, limits: Limits) -> None:
        self.broker = broker_on(self._server.url, self._prefix, limits)
        recorder = Recorder()
        await self.broker.start(recorder, recorder.on_live)
        self.store, self.outbox = RedisStore(self.broker), RedisOutbox(self.broker)

    async def aclose(self) -> None:
        for worker in self._workers:
            await worker.kill()
        await self.outbox.aclose()
        await self.broker.aclose()

    async def set_hook(self, **fields: object) -> None:
        hook = Hook(id="one", hook_type=HookType.WEBHOOK, webhook_url=self.receiver.url, **fields)  # type: ignore[arg-type]
        assert await self.store.save_hooks(Hooks((hook,)), await self.store.hooks(), NOW)

    async def work(self, step: str = "-") -> Worker:
        """Start a process that delivers, and stops at a step."""
        command = [sys.executable, "-m", "tests.egress.worker", self._server.url, self._prefix]
        process = await asyncio.create_subprocess_exec(
            *command, step, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        self._workers.append(Worker(process))
        return self._workers[-1]

    async def shared(self, count: int) -> None:
        """Return once so many processes share the partitions, and all are taken."""
        keys = self.broker.keyspace.outboxes
        async with asyncio.timeout(30):
            while True:
                tokens = await asyncio.gather(
                    *(self.broker.commands.request("GET", each.lease) for each in keys)
                )
                nodes = {token.partition(b"-")[0] for token in tokens if token}
                if all(tokens) and len(nodes) == count:
                    return
                await asyncio.sleep(0.05)

    async def publish(self, count: int) -> None:
        """Publish events of several calls, many at once."""
        for start in range(0, count, 500):
            batch = [_event(CALLS[n % len(CALLS)]) for n in range(start, min(count, start + 500))]
            await asyncio.gather(*map(self.broker.publish, batch))
            self.published |= {each.event_id for each in batch}

    # -- the receiver's side --------------------------------------------------------------------

    def answering(self, rng: Random, failing: float) -> Answer:
        """Return an answer that fails for a share of the requests, and notes what it takes."""

        async def give(peer: Peer) -> bool:
            request = self.receiver.requests[-1]
            if rng.random() < failing:
                return await status(503)(peer)
            self.accepted[event_id(request.body)] += 1
            return await status(200)(peer)

        return give

    async def settled(self, patience_s: float = 30.0) -> None:
        """Return once nothing is owed any more; check that nothing was left behind."""
        async with asyncio.timeout(patience_s):
            while await self._owed():
                await asyncio.sleep(0.05)

    async def _owed(self) -> int:
        commands = self.broker.commands
        keys = self.broker.keyspace.outboxes
        counts = await asyncio.gather(
            *(commands.request("XLEN", each.entries) for each in keys),
            *(commands.request("HLEN", each.waiting) for each in keys),
        )
        if not sum(counts):
            tried = await asyncio.gather(*(commands.request("HGETALL", k.tried) for k in keys))
            left = [field for flat in tried for field in flat[::2] if not field.startswith(b"|")]
            assert left == []
        return sum(counts)

    async def balance(self) -> Counter[str]:
        """Check that every event arrived or is a dead letter, and none came under two ids.

        Returns how often each event was sent to the receiver.
        """
        letters = await self.outbox.dead_letters(Span(), 1_000_000)
        dead = {letter.event_id for letter in letters}
        assert dead | self.accepted.keys() == self.published
        ids: dict[str, set[str]] = {}
        sent: Counter[str] = Counter()
        for request in self.receiver.requests:
            ids.setdefault(event_id(request.body), set()).add(request.headers["x-webhook-id"])
            sent[event_id(request.body)] += 1
        assert all(len(each) == 1 for each in ids.values())
        assert len(set.union(*ids.values())) == len(ids)
        return sent


def _event(cid: str) -> Event:
    return custom_event(
        cid=cid,
        custom=b'{"render-animation":"balloons"}',
        user=b'{"id":"ann"}',
        event_id=uuid4().hex,
        now_ns=NOW * 1_000_000,
        sender="api:ann",
        minted=False,
    )


def event_id(body: bytes) -> str:
    """Return which event a body is."""
    return str(json.loads(body)["event_id"])


@contextlib.asynccontextmanager
async def fleet(
    server: RedisServer, prefix: str, receiver: Receiver, limits: Limits | None = None
) -> AsyncIterator[Fleet]:
    made = Fleet(server, prefix, receiver)
    await made.open(limits or Limits(publish_timeout_s=10.0))
    try:
        yield made
    finally:
        await made.aclose()
