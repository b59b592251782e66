"""One table sends every bad input to the HTTP doors; the table itself is tests/bad_input.py."""

from __future__ import annotations

import pytest

from tests import bad_input
from tests.bad_input import Target
from tests.edges import KEY, MAX_BYTES, NOW_NS, SECRET, edges

pytestmark = pytest.mark.anyio

TARGET = Target(KEY, SECRET, MAX_BYTES, now=lambda: NOW_NS / 1e9)


@pytest.mark.parametrize("row", bad_input.rows(TARGET), ids=str)
async def test_bad_input_is_refused_counted_and_forgotten(row: bad_input.Row) -> None:
    async with edges() as relay:
        await bad_input.check(relay.client, TARGET, row)


def test_every_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in bad_input.rows(TARGET)]
    assert len(names) == len(set(names))
