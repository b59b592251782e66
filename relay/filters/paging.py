"""Order and pages: what a query's answer is sorted by, and cursors that stand at a record.

A cursor holds the sort values of the record it stands at, not a count: what comes or goes elsewhere
moves no page, and each page begins strictly behind the last one, so following cursors one way never
comes to the same record twice.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, Generic, TypeVar

import msgspec

from relay import wire
from relay.errors import BadInput
from relay.filters.conditions import All, Filter, comparable
from relay.filters.schemas import Field, Kind, Schema

T = TypeVar("T")

CURSOR_MOST: Final = 32_768
"""Characters of a cursor; sort values come from bounded records."""


class Sort(msgspec.Struct, frozen=True):
    """One key of an order; a record without the field comes last either way."""

    field: str
    ascending: bool = True


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a page begins (``forward``) or ends: behind or before the record that stands here."""

    forward: bool
    values: tuple[Any, ...]
    identity: str


class Found(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of what a query found, with the cursors of the pages around it (None = there is none).

    A cursor is opaque, bound to the query that made it, and good for as long as nobody changes what
    it stands at; it never leads to the same page again (no cycles).
    """

    items: tuple[T, ...]
    next: str | None = None
    prev: str | None = None


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to find, in which order, how much of it, and from where on.

    Made by ``reading.read_query``; ``fingerprint`` tells it from every other query, pages aside.
    """

    schema: Schema
    filter: Filter = All()
    sort: tuple[Sort, ...] = ()
    limit: int = 25
    cursor: Cursor | None = None
    fingerprint: bytes = b""

    def is_forward(self) -> bool:
        """Tell whether the page is found by walking forward from where it begins."""
        return self.cursor is None or self.cursor.forward

    def place(self, record: Any) -> tuple[Any, ...]:
        """Return where a record stands in the order: places compare, no two are equal."""
        return self._place(self._values(record), self.schema.identity_of(record))

    def is_behind(self) -> Callable[[Any], bool]:
        """Return what tells whether a record lies behind the cursor, as the walk goes."""
        if self.cursor is None:
            return lambda record: True
        start = self._place(self.cursor.values, self.cursor.identity)
        if self.cursor.forward:
            return lambda record: self.place(record) > start
        return lambda record: self.place(record) < start

    def token(self, record: Any, *, forward: bool) -> str:
        """Return the cursor of the page that begins (or ends) next to a record."""
        stands = [forward, self._values(record), self.schema.identity_of(record)]
        text = wire.encode([*stands, self.seal(stands)])
        return base64.urlsafe_b64encode(text).decode().rstrip("=")

    def is_ascending(self) -> bool:
        """Tell in which direction equal sort keys are told apart by identity."""
        return not self.sort or self.sort[-1].ascending

    def _values(self, record: Any) -> list[Any]:
        return [_scalar(_field(self.schema, key).read(record)) for key in self.sort]

    def _place(self, values: Sequence[Any], identity: str) -> tuple[Any, ...]:
        keys = zip(values, self.sort, strict=True)
        return (
            *(_key(value, ascending=sort.ascending) for value, sort in keys),
            _key(identity, ascending=self.is_ascending()),
        )

    def seal(self, stands: list[Any]) -> str:
        """Return what binds a cursor to its query and tells when it was garbled.

        No secret is needed: whoever makes a cursor of his own only says where he wants to begin.
        """
        return blake2b(self.fingerprint + wire.encode(stands), digest_size=8).hexdigest()


class _Reversed:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Reversed) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and bool(other.value == self.value)

    __hash__ = None  # type: ignore[assignment]


def _key(value: Any, *, ascending: bool) -> tuple[Any, ...]:
    form = comparable(value)
    if form is None:
        return (1,)
    return (0, form if ascending else _Reversed(form))


def _scalar(value: Any) -> Any:
    """Return a value to sort by; lists and objects have no order."""
    return value if isinstance(value, str | int | float) else None


def _field(schema: Schema, sort: Sort) -> Field:
    field = schema.field(sort.field)
    assert field is not None, "reading let only known fields through"
    return field


def read_cursor(query: Query, text: object, path: str, *, forward: bool) -> Query:
    """Return the query with the cursor it was given; raises ``BadInput`` naming it."""
    refusal = BadInput(
        f"{path} is no cursor of this query: send what its last page answered, with the same "
        "filter_conditions and sort",
        reason="bad_cursor",
    )
    if not isinstance(text, str) or not 0 < len(text) <= CURSOR_MOST:
        raise refusal
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        stands = wire.decode(raw)
    except (ValueError, binascii.Error, BadInput):
        raise refusal from None
    match stands:
        case [bool() as made_forward, list() as values, str() as identity, str() as seal]:
            sealed = query.seal(stands[:3]) == seal
        case _:
            raise refusal
    if not sealed or made_forward is not forward or not _fit(query, values):
        raise refusal
    cursor = Cursor(forward=forward, values=tuple(values), identity=identity)
    return msgspec.structs.replace(query, cursor=cursor)


_TYPES: Final[dict[Kind, type]] = {Kind.TEXT: str, Kind.TIME: int, Kind.FLAG: bool}


def _fit(query: Query, values: list[Any]) -> bool:
    """Tell whether a cursor's values can be those of a record: a forged one may hold anything."""
    return len(values) == len(query.sort) and all(
        _fits(_field(query.schema, sort), value)
        for value, sort in zip(values, query.sort, strict=True)
    )


def _fits(field: Field, value: Any) -> bool:
    if value is None:
        return field.optional
    if field.kind is Kind.JSON:
        return isinstance(value, str | int | float)
    wanted = _TYPES[field.kind]
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def select(items: Iterable[T], query: Query) -> Found[T]:
    """Return the page that a query wants of records that are all at hand."""
    return arrange([item for item in items if query.filter.matches(item)], query)


def arrange(matches: Iterable[T], query: Query) -> Found[T]:
    """Return the page that a query wants of all its matches, given in any order."""
    is_behind = query.is_behind()
    behind = [match for match in matches if is_behind(match)]
    behind.sort(key=query.place, reverse=not query.is_forward())
    return page(behind[: query.limit + 1], query)


def page(matches: list[T], query: Query) -> Found[T]:
    """Return the page of the first matches behind the cursor, in the order of the walk.

    One more than the limit says that there is more that way; the other way there is what the cursor
    stands at.
    """
    forward, more = query.is_forward(), len(matches) > query.limit
    items = matches[: query.limit]
    if not forward:
        items.reverse()
    if not items:
        return Found(items=())
    has_next = more if forward else True
    has_prev = more if not forward else query.cursor is not None
    return Found(
        items=tuple(items),
        next=query.token(items[-1], forward=True) if has_next else None,
        prev=query.token(items[0], forward=False) if has_prev else None,
    )
