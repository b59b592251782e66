"""The one table that every benchmark adds rows to."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was measured, what it cost, and what it may cost.

    ``trouble`` says why it misses its limit or failed; it is printed below the table.
    """

    what: str
    broker: str
    door: str = MISSING
    cost: str = MISSING
    floor: str = MISSING
    ratio: str = MISSING
    limit: str = MISSING
    events_per_s: str = MISSING
    per_write: str = MISSING
    busy: str = MISSING
    latency: str = MISSING
    floor_latency: str = MISSING
    trouble: str = ""


TITLES = {
    "what": "what",
    "broker": "broker",
    "door": "door",
    "cost": "server CPU",
    "floor": "C loop",
    "ratio": "× (rounds)",
    "limit": "limit",
    "events_per_s": "events/s",
    "per_write": "events/write",
    "busy": "core",
    "latency": "p50 / p99 ms",
    "floor_latency": "C loop's",
}


def render(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with aligned columns."""
    names = [field.name for field in fields(Row) if field.name in TITLES]
    lines = [[TITLES[name] for name in names]]
    lines += [[str(getattr(row, name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: list[str], widths: list[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
