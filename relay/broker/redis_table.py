"""Records of one kind in Redis: JSON, one key each, changed by compare-and-swap, found by indexes.

Every command names one key, so that it runs on a Cluster. A record's marks are set before it is
written and taken away after (see ``indexes``): a crash in between leaves a mark too much, which
queries look behind and nothing else notices.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Generic, TypeVar

from relay import logs, wire
from relay.broker import scripts
from relay.broker.finding import AT_ONCE, Budget
from relay.broker.indexes import Mark, Span
from relay.broker.keyspace import Keyspace
from relay.broker.link import Link
from relay.broker.turns import Turns
from relay.calls import Call
from relay.errors import Refused, Unavailable
from relay.users import User

log = logs.get(__name__)

R = TypeVar("R", bound=Call | User)

ATTEMPTS: Final = 20
"""Tries to change a record while other processes change it too."""

_PAUSE_S: Final = 0.005


class Table(Generic[R]):
    """Records by their ids. ``text_of`` may refuse one, ``life_s`` 0 means for ever."""

    def __init__(
        self,
        redis: Link,
        keyspace: Keyspace,
        kind: type[R],
        *,
        key: Callable[[str], str],
        text_of: Callable[[R], bytes],
        marks_of: Callable[[R], frozenset[Mark]],
        life_s: Callable[[R], int],
    ) -> None:
        self._redis = redis
        self._keyspace = keyspace
        self._read = wire.reader(kind)
        self._key = key
        self._text_of = text_of
        self._marks_of = marks_of
        self._life_s = life_s
        self._turns = Turns()
        self._random = random.Random()  # noqa: S311 - jitter, not secrets

    # -- reading --------------------------------------------------------------------------------

    async def get(self, identity: str) -> R | None:
        """Return a record, None when there is none."""
        return self._record(await self._redis.request("GET", self._key(identity)))

    async def get_many(self, identities: Collection[str]) -> dict[str, R]:
        """Return records by their ids; those that are not there are left out."""
        names = list(dict.fromkeys(identities))
        found: dict[str, R] = {}
        for begin in range(0, len(names), AT_ONCE):
            wanted = names[begin : begin + AT_ONCE]
            texts = await self._texts(wanted)
            found.update(
                (name, self._read(text))
                for name, text in zip(wanted, texts, strict=True)
                if text is not None
            )
        return found

    async def _texts(self, identities: Sequence[str]) -> list[bytes | None]:
        keys = map(self._key, identities)
        return list(await asyncio.gather(*(self._redis.request("GET", key) for key in keys)))

    def _record(self, text: bytes | None) -> R | None:
        return self._read(text) if text else None

    # -- changing -------------------------------------------------------------------------------

    async def put(
        self, identity: str, change: Callable[[R | None], R | None]
    ) -> tuple[R | None, R | None]:
        """Change a record (None = there is none), and return it before and after.

        The same object twice when nothing changed. ``change`` may be called more than once, and
        what it raises goes to the caller. Raises ``Unavailable`` when others change the record all
        the time, and when the outcome is unknown.
        """
        key = self._key(identity)
        text: bytes | None = await self._redis.request("GET", key)
        before = self._record(text)
        if change(before) == before:
            await self._prolong(key, before)
            return before, before
        async with self._turns.of(key) as waited:
            if waited:
                text = await self._redis.request("GET", key)
            return await self._swap(key, text or b"", change)

    async def _swap(
        self, key: str, text: bytes, change: Callable[[R | None], R | None]
    ) -> tuple[R | None, R | None]:
        """Repeat the change until nobody comes in between.

        Marks are taken away only when it is certain that no record has them: a mark too much does
        no harm, one that is missing hides a record.
        """
        stray: frozenset[Mark] = frozenset()
        for _ in range(ATTEMPTS):
            before = self._record(text)
            old = self._marks(before)
            try:
                after = change(before)
                new = b"" if after is None else self._text_of(after)
            except Refused:
                await self._unmark(stray - old)
                raise
            if after == before:
                await self._unmark(stray - old)
                return before, before
            marks = self._marks(after)
            await self._mark(marks - old)
            life_s = 0 if after is None else self._life_s(after)
            present = await self._redis.run(scripts.REPLACE, [key], text, new, life_s)
            if present == new:
                await self._unmark((old | stray) - marks)
                return before, after
            stray |= marks
            text = present
            await asyncio.sleep(self._random.uniform(0, _PAUSE_S))
        raise Unavailable("too many are changing this at once: try again")

    def _marks(self, record: R | None) -> frozenset[Mark]:
        return frozenset() if record is None else self._marks_of(record)

    async def _mark(self, marks: Collection[Mark]) -> None:
        await asyncio.gather(
            *(
                self._redis.request("ZADD", self._keyspace.index(where), 0, text)
                for where, text in marks
            )
        )

    async def _unmark(self, marks: Collection[Mark]) -> None:
        """Take marks away; what has happened to the record is not undone when that fails."""
        try:
            await asyncio.gather(
                *(
                    self._redis.request("ZREM", self._keyspace.index(where), text)
                    for where, text in marks
                )
            )
        except Unavailable as error:
            log.info("marks of an old record stay in its indexes", reason=error.message)

    async def _prolong(self, key: str, record: R | None) -> None:
        if record is not None and (life_s := self._life_s(record)):
            # XX: not when somebody has just made it a record that stays.
            await self._redis.request("EXPIRE", key, life_s, "XX")

    # -- finding: a ``Source`` ------------------------------------------------------------------

    async def count(self, index: str, span: Span) -> int:
        """Return how many marks of an index lie in a span."""
        low, high = _bounds(span)
        count: int = await self._redis.request("ZLEXCOUNT", self._keyspace.index(index), low, high)
        return count

    async def marks(self, index: str, span: Span, most: int, *, ascending: bool) -> list[str]:
        """Return the first marks of a span, or, from its end on, the last."""
        low, high = _bounds(span)
        way: tuple[Any, ...] = (low, high, "BYLEX") if ascending else (high, low, "BYLEX", "REV")
        key = self._keyspace.index(index)
        texts = await self._redis.request("ZRANGE", key, *way, "LIMIT", 0, most)
        return [text.decode() for text in texts]

    async def look(self, identities: Sequence[str], budget: Budget) -> list[R | None]:
        """Return records by their ids, None for those that are not there."""
        texts = await self._texts(identities)
        budget.spend(len(texts), sum(len(text) for text in texts if text))
        return [self._record(text) for text in texts]


def _bounds(span: Span) -> tuple[str, str]:
    return f"[{span.low}", f"({span.high}"
