"""The tables that the benchmarks add rows to, one for each type of row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

MISSING = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what was measured, what it cost, and what it may cost.

    ``trouble`` says why it misses its limit or failed; it is printed below the table.
    """

    TITLES: ClassVar[dict[str, str]] = {
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

    @property
    def name(self) -> str:
        """What to call the row below the table."""
        return ", ".join(filter(None, (self.what.strip(), self.broker, self.door)))


@dataclass(frozen=True, slots=True)
class HostileRow:
    """One line: what well-behaved watchers feel of one kind of hostile peer, and what it costs."""

    TITLES: ClassVar[dict[str, str]] = {
        "what": "hostile peers that …",
        "alone": "alone: p50 / p99 / max ms",
        "sink": "peers at the sink",
        "relay": "peers at the relay",
        "ratio": "p99 × sink (rounds)",
        "busy": "core",
        "memory": "KiB/peer",
        "bound": "bound",
        "closed": "closed, by why",
        "told": "told",
    }

    what: str
    alone: str = MISSING
    sink: str = MISSING
    relay: str = MISSING
    ratio: str = MISSING
    busy: str = MISSING
    memory: str = MISSING
    bound: str = MISSING
    closed: str = MISSING
    told: str = MISSING
    trouble: str = ""

    @property
    def name(self) -> str:
        """What to call the row below the table."""
        return f"peers that {self.what}"


AnyRow = Row | HostileRow


def render(rows: Sequence[AnyRow]) -> str:
    """Return the rows as Markdown tables with aligned columns, one for each type of row."""
    kinds = dict.fromkeys(type(row) for row in rows)
    return "\n\n".join(_table([row for row in rows if type(row) is kind]) for kind in kinds)


def _table(rows: Sequence[AnyRow]) -> str:
    names = list(rows[0].TITLES)
    lines = [list(rows[0].TITLES.values())]
    lines += [[str(getattr(row, name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(_line(cells, widths) for cells in lines)


def _line(cells: list[str], widths: list[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
