"""One relay for the tests of a module, once with each broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cloud import cloud, moto
from tests.processes import RelayProcess
from tests.redis_server import RedisServer, redis_server

__all__ = ["cloud", "moto", "redis_server"]


@pytest.fixture(scope="module", params=["memory", "redis"])
def relay(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    url = ""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url
    with RelayProcess(redis_url=url) as process:
        yield process
