"""What a filter means: which records it matches.

A field without a value (absent, null) equals nothing but ``null``, compares with nothing, and so
passes ``$ne`` and ``$nin``. A list equals a scalar that it holds, and a list of the same elements
in any order. Numbers are equal by value; ``true`` is no number and ``"1"`` neither.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import ge, gt, le, lt
from typing import Any, Final

import msgspec

Check = Callable[[Any], bool]
"""Tells whether a field's value passes."""


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One operator on one field, its operand as it was read (times in nanoseconds)."""

    __test__ = False  # no test in pytest's sense

    field: str
    operator: str
    operand: Any
    read: Callable[[Any], Any]
    check: Check

    def matches(self, record: Any) -> bool:
        """Tell whether a record passes."""
        return self.check(self.read(record))


class All(msgspec.Struct, frozen=True):
    """Every part must match; without parts everything does."""

    parts: tuple[Filter, ...] = ()

    def matches(self, record: Any) -> bool:
        """Tell whether a record passes."""
        return all(part.matches(record) for part in self.parts)


class Some(msgspec.Struct, frozen=True):
    """At least one part must match."""

    parts: tuple[Filter, ...]

    def matches(self, record: Any) -> bool:
        """Tell whether a record passes."""
        return any(part.matches(record) for part in self.parts)


class NoneOf(msgspec.Struct, frozen=True):
    """No part may match."""

    parts: tuple[Filter, ...]

    def matches(self, record: Any) -> bool:
        """Tell whether a record passes."""
        return not any(part.matches(record) for part in self.parts)


Filter = All | Some | NoneOf | Test

_FLAG, _NUMBER, _TEXT, _LIST, _OBJECT = range(5)


def comparable(value: Any) -> tuple[int, Any] | None:
    """Return a value in a form in which any two compare as JSON does, None for null.

    Lists stand for the set of their elements; an object equals only what is no operand.
    """
    match value:
        case None:
            return None
        case bool():
            return _FLAG, value
        case int() | float():
            return _NUMBER, value
        case str():
            return _TEXT, value
        case list() | tuple():
            return _LIST, frozenset(map(comparable, value))
    return _OBJECT, id(value)


def check(operator: str, operand: Any) -> Check:
    """Return the check of an operator with an operand that fits it (see ``reading``)."""
    return CHECKS[operator](operand)


def _equal(operand: Any) -> Check:
    wanted = comparable(operand)
    contains = _contains(operand)
    return lambda value: comparable(value) == wanted or contains(value)


def _among(operand: list[Any]) -> Check:
    wanted = frozenset(map(comparable, operand))

    def among(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return not wanted.isdisjoint(map(comparable, value))
        return comparable(value) in wanted

    return among


def _contains(operand: Any) -> Check:
    wanted = comparable(operand)
    return lambda value: isinstance(value, list | tuple) and wanted in map(comparable, value)


def _exists(operand: bool) -> Check:
    return lambda value: (value is not None and value != ()) is operand


def _not(made: Callable[[Any], Check]) -> Callable[[Any], Check]:
    def negated(operand: Any) -> Check:
        positive = made(operand)
        return lambda value: not positive(value)

    return negated


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any], Check]:
    def made(operand: Any) -> Check:
        rank, limit = comparable(operand) or (None, None)

        def compared(value: Any) -> bool:
            form = comparable(value)
            return form is not None and form[0] == rank and bool(compare(form[1], limit))

        return compared

    return made


def _autocomplete(operand: str) -> Check:
    """Every word of the operand begins a word of the text, whatever its case."""
    parts = operand.casefold().split()

    def completes(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        text = value.casefold()
        return all(_begins_a_word(part, text) for part in parts)

    return completes


def _begins_a_word(part: str, text: str) -> bool:
    """Tell whether a part stands somewhere with no letter, digit or ``_`` before it."""
    at = text.find(part)
    while at > 0 and (text[at - 1].isalnum() or text[at - 1] == "_"):
        at = text.find(part, at + 1)
    return at >= 0


CHECKS: Final[dict[str, Callable[[Any], Check]]] = {
    "$eq": _equal,
    "$ne": _not(_equal),
    "$gt": _ordered(gt),
    "$gte": _ordered(ge),
    "$lt": _ordered(lt),
    "$lte": _ordered(le),
    "$in": _among,
    "$nin": _not(_among),
    "$exists": _exists,
    "$autocomplete": _autocomplete,
    "$contains": _contains,
}
