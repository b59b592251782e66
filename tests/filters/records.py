"""Calls to filter, and queries over them: what the tests of the filter language share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from relay import wire
from relay.calls import Call, Member
from relay.filters import CALLS, Query, Sort, read_query

T0 = 1_800_000_000_000_000_000
NEWEST_FIRST = (Sort("created_at", ascending=False),)
USERS = ("ann", "bob", "cyd")
TEXTS = ("a", "b", "Ann Lee", "lee", "ann", "x:1", "")

moments = st.integers(T0, T0 + 5)
texts = st.sampled_from(TEXTS)
scalars = st.one_of(texts, st.integers(-2, 2), st.sampled_from([0.5, 1.0]), st.booleans())
customs = st.dictionaries(
    st.sampled_from(("a", "b")),
    st.one_of(
        scalars,
        st.none(),
        st.lists(scalars, max_size=3),
        st.dictionaries(st.sampled_from(("a", "b")), scalars, max_size=2),
    ),
    max_size=2,
)


def call(number: int, **facts: Any) -> Call:
    """Build a call with an id of its own."""
    facts.setdefault("cid", f"default:{number:03d}")
    facts.setdefault("created_at", T0 + number)
    return Call(**{"created_by": "ann", "updated_at": facts["created_at"], **facts})


def member(user_id: str, at: int = T0) -> Member:
    return Member(user_id=user_id, created_at=at, updated_at=at)


def _numbered(facts: list[dict[str, Any]]) -> list[Call]:
    return [
        call(number, **{**fact, "cid": f"{fact['cid']}:{number:03d}"})
        for number, fact in enumerate(facts)
    ]


facts = st.fixed_dictionaries(
    {
        "cid": st.sampled_from(("default", "livestream")),
        "created_by": st.sampled_from(USERS),
        "created_at": moments,
        "updated_at": moments,
        "starts_at": st.none() | moments,
        "ended_at": st.none() | moments,
        "team": st.sampled_from(("", "red")),
        "backstage": st.booleans(),
        "custom": customs,
        "members": st.lists(st.sampled_from(USERS), unique=True, max_size=3).map(
            lambda ids: tuple(map(member, ids))
        ),
    }
)
calls = st.lists(facts, max_size=12).map(_numbered)

_OPERANDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(("default", "livestream", "d")),
    "id": st.sampled_from(("000", "001", "002")),
    "cid": st.sampled_from(("default:000", "livestream:001", "default:002")),
    "team": st.sampled_from(("red", "blue")),
    "created_by_user_id": st.sampled_from(USERS),
    "created_at": moments | moments.map(wire.rfc3339),
    "updated_at": moments,
    "starts_at": moments,
    "ended_at": moments,
    "backstage": st.booleans(),
    "members": st.sampled_from(USERS),
    "custom.a": scalars,
    "custom.b": scalars,
    "custom.a.b": scalars,
}
_OPTIONAL = ("team", "starts_at", "ended_at", "custom.a", "custom.b", "custom.a.b")


@st.composite
def _conditions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw conditions on one field, such as the language allows."""
    name = draw(st.sampled_from(sorted(_OPERANDS)))
    scalar = _OPERANDS[name]
    ordered = scalar.filter(lambda value: not isinstance(value, bool)) if "." in name else scalar
    equal = (scalar | st.none()) if name in _OPTIONAL else scalar
    possible: dict[str, st.SearchStrategy[Any]] = {
        "$eq": equal, "$ne": equal, "$exists": st.booleans(),
    }  # fmt: skip
    if name != "backstage":
        possible |= dict.fromkeys(("$in", "$nin"), st.lists(scalar, max_size=3))
    if name not in ("backstage", "members"):
        possible |= dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), ordered)
    if name == "members" or "." in name:
        possible["$eq"] |= st.lists(scalar, max_size=3)
        possible["$contains"] = scalar
    if name not in ("backstage", "members") and not name.endswith("_at"):
        possible["$autocomplete"] = st.sampled_from(("a", "L", "ann le", "0", "red", "x:1"))
    chosen = draw(st.lists(st.sampled_from(sorted(possible)), min_size=1, max_size=2, unique=True))
    return {name: {operator: draw(possible[operator]) for operator in chosen}}


def _joined(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        *(several.map(lambda found, name=name: {name: found}) for name in ("$and", "$or", "$nor"))
    ) | st.lists(parts, min_size=1, max_size=2).map(lambda found: found[0] | found[-1])


conditions = st.recursive(_conditions(), _joined, max_leaves=5)
sorts = st.lists(
    st.builds(
        lambda field, direction: {"field": field, "direction": direction},
        st.sampled_from(
            ("type", "id", "cid", "team", "created_at", "starts_at", "backstage", "custom.a")
        ),
        st.sampled_from((1, -1)),
    ),
    max_size=3,
    unique_by=lambda key: key["field"],
)


def query(filter_conditions: object = None, **more: Any) -> Query:
    """Read a query for calls."""
    body = {"filter_conditions": filter_conditions, **more}
    return read_query(body, CALLS, default_sort=NEWEST_FIRST)
