"""Find what a query matches by way of indexes, and look at no more records than its budget allows.

    found = await Queries().find(query, source)

The same for both stores: a ``Source`` is what differs. The shortest index that has every match is
walked, each record it names is looked at, and the walk ends when the page is full; a query that
wants another order than by ``created_at`` needs all its candidates first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from relay.broker import indexes
from relay.broker.indexes import Plan, Span
from relay.calls import Call
from relay.errors import BadInput, Unavailable
from relay.filters import Found, Query, arrange, page
from relay.users import User

R = TypeVar("R", bound=Call | User)

RECORDS_MOST: Final = 10_000
"""Records that one query may look at."""

BYTES_MOST: Final = 64 * 1024 * 1024
"""Bytes of records that one query may read from Redis."""

AT_ONCE: Final = 250
"""Records that are asked for together; large ones fewer, see ``Budget.share``."""

FIRST: Final = 26
"""Records that are asked for before it is known how large they are: a page and one more."""

QUERIES_AT_ONCE: Final = 4
QUERY_S: Final = 5.0
TURN_S: Final = 0.005
"""How long records are looked at without a break."""

_SHARE_BYTES: Final = 4 * 1024 * 1024


class Budget:
    """What one query may still look at. Raises ``BadInput`` when it would be more."""

    def __init__(
        self, query: Query, *, records: int = RECORDS_MOST, bytes_: int = BYTES_MOST
    ) -> None:
        self._query = query
        self._records = self._records_left = records
        self._bytes = self._bytes_left = bytes_

    def check(self, candidates: int) -> None:
        """Refuse a query that has to look at this many more records."""
        if candidates > self._records_left:
            raise self._refusal(f"{self._records} {self._query.schema.name}")

    def spend(self, records: int, bytes_: int) -> None:
        """Take note of what was read."""
        self._records_left -= records
        self._bytes_left -= bytes_
        if self._bytes_left < 0:
            raise self._refusal(f"{self._bytes} bytes")

    def share(self, wanted: int) -> int:
        """Return how many records to read next: few when those so far were large."""
        looked = self._records - self._records_left
        mean = (self._bytes - self._bytes_left) // looked if looked else 0
        fitting = _SHARE_BYTES // mean if mean else AT_ONCE
        return max(1, min(wanted, AT_ONCE, fitting, self._records_left))

    def _refusal(self, what: str) -> BadInput:
        narrowing = indexes.NARROWING[self._query.schema.name]
        order = "" if indexes.plan(self._query).streams else ", or sort by created_at alone"
        return BadInput(
            f"filter_conditions has to look at more than {what}: narrow it by {narrowing}{order}",
            reason="query_too_costly",
        )


class Source(Protocol[R]):
    """The records of one kind and their indexes."""

    async def count(self, index: str, span: Span) -> int:
        """Return how many marks of an index lie in a span."""
        ...

    async def marks(self, index: str, span: Span, most: int, *, ascending: bool) -> list[str]:
        """Return the first marks of a span, or, from its end on, the last."""
        ...

    async def look(self, identities: Sequence[str], budget: Budget) -> list[R | None]:
        """Return records by their ids, None for those that are not there."""
        ...


class Queries:
    """Answers queries, a few at a time: what else a process asks of Redis goes by the same link.

    ``query_s`` bounds how long one takes, its wait for the others included.
    """

    def __init__(self, *, at_once: int = QUERIES_AT_ONCE, query_s: float = QUERY_S) -> None:
        self._query_s = query_s
        self._querying = asyncio.Semaphore(at_once)

    async def find(self, query: Query, source: Source[R]) -> Found[R]:
        """Return the page that a query wants.

        Raises ``BadInput`` when it would cost too much, ``Unavailable`` when it takes too long.
        """
        try:
            async with asyncio.timeout(self._query_s), self._querying:
                return await find(query, source, Budget(query))
        except TimeoutError:
            raise Unavailable(
                f"the query was not answered within {self._query_s:g} s: narrow it, or try again"
            ) from None


async def find(query: Query, source: Source[R], budget: Budget) -> Found[R]:
    """Return the page that a query wants; raises ``BadInput`` when it would cost too much."""
    plan = indexes.plan(query)
    if plan.identities is not None:
        named = await _look_at(plan.identities, source, budget)
        return arrange(await _matches(named, query), query)
    names, candidates = await _shortest(plan, source)
    if plan.streams:
        return page(await _stream(query, plan, names, source, budget), query)
    budget.check(candidates)
    matches: list[R] = []
    async for records in _records(plan.span, names, source, budget, ascending=True):
        matches.extend(await _matches(records, query))
    return arrange(matches, query)


async def _matches(records: Iterable[R], query: Query) -> list[R]:
    """Return the records that a filter matches; a costly one lets others have their turn."""
    now = asyncio.get_running_loop().time
    due = now() + TURN_S
    found: list[R] = []
    for record in records:
        if query.filter.matches(record):
            found.append(record)
        if now() > due:
            await asyncio.sleep(0)
            due = now() + TURN_S
    return found


async def _look_at(identities: Sequence[str], source: Source[R], budget: Budget) -> list[R]:
    found: list[R] = []
    begin, portion = 0, FIRST
    while begin < len(identities):
        budget.check(1)
        wanted = identities[begin : begin + budget.share(portion)]
        found.extend(record for record in await source.look(wanted, budget) if record is not None)
        begin += len(wanted)
        portion *= 2
    return found


async def _shortest(plan: Plan, source: Source[R]) -> tuple[tuple[str, ...], int]:
    """Return the choice with the fewest candidates, and how many there are."""
    names = list(dict.fromkeys(name for choice in plan.choices for name in choice))
    counts = await asyncio.gather(*(source.count(name, plan.span) for name in names))
    count = dict(zip(names, counts, strict=True))
    sizes = [sum(count[name] for name in choice) for choice in plan.choices]
    best = sizes.index(min(sizes))
    return plan.choices[best], sizes[best]


async def _stream(
    query: Query, plan: Plan, names: Sequence[str], source: Source[R], budget: Budget
) -> list[R]:
    """Return the first matches in the order of the indexes, one more than the page holds."""
    matches: list[R] = []
    ascending = indexes.ascends(query)
    chunks = _records(plan.span, names, source, budget, ascending=ascending, first=query.limit + 1)
    async for records in chunks:
        matches.extend(await _matches(records, query))
        if len(matches) > query.limit:
            break
    return matches[: query.limit + 1]


async def _records(
    span: Span,
    names: Sequence[str],
    source: Source[R],
    budget: Budget,
    *,
    ascending: bool,
    first: int = FIRST,
) -> AsyncIterator[list[R]]:
    """Yield the records that indexes name, each once, in their order and in growing portions."""
    walk = _Walk(span, names, source, ascending=ascending)
    portion = first
    while texts := await walk.take(budget.share(portion)):
        budget.check(len(texts))
        looked = await source.look([indexes.identity_in(text) for text in texts], budget)
        yield [
            record
            for text, record in zip(texts, looked, strict=True)
            if record is not None and indexes.is_of(text, record)
        ]
        portion *= 2


class _Walk:
    """Marks of several indexes in one order, those of one record once."""

    def __init__(
        self, span: Span, names: Sequence[str], source: Source[R], *, ascending: bool
    ) -> None:
        self._source = source
        self._ascending = ascending
        self._unread: dict[str, Span] = dict.fromkeys(names, span)
        self._ready: dict[str, deque[str]] = {name: deque() for name in names}
        self._last = ""

    async def take(self, wanted: int) -> list[str]:
        """Return the next marks, at most so many; none at the end."""
        taken: list[str] = []
        while len(taken) < wanted:
            await self._refill(wanted)
            ready = [texts for texts in self._ready.values() if texts]
            if not ready:
                break
            text = (min if self._ascending else max)(ready, key=lambda texts: texts[0]).popleft()
            record = text.partition("\0")[0]
            if record != self._last:
                self._last = record
                taken.append(text)
        return taken

    async def _refill(self, most: int) -> None:
        """Read on in every index of which nothing is ready."""
        names = [name for name in self._unread if not self._ready[name]]
        if not names:
            return
        read = await asyncio.gather(
            *(
                self._source.marks(name, self._unread[name], most, ascending=self._ascending)
                for name in names
            )
        )
        for name, texts in zip(names, read, strict=True):
            self._ready[name].extend(texts)
            if len(texts) < most:
                del self._unread[name]
            else:
                self._unread[name] = self._unread[name].after(texts[-1], ascending=self._ascending)
