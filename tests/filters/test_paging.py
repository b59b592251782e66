"""Order and pages: everything once, in order, there and back, whatever was sent as a cursor."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import wire
from relay.calls import Call
from relay.errors import BadInput
from relay.filters import CALLS, MEMBERS, Found, Sort, read_query, select
from tests.filters import naive
from tests.filters.records import NEWEST_FIRST, T0, call, calls, conditions, member, query, sorts

TEN = [call(number) for number in range(10)]


def cids(found: Found[Call]) -> list[str]:
    return [record.cid for record in found.items]


def walk(records: list[Call], way: str, start: str | None, **body: Any) -> list[list[str]]:
    """Return the pages from a cursor on."""
    pages: list[list[str]] = []
    cursor = start
    while len(pages) <= len(records):
        found = select(records, query(**body, **({way: cursor} if cursor else {})))
        pages.append(cids(found))
        cursor = found.next if way == "next" else found.prev
        if cursor is None:
            return pages
    raise AssertionError(f"it goes in a circle: {pages}")


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    records=calls,
    filter_conditions=st.none() | conditions,
    sort=sorts,
    limit=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
)
def test_paging_there_and_back_visits_everything_once(
    records: list[Call],
    filter_conditions: dict[str, Any] | None,
    sort: list[dict[str, Any]],
    limit: int,
    order: Any,
) -> None:
    body: dict[str, Any] = {"filter_conditions": filter_conditions, "sort": sort}
    everything = cids(select(records, query(**body, limit=100)))
    wanted = {record.cid for record in records if naive.matches(record, filter_conditions or {})}
    assert set(everything) == wanted
    assert len(everything) == len(wanted)
    order.shuffle(records)
    forward = walk(records, "next", None, limit=limit, **body)
    assert [cid for found in forward for cid in found] == everything
    assert all(len(found) == limit for found in forward[:-1])
    if len(forward) > 1:
        end = select(records, query(**body, limit=limit))
        while end.next:
            end = select(records, query(**body, limit=limit, next=end.next))
        back = walk(records, "prev", end.prev, limit=limit, **body)
        assert back == forward[-2::-1]


def test_equal_keys_are_told_apart_by_the_identity() -> None:
    records = [call(number, created_at=T0) for number in (2, 0, 1)]
    assert cids(select(records, query())) == ["default:002", "default:001", "default:000"]
    up = select(records, query(sort=[{"field": "created_at", "direction": 1}]))
    assert cids(up) == ["default:000", "default:001", "default:002"]


@pytest.mark.parametrize("direction", [1, -1])
def test_what_has_no_value_comes_last_either_way(direction: int) -> None:
    records = [call(0), call(1, starts_at=T0 + 1), call(2, starts_at=T0)]
    found = select(records, query(sort=[{"field": "starts_at", "direction": direction}]))
    assert cids(found)[-1] == "default:000"
    assert cids(found)[:2] == ["default:002", "default:001"][::direction]


def test_values_of_all_kinds_have_an_order() -> None:
    values = ["b", 2, True, None, [1], {"a": 1}, "a", 1.5, False]
    records = [call(number, custom={"a": value}) for number, value in enumerate(values)]
    found = select(records, query(sort=[{"field": "custom.a", "direction": 1}]))
    in_order = [record.custom["a"] for record in found.items]
    assert in_order == [False, True, 1.5, 2, "a", "b", None, [1], {"a": 1}]


def test_members_are_paged_by_their_user() -> None:
    everybody = [member(name) for name in ("cyd", "ann", "bob")]
    body: dict[str, Any] = {"limit": 2}
    first = select(everybody, read_query(body, MEMBERS, default_sort=[Sort("created_at")]))
    assert [each.user_id for each in first.items] == ["ann", "bob"]
    body["next"] = first.next
    second = select(everybody, read_query(body, MEMBERS, default_sort=[Sort("created_at")]))
    assert [each.user_id for each in second.items] == ["cyd"]


def test_there_is_no_page_before_the_first_and_behind_the_last() -> None:
    first = select(TEN, query(limit=5))
    assert (first.prev, first.next is None) == (None, False)
    last = select(TEN, query(limit=5, next=first.next))
    assert (last.next, last.prev is None) == (None, False)
    again = select(TEN, query(limit=5, prev=last.prev))
    assert (cids(again), again.prev, again.next is None) == (cids(first), None, False)


def test_what_comes_and_goes_moves_no_page() -> None:
    first = select(TEN, query(limit=3))
    changed = [call(11), *TEN[:7], *TEN[8:]]  # one before, and the one the cursor stands at gone
    second = select(changed, query(limit=3, next=first.next))
    assert cids(second) == ["default:006", "default:005", "default:004"]


def test_the_limit_may_change_between_pages() -> None:
    first = select(TEN, query(limit=3))
    assert len(select(TEN, query(limit=7, next=first.next)).items) == 7


def test_an_empty_page_has_no_cursors() -> None:
    first = select(TEN, query(limit=9))
    assert select([], query(limit=9, next=first.next)) == Found(items=())


@pytest.mark.parametrize(
    "other",
    [
        {"filter_conditions": {"type": "default"}},
        {"sort": [{"field": "created_at", "direction": 1}]},
        {"sort": [{"field": "cid", "direction": -1}]},
    ],
    ids=str,
)
def test_the_cursor_of_another_query_is_refused(other: dict[str, Any]) -> None:
    cursor = select(TEN, query(limit=3)).next
    assert query(next=cursor)
    with pytest.raises(BadInput, match=r"^next is no cursor of this query"):
        query(**other, next=cursor)


def test_the_cursor_of_another_scope_or_direction_is_refused() -> None:
    cursor = select(TEN, query(limit=3)).next
    with pytest.raises(BadInput, match=r"^prev is no cursor"):
        query(prev=cursor)
    with pytest.raises(BadInput, match=r"^next is no cursor"):
        read_query({"next": cursor}, CALLS, default_sort=NEWEST_FIRST, scope="default:a")


@settings(deadline=None)
@given(position=st.integers(0, 200), char=st.sampled_from("AZaz09-_"))
def test_a_garbled_cursor_is_refused(position: int, char: str) -> None:
    cursor = select(TEN, query(limit=3)).next
    assert cursor is not None
    position %= len(cursor) - 1  # the last character may hold bits that mean nothing
    garbled = cursor[:position] + char + cursor[position + 1 :]
    if garbled != cursor:
        with pytest.raises(BadInput, match=r"^next is no cursor"):
            query(next=garbled)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(VALUES, max_size=3), identity=VALUES, sort=sorts)
def test_a_well_sealed_forgery_is_a_place_or_refused(
    values: list[Any], identity: Any, sort: list[dict[str, Any]]
) -> None:
    stands = [True, values, identity]
    seal = query(sort=sort).seal(stands)
    text = base64.urlsafe_b64encode(wire.encode([*stands, seal])).decode().rstrip("=")
    try:
        found = query(sort=sort, next=text)
    except BadInput:
        return
    assert isinstance(select(TEN, found), Found)
