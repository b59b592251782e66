"""The filter language once more, as slow and as plain as its description."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from relay import wire
from relay.calls import Call

NAMES = {"created_by_user_id": "created_by"}
TIMES = ("created_at", "updated_at", "starts_at", "ended_at")


def matches(call: Call, conditions: dict[str, Any]) -> bool:
    for name, condition in conditions.items():
        if name == "$and":
            passed = [matches(call, part) for part in condition]
            if not all(passed):
                return False
        elif name == "$or":
            if not any(matches(call, part) for part in condition):
                return False
        elif name == "$nor":
            if any(matches(call, part) for part in condition):
                return False
        elif not _field_matches(call, name, condition):
            return False
    return True


def value(call: Call, name: str) -> Any:
    found: Any = msgspec.to_builtins(call) | {
        "type": call.type,
        "id": call.id,
        "created_at": call.created_at,
        "starts_at": call.starts_at,
        "ended_at": call.ended_at,
        "backstage": call.backstage,
        "team": call.team or None,
        "members": [member.user_id for member in call.members],
        "custom": call.custom,
    }
    for part in [NAMES.get(name, name)] if "." not in name else name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _field_matches(call: Call, name: str, condition: Any) -> bool:
    if not isinstance(condition, dict):
        condition = {"$eq": condition}
    have = value(call, name)
    for operator, operand in condition.items():
        if name in TIMES and operator != "$exists":
            operand = (
                [wire.parse_time(each) for each in operand]
                if isinstance(operand, list)
                else (operand if operand is None else wire.parse_time(operand))
            )
        if not _passes(name, have, operator, operand):
            return False
    return True


def _passes(name: str, have: Any, operator: str, operand: Any) -> bool:
    if operator == "$eq":
        return _equal(have, operand)
    if operator == "$ne":
        return not _equal(have, operand)
    if operator == "$in":
        return any(_equal(have, each) for each in operand)
    if operator == "$nin":
        return not any(_equal(have, each) for each in operand)
    if operator == "$exists":
        return operand == (have is not None and not (name == "members" and have == []))
    if operator == "$contains":
        return isinstance(have, list) and any(_same(each, operand) for each in have)
    if operator == "$autocomplete":
        return isinstance(have, str) and all(
            re.search(r"(?<!\w)" + re.escape(part), have.lower())
            for part in operand.lower().split()
        )
    if not _of_one_kind(have, operand):
        return False
    if operator == "$gt":
        return bool(have > operand)
    if operator == "$gte":
        return bool(have >= operand)
    if operator == "$lt":
        return bool(have < operand)
    assert operator == "$lte"
    return bool(have <= operand)


def _of_one_kind(one: Any, two: Any) -> bool:
    def kind(value: Any) -> str:
        return "number" if type(value) in (int, float) else type(value).__name__

    return kind(one) == kind(two)


def _same(one: Any, two: Any) -> bool:
    return _of_one_kind(one, two) and bool(one == two)


def _equal(have: Any, wanted: Any) -> bool:
    if isinstance(have, list):
        if isinstance(wanted, list):
            return all(any(_same(a, b) for b in wanted) for a in have) and all(
                any(_same(a, b) for b in have) for a in wanted
            )
        return any(_same(each, wanted) for each in have)
    return _same(have, wanted)
