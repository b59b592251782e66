"""Fixtures for every test: the event loop, and Redis in the shapes that take seconds to start.

How long a test may take is said in pyproject.toml.
"""

from __future__ import annotations

import pytest

from tests.redis_shapes import redis_cluster, redis_sentinel

__all__ = ["redis_cluster", "redis_sentinel"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
