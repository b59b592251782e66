"""Fixtures for every test: the event loop. How long a test may take is said in pyproject.toml."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
