"""The contract suite runs on every broker: the rig makes brokers of the kind under test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from relay.broker import Broker, Store
from tests.contract.harness import MemoryRig, Recorder, RedisRig, Rig, closing
from tests.redis_server import redis_server, valkey_server

__all__ = ["redis_server", "valkey_server"]

KINDS = ["memory", "redis_server", "redis_sentinel", "redis_cluster", "valkey_server"]


@pytest.fixture(params=KINDS)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    kind = request.param
    made = MemoryRig() if kind == "memory" else RedisRig(request.getfixturevalue(kind))
    async with closing(made):
        yield made


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def broker(rig: Rig, recorder: Recorder) -> Broker:
    return await rig.broker(recorder=recorder)


@pytest.fixture
async def store(rig: Rig, broker: Broker) -> Store:
    return rig.store(broker)
