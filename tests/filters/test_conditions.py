"""What a filter matches: a plain model agrees, and each operator means what it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import wire
from relay.calls import Call
from relay.filters import All, read_query
from relay.filters.schemas import MEMBERS, USERS
from relay.users import User
from tests.filters import naive
from tests.filters.records import NEWEST_FIRST, T0, call, calls, conditions, member, query

CALL = call(
    7,
    team="red",
    starts_at=T0 + 9,
    members=(member("ann"), member("bob")),
    custom={"name": "Daily Stand-up", "n": 3, "on": True, "tags": ["x", 1], "deep": {"er": "d"}},
)
BARE = call(8, cid="livestream:008", created_by="bob")


def passes(record: Call, filter_conditions: dict[str, Any]) -> bool:
    return query(filter_conditions).filter.matches(record)


@settings(max_examples=500, deadline=None, print_blob=True)
@given(records=calls, filter_conditions=conditions)
def test_a_filter_matches_what_the_plain_model_does(
    records: list[Call], filter_conditions: dict[str, Any]
) -> None:
    filter_ = query(filter_conditions).filter
    expected = [record.cid for record in records if naive.matches(record, filter_conditions)]
    assert [record.cid for record in records if filter_.matches(record)] == expected


@pytest.mark.parametrize(
    "matched",
    [
        {"type": "default"},
        {"type": "default", "id": "007", "cid": "default:007"},
        {"team": "red", "created_by_user_id": "ann", "backstage": False},
        {"created_at": {"$gte": T0 + 7, "$lte": wire.rfc3339(T0 + 7)}},
        {"created_at": {"$gt": str(T0 + 6), "$lt": T0 + 8}},
        {"updated_at": {"$in": [T0, T0 + 7]}},
        {"starts_at": {"$gt": T0 + 8}},
        {"ended_at": None},
        {"ended_at": {"$exists": False}, "starts_at": {"$exists": True, "$ne": None}},
        {"members": "ann"},
        {"members": {"$in": ["cyd", "bob"]}},
        {"members": {"$eq": ["bob", "ann"]}},
        {"members": {"$contains": "ann", "$nin": ["cyd"]}},
        {"custom.name": {"$autocomplete": "stand"}},
        {"custom.name": {"$autocomplete": "DAILY up"}},
        {"custom.n": 3.0},
        {"custom.n": {"$gt": 2, "$lt": 3.5}},
        {"custom.on": True},
        {"custom.tags": "x"},
        {"custom.tags": {"$in": ["nothing", 1]}},
        {"custom.tags": {"$eq": [1, "x"]}},
        {"custom.deep.er": {"$gte": "c"}},
        {"custom.none": {"$ne": 1, "$nin": [2]}},
        {"$or": [{"type": "x"}, {"$and": [{"type": "default"}, {"id": "007"}]}]},
        {"$nor": [{"type": "x"}, {"team": "blue"}]},
        {},
    ],
    ids=str,
)
def test_it_matches(matched: dict[str, Any]) -> None:
    assert passes(CALL, matched)


@pytest.mark.parametrize(
    "unmatched",
    [
        {"type": {"$ne": "default"}},
        {"type": "default", "id": "008"},
        {"type": {"$in": []}},
        {"members": ["ann"]},
        {"members": {"$exists": False}},
        {"members": {"$nin": ["ann"]}},
        {"ended_at": {"$gt": T0}},
        {"custom.name": {"$autocomplete": "tand"}},
        {"custom.name": {"$autocomplete": "daily nothing"}},
        {"custom.n": "3"},
        {"custom.on": 1},
        {"custom.n": True},
        {"custom.n": {"$gt": "2"}},
        {"custom.n": {"$autocomplete": "3"}},
        {"custom.name": {"$contains": "Daily"}},
        {"custom.tags": True},
        {"custom.tags": {"$gt": 0}},
        {"custom.tags.x": {"$exists": True}},
        {"custom.none": {"$lt": 1}},
        {"$nor": [{"type": "default"}]},
        {"$or": [{"type": "x"}, {"team": "blue"}]},
    ],
    ids=str,
)
def test_it_does_not_match(unmatched: dict[str, Any]) -> None:
    assert not passes(CALL, unmatched)


def test_a_call_without_a_team_or_members_has_none() -> None:
    assert passes(BARE, {"team": {"$exists": False}, "members": {"$exists": False}})
    assert passes(BARE, {"team": None, "members": {"$eq": []}})


def test_no_conditions_match_everything() -> None:
    assert query().filter == query({}).filter == All()
    assert All().matches(CALL)


@settings(deadline=None)
@given(st.sampled_from(["users", "members"]))
def test_users_and_members_have_fields_of_their_own(kind: str) -> None:
    user = User(
        id="ann", created_at=T0, updated_at=T0, name="Ann", teams=("red",), language="de",
        custom={"a": 1},
    )  # fmt: skip
    if kind == "users":
        asked = {"id": "ann", "name": {"$autocomplete": "an"}, "teams": {"$contains": "red"}}
        asked |= {"role": "user", "language": "de", "created_at": T0, "custom.a": 1}
        found = read_query({"filter_conditions": asked}, USERS, default_sort=NEWEST_FIRST)
        assert found.filter.matches(user)
    else:
        asked = {"user_id": "ann", "role": "user", "created_at": T0, "updated_at": {"$lte": T0}}
        found = read_query({"filter_conditions": asked}, MEMBERS, default_sort=NEWEST_FIRST)
        assert found.filter.matches(member("ann"))
        assert not found.filter.matches(member("bob"))
