"""Real processes on a real Redis, shared by the tests of one module unless they break something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cloud import cloud, moto
from tests.processes import RelayProcess, relay_pair
from tests.redis_server import RedisServer, redis_server

__all__ = ["cloud", "moto", "redis_server"]


@pytest.fixture(scope="module")
def pair(redis_server: RedisServer) -> Iterator[tuple[RelayProcess, RelayProcess]]:
    """Two relays on one Redis."""
    with relay_pair(redis_server.url, redis_prefix="pair:") as relays:
        yield relays


@pytest.fixture(scope="module", params=["memory", "redis"])
def relay(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """One relay, once with each broker."""
    url = ""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url
    with RelayProcess(redis_url=url) as process:
        yield process
