"""Rigs on real Redis: a shared server, or one of a test's own that it may break."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.harness import Recorder, RedisRig, closing
from tests.redis_server import RedisServer, redis_server, running

__all__ = ["redis_server"]


@pytest.fixture
async def rig(redis_server: RedisServer) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(redis_server)) as made:
        yield made


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
async def own_rig(own_server: RedisServer) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(own_server)) as made:
        yield made


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
