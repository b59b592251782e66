"""Fixtures for every test: the event loop, and a limit on how long a test may take."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest

TEST_LIMIT_S = 120


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """End the run with every stack on the screen when a test hangs."""
    faulthandler.dump_traceback_later(TEST_LIMIT_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
