"""Subscriptions: what is handed over, and to whom not."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Broker
from tests.contract.harness import CID, OTHER, Recorder, caught_up, event

pytestmark = pytest.mark.anyio


async def test_only_subscribed_calls_are_handed_over(broker: Broker, recorder: Recorder) -> None:
    await broker.subscribe(OTHER)
    await broker.publish(event(1, cid=CID))
    await broker.publish(event(2, cid=OTHER))
    await caught_up(broker, recorder)
    assert (recorder.contents(CID), recorder.contents(OTHER)) == ([], [2])


async def test_everything_after_subscribe_returned_is_handed_over(
    broker: Broker, recorder: Recorder
) -> None:
    cids = [f"default:{n}" for n in range(50)]
    await asyncio.gather(*[broker.subscribe(cid) for cid in cids])
    await asyncio.gather(*[broker.publish(event(cid, cid=cid)) for cid in cids])
    await caught_up(broker, recorder)
    assert all(recorder.contents(cid) == [cid] for cid in cids)


async def test_nothing_is_handed_over_after_unsubscribe(broker: Broker, recorder: Recorder) -> None:
    await broker.subscribe(CID)
    await broker.unsubscribe(CID)
    await broker.publish(event(1))
    await caught_up(broker, recorder)
    assert recorder.contents() == []


async def test_subscribing_twice_hands_over_once(broker: Broker, recorder: Recorder) -> None:
    await asyncio.gather(broker.subscribe(CID), broker.subscribe(CID))
    await broker.publish(event(1))
    await caught_up(broker, recorder)
    assert recorder.contents() == [1]


async def test_a_call_can_be_left_and_joined_again(broker: Broker, recorder: Recorder) -> None:
    for n in range(10):
        await broker.subscribe(CID)
        await broker.publish(event(n))
        await caught_up(broker, recorder)
        await broker.unsubscribe(CID)
    assert recorder.contents() == list(range(10))


async def test_leaving_and_joining_at_once_ends_joined(broker: Broker, recorder: Recorder) -> None:
    await broker.subscribe(CID)
    await asyncio.gather(broker.unsubscribe(CID), broker.subscribe(CID))
    await broker.publish(event(1))
    await caught_up(broker, recorder)
    assert recorder.contents() == [1]


async def test_leaving_what_was_never_joined_is_harmless(broker: Broker) -> None:
    await broker.unsubscribe(CID)
