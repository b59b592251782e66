"""Read a query from a request's body: every refusal names the full path of what is wrong.

    {"filter_conditions": {"type": "default", "$or": [{"members": {"$in": ["ann"]}}, …]},
     "sort": [{"field": "created_at", "direction": -1}], "limit": 25, "next": "…"}

Bounds keep a query's cost in proportion to its answer: how deep it nests, how many conditions it
has, how long a list is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import isfinite
from typing import Any, Final

from relay import wire
from relay.errors import BadInput
from relay.filters.conditions import CHECKS, All, Filter, NoneOf, Some, Test, check
from relay.filters.paging import Query, Sort, read_cursor
from relay.filters.schemas import Field, Kind, Schema

LIMIT_DEFAULT: Final = 25
LIMIT_MAX: Final = 100
IDENTITIES_MOST: Final = 5000
"""Ids in a list of those that name records: an SDK watches all its calls again in one query."""

LIST_MOST: Final = 1000
CONDITIONS_MOST: Final = 100
DEPTH_MOST: Final = 8
SORT_MOST: Final = 5
TEXT_MOST: Final = 5120
AUTOCOMPLETE_MOST: Final = 256
_NUMBERS: Final = range(-(2**63), 2**64)

_SAYS: Final = {
    Kind.TEXT: f"a string of at most {TEXT_MOST} characters",
    Kind.TIME: "a time: RFC 3339 or integer nanoseconds since 1970",
    Kind.FLAG: "true or false",
    Kind.TEXTS: f"a string of at most {TEXT_MOST} characters",
    Kind.JSON: "a string, a number, true or false",
}
_COMBINATORS: Final[dict[str, Callable[[tuple[Filter, ...]], Filter]]] = {
    "$and": All,
    "$or": Some,
    "$nor": NoneOf,
}
_LISTS: Final = frozenset({"$in", "$nin"})
_ORDERED: Final = frozenset({"$gt", "$gte", "$lt", "$lte"})
_PLAIN: Final = frozenset({"$eq", "$ne", "$exists"})
_OPERATORS: Final[dict[Kind, frozenset[str]]] = {
    Kind.TEXT: _PLAIN | _LISTS | _ORDERED | {"$autocomplete"},
    Kind.TIME: _PLAIN | _LISTS | _ORDERED,
    Kind.FLAG: _PLAIN,
    Kind.TEXTS: _PLAIN | _LISTS | {"$contains"},
    Kind.JSON: frozenset(CHECKS),
}


def read_query(
    body: Mapping[str, Any],
    schema: Schema,
    *,
    default_sort: Sequence[Sort],
    limit_default: int = LIMIT_DEFAULT,
    limit_max: int = LIMIT_MAX,
    scope: str = "",
) -> Query:
    """Return the query in ``body``; raises ``BadInput`` naming the path of what is wrong.

    ``scope`` binds the cursors to something beside the query, such as the call whose members are
    asked for. A query by identities (``cid $in …``) without ``limit`` wants all of them.
    """
    conditions = body.get("filter_conditions")
    reader = _Reader(schema)
    parsed = reader.read(conditions, "filter_conditions")
    sort = _read_sort(body.get("sort"), schema) or tuple(default_sort)
    shape = [schema.name, scope, conditions or {}, [[key.field, key.ascending] for key in sort]]
    query = Query(
        schema=schema,
        filter=parsed,
        sort=sort,
        limit=_read_limit(body.get("limit"), _wanted(parsed, schema, limit_default), limit_max),
        fingerprint=blake2b(wire.canonical(shape), digest_size=16).digest(),
    )
    return _with_cursor(query, body)


def _with_cursor(query: Query, body: Mapping[str, Any]) -> Query:
    following, previous = body.get("next"), body.get("prev")
    if following is not None and previous is not None:
        raise BadInput("next and prev exclude each other: send one of them")
    if following is not None:
        return read_cursor(query, following, "next", forward=True)
    if previous is not None:
        return read_cursor(query, previous, "prev", forward=False)
    return query


def _wanted(parsed: Filter, schema: Schema, limit_default: int) -> int:
    """Return how many records a query without ``limit`` wants."""
    listed = [len(part.operand) for part in _parts(parsed) if _lists_identities(part, schema)]
    return max([limit_default, *listed])


def listed(query: Query) -> list[str]:
    """Return the identities that a query asks for when it asks for nothing else, else none."""
    match _parts(query.filter):
        case [part] if _lists_identities(part, query.schema):
            return list(part.operand)
    return []


def _parts(parsed: Filter) -> Sequence[Any]:
    return parsed.parts if isinstance(parsed, All) else ()


def _lists_identities(part: Filter, schema: Schema) -> bool:
    named = isinstance(part, Test) and (part.field, part.operator)
    return named == (schema.identity, "$in")


def _read_limit(value: object, default: int, most: int) -> int:
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    raise BadInput(f"limit must be a whole number from 1 to {most}")


def _read_sort(value: object, schema: Schema) -> tuple[Sort, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > SORT_MOST:
        raise BadInput(f"sort must be a list of at most {SORT_MOST} objects with field, direction")
    keys = tuple(_read_key(key, f"sort[{number}]", schema) for number, key in enumerate(value))
    if len({key.field for key in keys}) < len(keys):
        raise BadInput("sort names a field twice")
    return keys


def _read_key(value: object, path: str, schema: Schema) -> Sort:
    if not isinstance(value, dict):
        raise BadInput(f"{path} must be an object with field and direction")
    name, direction = value.get("field"), value.get("direction")
    field = schema.field(name) if isinstance(name, str) and len(name) <= TEXT_MOST else None
    if field is None or field.kind is Kind.TEXTS:
        names = ", ".join(key for key, known in schema.fields.items() if known.kind != Kind.TEXTS)
        raise BadInput(f"{path}.field must be one of {names}, custom.<field>")
    direction = 1 if direction is None else direction
    if direction not in (1, -1) or isinstance(direction, bool):
        raise BadInput(f"{path}.direction must be 1 (ascending) or -1 (descending)")
    return Sort(str(name), direction == 1)


class _Reader:
    """Reads one filter, and counts what it has read."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._conditions = 0

    def read(self, value: object, path: str) -> Filter:
        """Return the filter at ``path``; nothing at all matches everything."""
        return All() if value is None or value == {} else self._object(value, path, DEPTH_MOST)

    def _object(self, value: object, path: str, depth: int) -> Filter:
        if not isinstance(value, dict):
            raise BadInput(f"{path} must be a JSON object of fields and their conditions")
        if not value:
            raise BadInput(f"{path} must not be empty")
        if depth == 0:
            raise BadInput(f"{path} is nested too deep: at most {DEPTH_MOST} levels are possible")
        parts: list[Filter] = []
        for name, condition in value.items():
            within = f"{path}.{_shown(name)}"
            if name in _COMBINATORS:
                parts.append(self._combination(name, condition, within, depth))
            else:
                parts.extend(self._field(name, condition, within))
        return All(tuple(parts))

    def _combination(self, name: str, value: object, path: str, depth: int) -> Filter:
        if not isinstance(value, list) or not value:
            raise BadInput(f"{path} must be a list of at least one JSON object")
        self._count(path)
        parts = tuple(
            self._object(part, f"{path}[{number}]", depth - 1) for number, part in enumerate(value)
        )
        return _COMBINATORS[name](parts)

    def _field(self, name: str, value: object, path: str) -> list[Filter]:
        field = self._schema.field(name) if len(name) <= TEXT_MOST else None
        if field is None:
            raise BadInput(
                f"{path} is no field of {self._schema.name}: known are {self._schema.known()}"
                if not name.startswith("$")
                else f"{path} is unknown: conditions are joined by {', '.join(_COMBINATORS)}"
            )
        if not isinstance(value, dict):
            return [self._test(name, field, "$eq", value, path)]
        if not value:
            raise BadInput(f"{path} must not be empty: it wants an operator, such as $eq")
        return [
            self._test(name, field, operator, operand, f"{path}.{_shown(operator)}")
            for operator, operand in value.items()
        ]

    def _test(self, name: str, field: Field, operator: str, operand: object, path: str) -> Test:
        self._count(path)
        if operator not in _OPERATORS[field.kind]:
            known = ", ".join(key for key in CHECKS if key in _OPERATORS[field.kind])
            raise BadInput(f"{path} is no operator for this field: possible are {known}")
        most = IDENTITIES_MOST if name == self._schema.identity else LIST_MOST
        read = _operand(field, operator, operand, path, most)
        return Test(
            field=name,
            operator=operator,
            operand=read,
            read=field.read,
            check=check(operator, read),
        )

    def _count(self, path: str) -> None:
        self._conditions += 1
        if self._conditions > CONDITIONS_MOST:
            raise BadInput(f"{path} is one too many: at most {CONDITIONS_MOST} conditions")


