"""RELAY_REDIS_REPLICAS: accepted means that replicas have it, too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from relay.broker import Limits
from relay.errors import Unavailable
from tests.contract.harness import CID, RedisRig, closing, event
from tests.redis_shapes import Watched

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig(redis_sentinel: Watched) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(redis_sentinel)) as made:
        yield made


async def test_an_event_that_a_replica_has_is_accepted(rig: RedisRig) -> None:
    broker = await rig.broker(Limits(replicas=1, publish_timeout_s=10.0))
    publication = await broker.publish(event(1))
    assert publication.position is not None
    assert publication.position.offset == 1


async def test_an_event_that_too_few_have_is_refused_and_its_repeat_is_found(
    rig: RedisRig,
) -> None:
    asking = await rig.broker(Limits(replicas=2, publish_timeout_s=4.0))
    with pytest.raises(Unavailable, match="only 1 of 2 replicas") as refused:
        await asking.publish(event(1, identity="x"))
    assert refused.value.reason == "replicas_short"
    content = await rig.broker(Limits(replicas=1, publish_timeout_s=10.0))
    again = await content.publish(event(1, identity="x"))
    assert again.duplicate
    assert again.position is not None
    assert (await content.positions([CID]))[0].offset == 1
