"""Processes are killed, Redis is restarted or full: the ledger of events balances all the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from random import Random
from uuid import uuid4

import pytest

from relay.broker import Limits, Span
from tests.egress.fleet import Fleet, fleet
from tests.egress.receiver import Receiver, receiving
from tests.egress.worker import LEASED, STEPS
from tests.redis_server import RedisServer, redis_server, running

__all__ = ["redis_server"]

pytestmark = pytest.mark.anyio

SOAK = int(os.environ.get("SOAK", "1"))
MANY = 5_000 * min(SOAK, 20)
LARGE = Limits(publish_timeout_s=20.0, dead_letter_bytes=64 * 2**20, outbox_bytes=64 * 2**20)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def ships(redis_server: RedisServer, receiver: Receiver) -> AsyncIterator[Fleet]:
    async with fleet(redis_server, f"test-{uuid4().hex}:", receiver, LARGE) as made:
        yield made


async def test_a_process_killed_once_it_has_a_lease_loses_nothing(ships: Fleet) -> None:
    ships.receiver.answers = [ships.answering(Random(1), failing=0)]
    await ships.set_hook()
    await ships.publish(400)
    victim = await ships.work(LEASED)
    await victim.says(f"at {LEASED}")
    await ships.work()
    await ships.work()
    await victim.kill()
    await ships.settled()
    await ships.balance()
    assert ships.accepted.keys() == ships.published


@pytest.mark.parametrize("step", [step for step in STEPS if step != LEASED])
async def test_a_process_killed_at_any_step_loses_nothing(ships: Fleet, step: str) -> None:
    ships.receiver.answers = [ships.answering(Random(1), failing=0)]
    await ships.set_hook()
    victim = await ships.work(step)
    others = [await ships.work(), await ships.work()]
    for each in (victim, *others):
        await each.says("working")
    await ships.shared(3)
    await ships.publish(400)
    await victim.says(f"at {step}")
    await victim.kill()
    await ships.settled()
    sent = await ships.balance()
    assert ships.accepted.keys() == ships.published
    if step in ("sent", "before settled"):
        assert max(sent.values()) == 2  # the receiver had it, and nobody knew
    numbers = {int(each.headers["x-webhook-attempt"]) for each in ships.receiver.requests}
    assert {1} < numbers


async def test_every_process_killed_in_turn_loses_nothing(ships: Fleet) -> None:
    rng = Random(7)
    ships.receiver.answers = [ships.answering(rng, failing=0.1)]
    await ships.set_hook(retry_schedule=(1,))
    workers = [await ships.work(), await ships.work()]
    for _ in range(4):
        await workers[-1].says("working")
        goal = len(ships.receiver.requests) + 50
        publishing = asyncio.create_task(ships.publish(500))
        await ships.receiver.until(goal)
        await workers.pop(0).kill()
        workers.append(await ships.work())
        await publishing
    await ships.settled()
    await ships.balance()


async def test_with_a_receiver_that_fails_every_fifth_time_all_arrive_or_are_listed(
    ships: Fleet,
) -> None:
    ships.receiver.answers = [ships.answering(Random(3), failing=0.2)]
    await ships.set_hook(pending_limit=1_000_000)
    workers = [await ships.work(), await ships.work()]
    for each in workers:
        await each.says("working")
    await ships.publish(MANY)
    await ships.settled(60.0 * max(1, MANY / 20_000))
    sent = await ships.balance()
    assert max(ships.accepted.values()) == 1
    assert max(sent.values()) == 3
    dead = await ships.outbox.dead_letters(Span(), MANY)
    # 0.8 % fail three times in a row.
    assert 0.002 < len(dead) / MANY < 0.02
    assert all(len(letter.tried.attempts) == 3 for letter in dead)
    ships.receiver.answers = [ships.answering(Random(3), failing=0)]
    ids, hook_ids = [letter.id for letter in dead], {letter.hook_id for letter in dead}
    assert await ships.outbox.replay(ids, hook_ids) == (len(dead), 0, 0)
    await ships.settled()
    assert ships.accepted.keys() == ships.published


async def test_redis_restarted_with_what_it_had_loses_nothing(receiver: Receiver) -> None:
    saving = ("--appendonly", "yes", "--appendfsync", "always")
    with running(*saving) as server:
        async with fleet(server, "test:", receiver, LARGE) as ships:
            receiver.answers = [ships.answering(Random(5), failing=0.2)]
            await ships.set_hook(retry_schedule=(1,))
            for each in (await ships.work(), await ships.work()):
                await each.says("working")
            publishing = asyncio.create_task(ships.publish(1500))
            for seen in (100, 600):
                await receiver.until(seen)
                server.kill()
                server.start()
            await publishing
            await ships.settled()
            await ships.balance()


async def test_a_full_redis_drains(receiver: Receiver) -> None:
    with running() as server:
        async with fleet(server, "test:", receiver, LARGE) as ships:
            receiver.answers = [ships.answering(Random(9), failing=0.2)]
            await ships.set_hook()
            await ships.publish(500)
            with server.client() as client:
                client.config_set("maxmemory", 1)
                await (await ships.work()).says("working")
                await ships.settled()
                client.config_set("maxmemory", 0)
            await ships.balance()
