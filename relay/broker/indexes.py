"""How records are found: the indexes, what stands in them, and which of them answer a query.

Pure. An index is a sorted set of *marks*: 20 digits of when the record was created, its id, and in
the index of members behind a zero byte when the user became one (so that leaving and joining again
are two marks). A mark is set before its record is written and taken away after: an index holds too
much, never too little, so whatever it names is looked at before it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

import msgspec

from relay.broker.rules import GUEST
from relay.calls import Call
from relay.filters import CALLS, USERS, All, Filter, Query, Test
from relay.filters.reading import IDENTITIES_MOST
from relay.users import User

UNION_MOST: Final = 100
"""Indexes that are read side by side for one condition (``members $in …``)."""

CHOICES_MOST: Final = 200
"""Indexes whose sizes are asked for to find the shortest way."""

_DIGITS: Final = 20
_LAST: Final = 10**_DIGITS - 1
_BEHIND: Final = "\x01"
"""Sorts behind a mark's zero byte and before every character of an id."""


class Mark(NamedTuple):
    """What stands in an index for a record."""

    where: str
    text: str


class Span(NamedTuple):
    """A stretch of an index: from ``low`` on, up to but without ``high``."""

    low: str
    high: str

    def after(self, text: str, *, ascending: bool) -> Span:
        """Return what is left when everything up to a mark was read."""
        return Span(text + "\0", self.high) if ascending else Span(self.low, text)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a query's records are.

    ``identities`` names them (None: it does not). Otherwise each of ``choices`` is a number of
    indexes that have all of them between them, within ``span``. ``streams`` says that an index is
    in the order that the query wants.
    """

    identities: tuple[str, ...] | None
    choices: tuple[tuple[str, ...], ...]
    span: Span
    streams: bool


def _stamp(ns: int) -> str:
    return f"{min(max(ns, 0), _LAST):0{_DIGITS}d}"


def marks_of_call(call: Call) -> frozenset[Mark]:
    """Return all marks of a call."""
    text = _stamp(call.created_at) + call.cid
    names = (CALLS.name, f"calls:type:{call.type}", f"calls:by:{call.created_by}")
    members = (
        Mark(f"calls:member:{member.user_id}", f"{text}\0{member.created_at}")
        for member in call.members
    )
    return frozenset([*(Mark(name, text) for name in names), *members])


def marks_of_user(user: User) -> frozenset[Mark]:
    """Return all marks of a user."""
    if user.role == GUEST:
        return frozenset()
    return frozenset([Mark(USERS.name, _stamp(user.created_at) + user.id)])


def identity_in(text: str) -> str:
    """Return the id of the record that a mark stands for."""
    return text[_DIGITS:].partition("\0")[0]


def is_of(text: str, record: Call | User) -> bool:
    """Tell whether a mark stands where this record belongs, and not an earlier one of its id."""
    return text.startswith(_stamp(record.created_at))


_INDEXED: Final = {
    CALLS.name: {
        "type": "calls:type:",
        "created_by_user_id": "calls:by:",
        "members": "calls:member:",
    },
    USERS.name: {},
}
"""Field → what the names of its indexes begin with, by schema."""

NARROWING: Final = {
    CALLS.name: "cid, type, created_by_user_id, members or a range of created_at",
    USERS.name: "id or a range of created_at",
}
"""What a refusal says to narrow a query by."""


def plan(query: Query) -> Plan:
    """Return where the records of a query are."""
    tests = list(_needed(query.filter))
    return Plan(
        identities=_identities(query, tests),
        choices=_choices(query, tests),
        span=_span(query, tests),
        streams=_streams(query),
    )


def _needed(filter_: Filter) -> Iterator[Test]:
    """Yield the tests that every match passes."""
    if isinstance(filter_, Test):
        yield filter_
    elif isinstance(filter_, All):
        for part in filter_.parts:
            yield from _needed(part)


def _values(tests: Sequence[Test], field: str) -> list[str] | None:
    """Return the values of which a field must have one, None when that is not said."""
    for test in tests:
        if test.field == field and test.operator == "$eq" and isinstance(test.operand, str):
            return [test.operand]
    for test in tests:
        if test.field == field and test.operator == "$in":
            return list(dict.fromkeys(test.operand))
    return None


def _identities(query: Query, tests: Sequence[Test]) -> tuple[str, ...] | None:
    named = _values(tests, query.schema.identity)
    if named is not None:
        return tuple(named)
    if query.schema.name == CALLS.name:
        kinds, ids = _values(tests, "type"), _values(tests, "id")
        if kinds is not None and ids is not None and len(kinds) * len(ids) <= IDENTITIES_MOST:
            return tuple(f"{kind}:{call_id}" for kind, call_id in product(kinds, ids))
    return None


def _choices(query: Query, tests: Sequence[Test]) -> tuple[tuple[str, ...], ...]:
    """Return the ways to go, those of few indexes first; the last one has everything."""
    ways = [
        tuple(prefix + value for value in values)
        for field, prefix in _INDEXED[query.schema.name].items()
        for test in tests
        if test.field == field
        for values in _covering(test)
        if len(values) <= UNION_MOST
    ]
    chosen: list[tuple[str, ...]] = []
    size = 0
    for way in sorted(dict.fromkeys(ways), key=len):
        size += len(way)
        if size > CHOICES_MOST:
            break
        chosen.append(way)
    return (*chosen, (query.schema.name,))


def _covering(test: Test) -> list[list[str]]:
    """Return lists of values; of each one, a record that passes the test has at least one."""
    match test.operator, test.operand:
        case "$in", values:
            return [list(dict.fromkeys(values))]
        case "$eq", list() as values:
            return [[value] for value in dict.fromkeys(values)]
        case "$eq" | "$contains", str() as value:
            return [[value]]
    return []


_BOUNDS: Final[dict[str, Callable[[Any], tuple[int, int]]]] = {
    "$eq": lambda at: (at, at),
    "$gt": lambda at: (at + 1, _LAST),
    "$gte": lambda at: (at, _LAST),
    "$lt": lambda at: (0, at - 1),
    "$lte": lambda at: (0, at),
    "$in": lambda times: (min(times, default=_LAST), max(times, default=0)),
}


def _span(query: Query, tests: Sequence[Test]) -> Span:
    first, last = 0, _LAST - 1
    for test in tests:
        if test.field == "created_at" and test.operator in _BOUNDS:
            low, high = _BOUNDS[test.operator](test.operand)
            first, last = max(first, low), min(last, high)
    span = Span(_stamp(first), _stamp(last + 1))
    return _behind_cursor(query, span) if _streams(query) else span


def _streams(query: Query) -> bool:
    return [sort.field for sort in query.sort] == ["created_at"]


def ascends(query: Query) -> bool:
    """Tell in which direction an index is walked for a query that it answers in its order."""
    return query.is_ascending() is query.is_forward()


def _behind_cursor(query: Query, span: Span) -> Span:
    if query.cursor is None:
        return span
    at = _stamp(query.cursor.values[0]) + query.cursor.identity
    if ascends(query):
        return Span(max(span.low, at + _BEHIND), span.high)
    return Span(span.low, min(span.high, at))
