"""Whatever way a query goes, all that it matches lies on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.broker.indexes import (
    CHOICES_MOST,
    UNION_MOST,
    Plan,
    Span,
    identity_in,
    is_of,
    marks_of_call,
    marks_of_user,
    plan,
)
from relay.calls import Call
from relay.filters import USERS, Sort, read_query
from relay.users import User
from tests.filters.records import T0, call, calls, conditions, member, query, sorts


def lies_on(record: Call, found: Plan) -> bool:
    """Tell whether every way of a plan comes by a record."""
    marks = marks_of_call(record)
    if found.identities is not None:
        return record.cid in found.identities
    return all(
        any(
            mark.where in choice and found.span.low <= mark.text < found.span.high for mark in marks
        )
        for choice in found.choices
    )


@settings(max_examples=500, deadline=None, print_blob=True)
@given(records=calls, filter_conditions=conditions, sort=sorts)
def test_what_a_query_matches_lies_on_every_way(
    records: list[Call], filter_conditions: dict[str, Any], sort: list[dict[str, Any]]
) -> None:
    asked = query(filter_conditions, sort=sort)
    found = plan(asked)
    assert [r.cid for r in records if asked.filter.matches(r) and not lies_on(r, found)] == []


@pytest.mark.parametrize(
    ("conditions", "identities", "choices"),
    [
        (None, None, [("calls",)]),
        ({"cid": "a:b"}, ("a:b",), [("calls",)]),
        ({"cid": {"$in": ["a:b", "a:c", "a:b"]}}, ("a:b", "a:c"), [("calls",)]),
        ({"$and": [{"cid": {"$in": ["a:b"]}}]}, ("a:b",), [("calls",)]),
        ({"type": "a", "id": {"$in": ["b", "c"]}}, ("a:b", "a:c"), [("calls:type:a",), ("calls",)]),
        ({"id": "b"}, None, [("calls",)]),
        ({"cid": {"$gt": "a:b"}}, None, [("calls",)]),
        ({"$or": [{"cid": "a:b"}]}, None, [("calls",)]),
        ({"$nor": [{"type": "a"}]}, None, [("calls",)]),
        ({"type": {"$ne": "a"}}, None, [("calls",)]),
        ({"created_by_user_id": "ann"}, None, [("calls:by:ann",), ("calls",)]),
        (
            {"type": {"$in": ["a", "b"]}, "members": {"$contains": "ann"}},
            None,
            [("calls:member:ann",), ("calls:type:a", "calls:type:b"), ("calls",)],
        ),
        (
            {"members": {"$eq": ["ann", "bob"]}},
            None,
            [("calls:member:ann",), ("calls:member:bob",), ("calls",)],
        ),
        ({"members": {"$eq": []}}, None, [("calls",)]),
        ({"members": {"$nin": ["ann"]}}, None, [("calls",)]),
        ({"members": {"$in": []}}, None, [(), ("calls",)]),
    ],
    ids=str,
)
def test_a_query_goes_by_what_it_names(
    conditions: Any, identities: tuple[str, ...] | None, choices: list[tuple[str, ...]]
) -> None:
    found = plan(query(conditions))
    assert (found.identities, list(found.choices)) == (identities, choices)


def test_more_users_than_can_be_read_side_by_side_narrow_nothing() -> None:
    users = [f"user-{number}" for number in range(UNION_MOST + 1)]
    assert plan(query({"members": {"$in": users}})).choices == (("calls",),)
    assert len(plan(query({"members": {"$in": users[1:]}})).choices) == 2


def test_the_sizes_of_a_bounded_number_of_indexes_are_asked_for() -> None:
    many = [
        {"members": {"$in": [f"user-{part}-{number}" for number in range(90)]}}
        for part in range(5)
    ]  # fmt: skip
    choices = plan(query({"$and": many})).choices
    assert sum(map(len, choices)) <= CHOICES_MOST + 1
    assert len(choices) == 3


@pytest.mark.parametrize(
    ("condition", "first", "last"),
    [
        ({"$gte": T0}, T0, None),
        ({"$gt": T0}, T0 + 1, None),
        ({"$lte": T0}, None, T0),
        ({"$lt": T0}, None, T0 - 1),
        ({"$eq": T0}, T0, T0),
        ({"$in": [T0 + 5, T0, T0 + 9]}, T0, T0 + 9),
        ({"$gt": T0, "$gte": T0 + 3, "$lt": T0 + 9}, T0 + 3, T0 + 8),
        ({"$ne": T0}, None, None),
    ],
    ids=str,
)
def test_times_bound_the_stretch(
    condition: dict[str, Any], first: int | None, last: int | None
) -> None:
    span = plan(query({"created_at": condition})).span
    low = 0 if first is None else first
    high = 10**20 - 1 if last is None else last + 1
    assert span == Span(f"{low:020d}", f"{high:020d}")


def test_an_index_answers_in_the_order_of_creation_only() -> None:
    assert plan(query()).streams
    assert plan(query(sort=[{"field": "created_at"}])).streams
    assert not plan(query(sort=[{"field": "updated_at"}])).streams
    assert not plan(query(sort=[{"field": "created_at"}, {"field": "type"}])).streams


def test_a_mark_tells_whose_it_is() -> None:
    record = call(1, members=(member("ann", T0 + 5),))
    marks = marks_of_call(record)
    assert {mark.where for mark in marks} == {
        "calls", "calls:type:default", "calls:by:ann", "calls:member:ann",
    }  # fmt: skip
    assert {identity_in(mark.text) for mark in marks} == {record.cid}
    assert all(is_of(mark.text, record) for mark in marks)
    assert not any(is_of(mark.text, call(1, created_at=T0)) for mark in marks)


def test_marks_sort_by_creation_and_then_by_id() -> None:
    records = [call(1, created_at=at, cid=f"a:{name}") for at in (5, 40) for name in ("b", "b.c")]
    texts = [text for each in records for where, text in marks_of_call(each) if where == "calls"]
    assert texts == sorted(texts)


def test_users_are_marked_unless_they_are_guests() -> None:
    user = User(id="ann", created_at=T0, updated_at=T0)
    [mark] = marks_of_user(user)
    assert (mark.where, identity_in(mark.text), is_of(mark.text, user)) == ("users", "ann", True)
    assert marks_of_user(User(id="ann", created_at=T0, updated_at=T0, role="guest")) == frozenset()


@settings(deadline=None)
@given(st.sampled_from([{"id": "ann"}, {"id": {"$in": ["ann"]}}]))
def test_users_are_named_by_their_id(conditions: dict[str, Any]) -> None:
    asked = read_query({"filter_conditions": conditions}, USERS, default_sort=[Sort("id")])
    assert plan(asked).identities == ("ann",)
