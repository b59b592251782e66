"""Fixtures for every test: the event loop, and Redis in the shapes that take seconds to start.

How long a test may take is said in pyproject.toml.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.redis_shapes import redis_cluster, redis_sentinel

__all__ = ["redis_cluster", "redis_sentinel"]

# On a machine that has more to do, how long something takes says nothing about it.
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
