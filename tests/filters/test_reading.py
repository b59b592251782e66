"""A query is read, or refused with the full path of what is wrong: nothing else ever happens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import BadInput
from relay.filters import CALLS, Query, Sort, read_query
from tests.filters.records import NEWEST_FIRST, T0, query

WORDS = st.sampled_from(
    ("filter_conditions", "sort", "limit", "next", "prev", "field", "direction", "$and", "$or",
     "$nor", "$eq", "$in", "$gt", "$exists", "$autocomplete", "$contains", "cid", "created_at",
     "members", "backstage", "custom.a", "custom.", "custom.a..b", "__proto__", "")
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20) | st.just(T0),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=25,
)  # fmt: skip
BODIES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("filter_conditions", "sort", "limit", "next", "prev"), JSON)
)


@settings(max_examples=1000, deadline=None, print_blob=True)
@given(body=BODIES)
def test_any_json_is_a_query_or_bad_input(body: dict[str, Any]) -> None:
    try:
        assert isinstance(read_query(body, CALLS, default_sort=NEWEST_FIRST), Query)
    except BadInput as refusal:
        named = refusal.message.split(" ")[0].partition(".")[0].partition("[")[0]
        assert named in ("filter_conditions", "sort", "limit", "next", "prev")


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "x"}
    for _ in range(levels):
        inner = {"$and": [inner]}
    return inner


@pytest.mark.parametrize(
    ("conditions", "path"),
    [
        ([], "filter_conditions must be a JSON object"),
        ("x", "filter_conditions must be a JSON object"),
        ({"colour": "red"}, "filter_conditions.colour is no field of calls: known are type, id"),
        ({"__proto__": {}}, "filter_conditions.__proto__ is no field"),
        ({"custom": "red"}, "filter_conditions.custom is no field"),
        ({"custom.": 1}, "filter_conditions.custom. is no field"),
        ({"custom.a.b.c.d.e.f.g.h.i": 1}, "filter_conditions.custom.a.b.c.d.e.f.g.h.i is no"),
        ({"$not": []}, "filter_conditions.$not is unknown: conditions are joined by $and"),
        ({"$and": []}, "filter_conditions.$and must be a list of at least one"),
        ({"$or": {"type": "x"}}, "filter_conditions.$or must be a list"),
        ({"$and": [{}]}, "filter_conditions.$and[0] must not be empty"),
        ({"$and": [{"type": "x"}, 7]}, "filter_conditions.$and[1] must be a JSON object"),
        (nested(8), "filter_conditions" + ".$and[0]" * 8 + " is nested too deep"),
        ({"type": {}}, "filter_conditions.type must not be empty"),
        ({"type": 7}, "filter_conditions.type must be a string"),
        ({"type": None}, "filter_conditions.type must be a string"),
        ({"type": ["x"]}, "filter_conditions.type must be a string"),
        ({"type": {"$regex": "x"}}, "filter_conditions.type.$regex is no operator for this field"),
        ({"type": {"a": "x"}}, "filter_conditions.type.a is no operator"),
        ({"type": {"$contains": "x"}}, "filter_conditions.type.$contains is no operator"),
        ({"type": {"$in": "x"}}, "filter_conditions.type.$in must be a list"),
        ({"type": {"$in": ["x", 7]}}, "filter_conditions.type.$in[1] must be a string"),
        ({"type": {"$in": ["x"] * 1001}}, "filter_conditions.type.$in has 1001 elements"),
        ({"cid": {"$in": ["x:y"] * 5001}}, "filter_conditions.cid.$in has 5001 elements"),
        ({"type": {"$gt": True}}, "filter_conditions.type.$gt must be a string"),
        ({"type": {"$exists": 1}}, "filter_conditions.type.$exists must be true or false"),
        ({"type": {"$autocomplete": " "}}, "filter_conditions.type.$autocomplete must be"),
        ({"type": {"$autocomplete": "x" * 257}}, "filter_conditions.type.$autocomplete must be"),
        ({"type": "x" * 5121}, "filter_conditions.type must be a string"),
        ({"backstage": "yes"}, "filter_conditions.backstage must be true or false"),
        ({"backstage": {"$gt": True}}, "filter_conditions.backstage.$gt is no operator"),
        ({"members": {"$gt": "ann"}}, "filter_conditions.members.$gt is no operator"),
        ({"members": {"$in": [7]}}, "filter_conditions.members.$in[0] must be a string"),
        ({"members": None}, "filter_conditions.members must be a string"),
        ({"created_at": None}, "filter_conditions.created_at must be a time"),
        ({"created_at": 7}, "filter_conditions.created_at must be a time"),
        ({"created_at": {"$gte": "today"}}, "filter_conditions.created_at.$gte must be a time"),
        ({"created_at": {"$autocomplete": "2"}}, "filter_conditions.created_at.$autocomplete is"),
        (
            {"$and": [{"type": "x"}, {"created_at": {"$in": [T0, "x"]}}]},
            "filter_conditions.$and[1].created_at.$in[1] must be a time",
        ),
        ({"custom.a": {"$eq": {"b": 1}}}, "filter_conditions.custom.a.$eq must be a string, a"),
        ({"custom.a": 2**70}, "filter_conditions.custom.a must be a string, a number"),
        ({"custom.a": float("inf")}, "filter_conditions.custom.a must be a string, a number"),
        ({"custom.a": [[1]]}, "filter_conditions.custom.a[0] must be a string, a number"),
        ({"custom.a": {"$gt": True}}, "filter_conditions.custom.a.$gt must be a string or a"),
        ({"custom.a": {"$gt": [1]}}, "filter_conditions.custom.a.$gt must be"),
        (
            {"$or": [{"type": "x"}] * 100},
            "filter_conditions.$or[99].type is one too many: at most 100 conditions",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_condition_is_refused_by_its_path(conditions: object, path: str) -> None:
    with pytest.raises(BadInput) as refusal:
        query(conditions)
    assert refusal.value.message.startswith(path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"limit": 0}, "limit must be a whole number from 1 to 100"),
        ({"limit": -1}, "limit must be"),
        ({"limit": 101}, "limit must be"),
        ({"limit": True}, "limit must be"),
        ({"limit": 1.0}, "limit must be"),
        ({"limit": "7"}, "limit must be"),
        ({"sort": {}}, "sort must be a list"),
        ({"sort": [7]}, "sort[0] must be an object"),
        ({"sort": [{}]}, "sort[0].field must be one of type, id"),
        ({"sort": [{"field": "id"}, {"field": "members"}]}, "sort[1].field must be one of"),
        ({"sort": [{"field": "id", "direction": 2}]}, "sort[0].direction must be 1"),
        ({"sort": [{"field": "id", "direction": True}]}, "sort[0].direction must be 1"),
        ({"sort": [{"field": "id"}, {"field": "id"}]}, "sort names a field twice"),
        ({"sort": [{"field": f"custom.{n}"} for n in range(6)]}, "sort must be a list of at most"),
        ({"next": ""}, "next is no cursor"),
        ({"prev": "rubbish!"}, "prev is no cursor"),
        ({"next": 7}, "next is no cursor"),
        ({"next": "a", "prev": "b"}, "next and prev exclude each other"),
    ],
    ids=str,
)
def test_the_rest_of_a_wrong_query_is_refused_by_name(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        query(None, **more)
    assert refusal.value.message.startswith(said)


def test_what_is_not_said_has_its_default() -> None:
    plain = query()
    assert (plain.limit, plain.sort, plain.cursor) == (25, NEWEST_FIRST, None)
    assert query(limit=None, sort=None, next=None, prev=None) == plain
    assert query(sort=[]).sort == NEWEST_FIRST


def test_a_sort_key_ascends_unless_it_says_otherwise() -> None:
    asked = query(sort=[{"field": "id"}, {"field": "custom.a.b", "direction": -1}])
    assert asked.sort == (Sort("id"), Sort("custom.a.b", ascending=False))


def test_a_long_list_of_cids_is_taken_whole_and_answered_whole() -> None:
    cids = [f"default:{number}" for number in range(5000)]
    assert query({"cid": {"$in": cids}}).limit == 5000
    assert query({"cid": {"$in": cids[:3]}}).limit == 25
    assert query({"cid": {"$in": cids}}, limit=7).limit == 7
    assert query({"$or": [{"cid": {"$in": cids}}]}).limit == 25


def test_a_name_in_a_refusal_is_cut_and_printable() -> None:
    with pytest.raises(BadInput) as refusal:
        query({"x\n" * 100: 1})
    assert refusal.value.message.startswith(f"filter_conditions.{'x?' * 32} is no field")