def _shown(name: str) -> str:
    """Return a name that the peer chose as it stands in a path."""
    return "".join(char if char.isprintable() else "?" for char in name[:64])


def _operand(field: Field, operator: str, value: Any, path: str, most: int) -> Any:
    """Return what an operator compares with; raises ``BadInput`` when it is of no use to it."""
    if operator == "$exists":
        if isinstance(value, bool):
            return value
        raise BadInput(f"{path} must be true or false")
    if operator == "$autocomplete":
        if isinstance(value, str) and value.strip() and len(value) <= AUTOCOMPLETE_MOST:
            return value
        raise BadInput(
            f"{path} must be a string of at most {AUTOCOMPLETE_MOST} characters, not all blank"
        )
    if operator in _LISTS:
        return _list(field, value, path, most)
    if operator in ("$eq", "$ne"):
        if value is None and field.optional:
            return None
        if isinstance(value, list) and field.kind in (Kind.TEXTS, Kind.JSON):
            return _list(field, value, path, most)
    if operator in _ORDERED and isinstance(value, bool):
        raise BadInput(f"{path} must be a string or a number")
    return _scalar(field, value, path)


def _list(field: Field, value: object, path: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(f"{path} must be a list, each element {_SAYS[field.kind]}")
    if len(value) > most:
        raise BadInput(f"{path} has {len(value)} elements, at most {most} are possible")
    return [_scalar(field, element, f"{path}[{number}]") for number, element in enumerate(value)]


def _scalar(field: Field, value: Any, path: str) -> Any:
    match field.kind:
        case Kind.TIME:
            return wire.parse_time(value, path)
        case Kind.FLAG:
            fits = isinstance(value, bool)
        case Kind.JSON:
            fits = isinstance(value, bool) or _is_text(value) or _is_number(value)
        case _:
            fits = _is_text(value)
    if not fits:
        raise BadInput(f"{path} must be {_SAYS[field.kind]}")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MOST


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return value in _NUMBERS
    return isinstance(value, float) and isfinite(value)
