"""What waits outside the row is taken once, however looks and records cross, and hides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from itertools import pairwise
from random import Random

import msgspec
import pytest

from relay.broker import Changes, Lease, Waiting
from relay.broker.redis import RedisBroker, RedisOutbox
from relay.egress.dispatcher import Dispatcher
from relay.egress.lane import Bounds
from relay.egress.shelf import BODIES_AT_ONCE, LOOK_GAP_S
from relay.egress.sinks import Delivery, Result
from relay.egress.timers import LoopTimers
from relay.hooks import Hook, Hooks
from tests.contract.harness import CID, RedisRig, closing, until
from tests.egress.works import NO, OK, START_MS, Gate, Sink, Timers, Works, hook, settled, works
from tests.redis_server import RedisServer, redis_server

__all__ = ["redis_server"]

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig() -> AsyncIterator[Works]:
    async with works() as made:
        yield made


async def wait_for(rig: Works, *contents: object, schedule: tuple[int, ...] = (60,)) -> None:
    """Have events wait for their first attempt by the longer schedule, which is soon due."""
    rig.sink.answer = lambda _hook, _delivery: NO
    await rig.start(hook(retry_schedule=schedule))
    await rig.publish(*contents)
    assert rig.sink.numbers == [1] * len(contents)
    await rig.timers.advance(55)
    rig.sink.attempts.clear()


async def test_what_ended_but_is_not_recorded_yet_is_not_taken_again(rig: Works) -> None:
    await wait_for(rig, 1)
    rig.sink.answer = gate = Gate()
    await rig.timers.advance(15)
    assert rig.sink.numbers == [2]
    rig.outbox.before["record"] = asyncio.Event()
    gate.open()
    await rig.timers.advance(2.5)  # the lease is renewed: one waits, and none is in hand
    assert rig.sink.numbers == [2]
    rig.outbox.before.pop("record").set()
    await rig.timers.advance(10)
    assert rig.sink.numbers == [2]
    assert (rig.outbox._waiting, await rig.left(), await rig.dead()) == ({}, 0, [])


@pytest.mark.parametrize("answer", [OK, NO])
async def test_what_ends_while_it_is_looked_for_is_not_taken_again(
    rig: Works, answer: Result
) -> None:
    """Its end is recorded before the answer comes that still has it."""
    await wait_for(rig, 1, 2, schedule=(60, 600))
    rig.sink.answer = gate = Gate()
    while not gate.futures:
        await rig.timers.advance(0.1)
    assert len(rig.outbox._waiting) == 2
    rig.outbox.after["due"] = asyncio.Event()
    await rig.timers.advance(2.5)  # the lease is renewed: two wait, and one is in hand
    gate.open(answer)
    await settled()
    assert rig.outbox._waiting
    rig.outbox.after.pop("due").set()
    await rig.timers.advance(15)
    assert rig.sink.numbers == [2, 2]


async def test_looks_keep_a_distance_however_often_something_is_due(rig: Works) -> None:
    hooks = [hook(f"h{n}") for n in range(100)]
    lease = await rig.outbox.lease(0)
    assert lease is not None
    waiting = overdue(*(each.id for each in hooks), dead=0)
    due = {
        id_: msgspec.structs.replace(each, due_ms=START_MS + 10 * int(id_))
        for id_, each in waiting.items()
    }
    await rig.outbox.record(lease, Changes(waiting=due))
    await rig.start(*hooks)
    await rig.timers.advance(1.25)
    assert len(rig.sink.attempts) == 100
    assert min(b - a for a, b in pairwise(sorted(set(rig.outbox.looked_at)))) >= LOOK_GAP_S
    late = [at_s - 0.01 * int(each.delivery_id) for at_s, _, each, _ in rig.sink.attempts]
    assert 0 <= min(late) < max(late) <= LOOK_GAP_S + 0.001


# -- a dead hook ----------------------------------------------------------------------------------

BOUNDS = Bounds(look=64)
DEAD = 300
"""Overdue deliveries of the dead hook: more than four looks go through."""


def overdue(*last: str, dead: int = DEAD) -> dict[str, Waiting]:
    """Return what waits: hundreds of deliveries to ``dead``, then one to each of ``last``."""
    hooks = ["dead"] * dead + list(last)
    return {
        str(n): Waiting(
            id=str(n),
            due_ms=1000 + n,
            hook_id=hook_id,
            cid=CID,
            type="custom",
            event_id=f"e{n}",
            epoch="k",
            offset=n + 1,
            body=f'{{"type":"custom","custom":{n}}}',
        )
        for n, hook_id in enumerate(hooks)
    }


class NoAnswer(Gate):
    """``dead`` never answers, so that it soon has no room; the others do."""

    def __call__(self, to: Hook, delivery: Delivery) -> Result | asyncio.Future[Result]:
        return super().__call__(to, delivery) if to.id == "dead" else OK


async def test_looks_go_on_where_the_one_before_had_to_stop(rig: Works) -> None:
    rig.sink.answer = gate = NoAnswer()
    lease = await rig.outbox.lease(0)
    assert lease is not None
    await rig.outbox.record(lease, Changes(waiting=overdue("live", "gone")))
    await rig.start(hook("dead"), hook("live"), bounds=BOUNDS)
    assert rig.sink.contents("live") == []
    await rig.timers.advance(4 * 2.5)
    assert rig.sink.contents("live") == [DEAD]
    held = len(rig.sink.contents("dead"))
    assert len(rig.outbox._waiting) == DEAD  # what was for a hook that is no more is dropped
    assert sum(rig.outbox.asked) == held + 1  # what there is no room for is not read
    rig.sink.answer = lambda _hook, _delivery: OK
    gate.open()
    await rig.timers.advance(120)  # then it begins anew, with the oldest
    assert sorted(rig.sink.contents("dead")) == list(range(DEAD))
    assert held < 64
    assert rig.outbox._waiting == {}


async def test_bodies_are_read_few_at_once(rig: Works) -> None:
    hooks = [hook(f"h{n}") for n in range(100)]
    lease = await rig.outbox.lease(0)
    assert lease is not None
    await rig.outbox.record(lease, Changes(waiting=overdue(*(each.id for each in hooks))))
    await rig.start(hook("dead"), *hooks)
    await rig.quiet()
    assert max(rig.outbox.asked) == BODIES_AT_ONCE
    assert len(rig.sink.attempts) >= 100


async def test_a_hook_that_was_filled_while_bodies_were_read_takes_no_more(rig: Works) -> None:
    rig.sink.answer = NoAnswer()
    lease = await rig.outbox.lease(0)
    assert lease is not None
    await rig.outbox.record(lease, Changes(waiting=overdue()))
    rig.outbox.before["waiting"] = asyncio.Event()
    await rig.start(hook("dead"))
    await rig.publish(*(f"new {n}" for n in range(100)))
    [lane] = rig.dispatcher._lanes.values()
    full = lane.taken
    assert full
    rig.outbox.before.pop("waiting").set()
    await settled()
    assert lane.taken == full


async def test_what_comes_of_a_look_in_a_partition_that_was_lost_is_dropped(rig: Works) -> None:
    lease = await rig.outbox.lease(0)
    assert lease is not None
    await rig.outbox.record(lease, Changes(waiting=overdue("live")))
    rig.outbox.after["due"] = asyncio.Event()
    await rig.start(hook("live"))
    await rig.outbox.lease(0)  # another process
    await rig.timers.advance(2.5)  # memory has one process: it takes it again
    rig.outbox.after.pop("due").set()
    await settled()
    assert rig.outbox.asked == [1]


class WatchedOutbox(RedisOutbox):
    """Notes how many bodies of waiting deliveries are asked for."""

    def __init__(self, broker: RedisBroker, *, lease_s: float) -> None:
        super().__init__(broker, lease_s=lease_s)
        self.asked = 0

    async def waiting(self, lease: Lease, ids: Sequence[str]) -> list[Waiting]:
        self.asked += len(ids)
        return await super().waiting(lease, ids)


async def test_looks_in_redis_go_on_where_the_one_before_had_to_stop(
    redis_server: RedisServer,
) -> None:
    async with closing(RedisRig(redis_server)) as rig:
        broker = await rig.broker()
        outbox, store = WatchedOutbox(broker, lease_s=2.0), rig.store(broker)
        hooks = Hooks((hook("dead"), hook("live")))
        assert await store.save_hooks(hooks, await store.hooks(), START_MS)
        before = await rig.outbox(broker, lambda _: None)
        lease = await before.lease(broker.keyspace.partition(CID))
        assert lease is not None
        await before.record(lease, Changes(waiting=overdue("live", "gone")))
        await before.give_back(lease)
        timers = LoopTimers()
        sink = Sink(Timers())
        sink.answer = NoAnswer()
        dispatcher = Dispatcher(
            outbox=outbox, store=store, sink=sink, rng=Random(1), timers=timers, bounds=BOUNDS
        )
        async with aclosing(dispatcher):
            await dispatcher.start()
            await until(lambda: sink.contents("live"), "it gets its own")
            keys = broker.keyspace.outboxes[lease.partition]
            with redis_server.client() as client:
                await until(lambda: client.hlen(keys.waiting) == DEAD, "what is over is removed")
                assert client.zcard(keys.waiting_at) == DEAD
            assert sink.contents("live") == [DEAD]
            assert outbox.asked == len(sink.contents("dead")) + 1
