from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.edges import Edges, edges


@pytest.fixture
async def relay() -> AsyncIterator[Edges]:
    async with edges() as found:
        yield found
