"""docs/queries.md says what the code does: its example is read, its tables and bounds are true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from relay import calls
from relay.broker import finding, rules
from relay.filters import CALLS, MEMBERS, USERS, Schema, reading, schemas
from relay.filters.conditions import CHECKS
from tests.filters.records import query

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text()


def words(row: str) -> list[str]:
    """Return what stands in backquotes in the table's row that begins so."""
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {row} |")]
    return re.findall("`([^`]+)`", line)


def test_the_example_is_a_query() -> None:
    [example] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    body = json.loads(example)
    assert query(body.pop("filter_conditions"), **body).limit == 25


@pytest.mark.parametrize("schema", [CALLS, MEMBERS, USERS], ids=lambda schema: schema.name)
def test_every_field_is_listed(schema: Schema) -> None:
    assert words(schema.name) == list(schema.fields)


def test_every_operator_is_listed() -> None:
    table = PAGE.partition("## Operators")[2].partition("## Order")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\$\w+)`", "".join(first))) == {*CHECKS, "$and", "$or", "$nor"}


@pytest.mark.parametrize(
    "said",
    [
        f"at most {schemas.PATH_MOST} names deep",
        f"`sort` takes up to {reading.SORT_MOST} fields",
        f"`limit` is 1 to {reading.LIMIT_MAX}, {reading.LIMIT_DEFAULT} by",
        f"| levels of `$and`, `$or`, `$nor` | {reading.DEPTH_MOST} |",
        f"| conditions in one query | {reading.CONDITIONS_MOST} |",
        f"| {reading.LIST_MOST}; of `cid` (users: `id`;",
        f"members: `user_id`) {reading.IDENTITIES_MOST} |",
        f"| {reading.TEXT_MOST} characters; to complete {reading.AUTOCOMPLETE_MOST} |",
        f"| {finding.RECORDS_MOST}, and {finding.BYTES_MOST >> 20} MiB of them in Redis |",
        f"| {finding.QUERY_S:g} s, then 503 |",
        f"one record of at most {rules.CALL_BYTES >> 10} KiB, with at most {calls.MEMBERS_MOST}",
        f"away for {rules.GUEST_LIFE_S // 3600} hours",
    ],
)
def test_every_bound_is_the_codes(said: str) -> None:
    assert said in PAGE
