"""The connection on which publications arrive: confirmations, silence, subscriptions taken away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.broker.keyspace import HEADER, KEPT, Keyspace
from relay.broker.resp import Address, pack
from relay.broker.subscriber import Subscriber
from relay.errors import Unavailable
from relay.events import Position
from tests.broker.fake_redis import FakeRedis, faking
from tests.contract.harness import CID, OTHER, Recorder, RedisRig, event, until

pytestmark = pytest.mark.anyio

KEYS = Keyspace("t:")
CHANNEL = KEYS.channel(CID).encode()
LIVE = pack((b"message", b"t:live", b"{}"))


def push(kind: bytes, channel: bytes = CHANNEL) -> bytes:
    return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (len(kind), kind, len(channel), channel)


def confirm(command: list[bytes]) -> bytes:
    """Answer as a Redis in subscribed mode."""
    if command == [b"PING"]:
        return b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
    return push(command[0].lower(), command[1])


@asynccontextmanager
async def subscribed(
    recorder: Recorder, *, silence_s: float = 5.0, timeout_s: float = 2.0
) -> AsyncIterator[tuple[Subscriber, FakeRedis]]:
    async with faking(confirm) as fake:
        subscriber = Subscriber(
            Address.parse(fake.url),
            "test:subscribe",
            keyspace=KEYS,
            node="here",
            timeout_s=timeout_s,
            changed=lambda: None,
            ping_s=0.02,
            silence_s=silence_s,
        )
        subscriber.listen(recorder, {KEYS.live: recorder.on_live}, lambda cid, token: None)
        await subscriber.start()
        try:
            yield subscriber, fake
        finally:
            await subscriber.aclose()


def channels(fake: FakeRedis, command: bytes) -> list[bytes]:
    return [each[1] for each in fake.commands if each[0] == command]


async def test_subscribing_waits_for_its_own_confirmation(recorder: Recorder) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        fake.answer = lambda command: None
        task = asyncio.create_task(subscriber.subscribe(CID))
        await until(lambda: channels(fake, b"SSUBSCRIBE") == [CHANNEL], "it is asked for")
        fake.writers[0].write(push(b"ssubscribe", KEYS.channel(OTHER).encode()) + LIVE)
        await until(lambda: recorder.live, "what came after it")
        assert not task.done()
        fake.writers[0].write(push(b"ssubscribe"))
        await task


async def test_only_the_last_answer_to_a_channel_counts(recorder: Recorder) -> None:
    async with subscribed(recorder, timeout_s=0.1) as (subscriber, fake):
        fake.answer = lambda command: None
        with pytest.raises(Unavailable):
            await subscriber.subscribe(CID)
        task = asyncio.create_task(subscriber.subscribe(CID))
        subscriber._timeout_s = 5.0
        await until(lambda: len(channels(fake, b"SSUBSCRIBE")) == 2, "asked for again")
        # The late confirmation is of the first time: the subscription is about to be given up.
        fake.writers[0].write(push(b"ssubscribe") + push(b"sunsubscribe") + LIVE)
        await until(lambda: recorder.live, "what came after it")
        assert not task.done()
        fake.writers[0].write(push(b"ssubscribe"))
        await task
        assert recorder.interruptions == []


async def test_unsubscribing_ends_who_still_waits(recorder: Recorder) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        fake.answer = lambda command: None
        task = asyncio.create_task(subscriber.subscribe(CID))
        await asyncio.sleep(0)
        subscriber.unsubscribe(CID)
        with pytest.raises(Unavailable, match="given up"):
            await task


async def test_a_subscription_that_redis_ends_is_made_again_and_told(recorder: Recorder) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        await subscriber.subscribe(CID)
        await subscriber.subscribe(OTHER)
        fake.writers[0].write(push(b"sunsubscribe"))
        await until(lambda: recorder.interruptions, "it is told")
        assert recorder.interruptions == [{CID}]
        assert channels(fake, b"SSUBSCRIBE").count(CHANNEL) == 2


async def test_a_silent_connection_is_replaced_and_everything_subscribed_again(
    recorder: Recorder,
) -> None:
    async with subscribed(recorder, silence_s=30.0) as (subscriber, fake):
        cids = [f"default:{n}" for n in range(2500)]
        await asyncio.gather(*map(subscriber.subscribe, cids))
        first = fake.writers[0]
        fake.answer = lambda command: None
        subscriber._silence_s = 1.0
        await until(first.transport.is_closing, "the silent connection is closed")
        subscriber._silence_s = 30.0  # a busy machine is silent, too
        fake.answer = confirm
        await until(lambda: recorder.interruptions, "the loss is told")
        assert recorder.interruptions == [set(cids)]
        assert channels(fake, b"SSUBSCRIBE").count(KEYS.channel(cids[0]).encode()) == 2


async def test_a_connection_that_answers_pings_is_kept(recorder: Recorder) -> None:
    async with subscribed(recorder, silence_s=3.0) as (_, fake):
        await until(lambda: fake.commands.count([b"PING"]) > 160, "pings for longer than that")
        assert len(fake.writers) == 1


async def test_a_refused_subscription_ends_the_connection(recorder: Recorder) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        refuse = iter([b"-NOPERM this user has no permissions\r\n"])
        fake.answer = lambda command: (
            next(refuse, confirm(command)) if command[0] == b"SSUBSCRIBE" else confirm(command)
        )
        await subscriber.subscribe(CID)
        assert len(fake.writers) == 2


async def test_what_is_subscribed_meanwhile_is_made_on_the_next_connection(
    recorder: Recorder,
) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        fake.writers[0].transport.abort()
        await until(lambda: not subscriber.is_connected, "the loss is noticed")
        await subscriber.subscribe(CID)
        assert len(fake.writers) == 2
        message = HEADER.pack(KEPT, b"abcdefgh", 7) + b"{}"
        fake.writers[1].write(pack((b"smessage", CHANNEL, message)))
        await until(lambda: recorder.publications, "a publication")
        assert recorder.publications == [(CID, Position("abcdefgh", 7), b"{}")]
        position = recorder.publications[0][1]
        assert position is not None
        assert position.epoch == "abcdefgh"


async def test_nothing_of_a_call_that_was_left_is_handed_over(recorder: Recorder) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        await subscriber.subscribe(CID)
        subscriber.unsubscribe(CID)
        message = HEADER.pack(KEPT, b"abcdefgh", 7) + b"{}"
        fake.writers[0].write(pack((b"smessage", CHANNEL, message)) + LIVE)
        await until(lambda: recorder.live, "what came after it")
        assert recorder.publications == []


async def test_many_epochs_are_read_right(recorder: Recorder) -> None:
    async with subscribed(recorder) as (subscriber, fake):
        await subscriber.subscribe(CID)
        names = [f"{n:08}" for n in range(10_050)]
        for name in names:
            message = HEADER.pack(KEPT, name.encode(), 1) + b"{}"
            fake.writers[0].write(pack((b"smessage", CHANNEL, message)))
        await until(lambda: len(recorder.publications) == len(names), "all of them")
        assert [p.epoch for _, p, _ in recorder.publications if p] == names


async def test_a_frozen_redis_is_survived(own_rig: RedisRig, recorder: Recorder) -> None:
    broker = await own_rig.broker(recorder=recorder)
    await broker.subscribe(CID)
    own_rig.server.freeze()
    subscriber = broker._subscriber
    assert isinstance(subscriber, Subscriber)
    subscriber._ping_s, subscriber._silence_s = 0.02, 0.3
    await until(lambda: not subscriber.is_connected, "the silence is noticed")
    subscriber._silence_s = 30.0  # a busy machine is silent, too
    own_rig.server.thaw()
    await until(lambda: recorder.interruptions == [{CID}], "it is told")
    await broker.publish(event(1))
    await until(lambda: recorder.contents() == [1], "it goes on")
