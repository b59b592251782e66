"""A query looks at what its budget allows: less is answered, more is refused and says why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from relay.broker.finding import AT_ONCE, Budget, Queries, find
from relay.broker.indexes import Span, marks_of_call
from relay.broker.memory_store import MemoryTable
from relay.calls import Call
from relay.errors import BadInput, Unavailable
from relay.filters import Found, Query
from tests.filters.records import T0, call, member, query

pytestmark = pytest.mark.anyio


class Records(MemoryTable[Call]):
    """Calls in memory that write down how they were looked at; each is so many bytes long."""

    def __init__(self, calls: Sequence[Call], size: int = 0) -> None:
        super().__init__(marks_of_call)
        self.size = size
        self.looks: list[int] = []
        self.read: list[tuple[str, int]] = []
        for each in calls:
            self.put(each.cid, each)

    async def look(self, identities: Sequence[str], budget: Budget) -> list[Call | None]:
        self.looks.append(len(identities))
        budget.spend(0, self.size * len(identities))
        return await super().look(identities, budget)

    async def marks(self, index: str, span: Span, most: int, *, ascending: bool) -> list[str]:
        self.read.append((index, most))
        return await super().marks(index, span, most, ascending=ascending)


HUNDRED = [call(number, custom={"n": number}) for number in range(100)]
BY_ID = [{"field": "id", "direction": 1}]


async def look_for(asked: Query, records: Records) -> Found[Call]:
    return await find(asked, records, Budget(asked))


async def test_a_page_is_full_before_the_budget_is_spent() -> None:
    records = Records(HUNDRED)
    asked = query(limit=5)
    found = await find(asked, records, Budget(asked, records=6))
    assert [each.id for each in found.items] == ["099", "098", "097", "096", "095"]
    assert records.looks == [6]


async def test_a_page_that_is_not_full_when_it_is_spent_is_refused() -> None:
    asked = query({"custom.n": {"$lt": 50}}, limit=5)
    with pytest.raises(BadInput) as refusal:
        await find(asked, Records(HUNDRED), Budget(asked, records=52))
    assert refusal.value.message == (
        "filter_conditions has to look at more than 52 calls: narrow it by cid, type, "
        "created_by_user_id, members or a range of created_at"
    )
    found = await find(asked, Records(HUNDRED), Budget(asked, records=56))
    assert len(found.items) == 5


async def test_everything_may_be_looked_at_when_the_budget_is_just_enough() -> None:
    asked = query({"custom.n": -1})
    assert (await find(asked, Records(HUNDRED), Budget(asked, records=100))).items == ()
    with pytest.raises(BadInput):
        await find(asked, Records(HUNDRED), Budget(asked, records=99))


async def test_another_order_is_refused_before_anything_is_looked_at() -> None:
    asked = query(sort=BY_ID)
    records = Records(HUNDRED)
    with pytest.raises(BadInput, match=r"or sort by created_at alone$"):
        await find(asked, records, Budget(asked, records=99))
    assert records.looks == []
    found = await find(asked, records, Budget(asked, records=100))
    assert [each.id for each in found.items] == [f"{n:03d}" for n in range(25)]


async def test_named_calls_count_too() -> None:
    asked = query({"cid": {"$in": [each.cid for each in HUNDRED]}})
    assert len((await find(asked, Records(HUNDRED), Budget(asked, records=100))).items) == 100
    with pytest.raises(BadInput, match="more than 99 calls"):
        await find(asked, Records(HUNDRED), Budget(asked, records=99))


async def test_named_calls_are_looked_at_in_growing_portions_too() -> None:
    records = Records(HUNDRED)
    await look_for(query({"cid": {"$in": [each.cid for each in HUNDRED]}}), records)
    assert records.looks == [26, 52, 22]


async def test_bytes_are_bounded() -> None:
    asked = query({"custom.n": -1})
    with pytest.raises(BadInput, match="more than 9999 bytes: narrow it"):
        await find(asked, Records(HUNDRED, size=100), Budget(asked, bytes_=9999))
    assert (await find(asked, Records(HUNDRED, size=100), Budget(asked, bytes_=10_000))).items == ()


async def test_portions_grow_and_those_of_large_records_do_not() -> None:
    calls = [call(number, cid=f"default:{number:04d}") for number in range(1000)]
    asked = query({"team": "red"}, limit=9)
    small, large = Records(calls), Records(calls, size=1_000_000)
    await look_for(asked, small)
    assert small.looks == [10, 20, 40, 80, 160, AT_ONCE, AT_ONCE, 190]
    await find(asked, large, Budget(asked, bytes_=10**10))
    assert set(large.looks[1:-1]) == {4}


async def test_the_way_with_the_fewest_candidates_is_gone() -> None:
    calls = [call(number, members=(member("ann"),)) for number in range(30)]
    calls += [call(99, created_by="bob", members=(member("ann"), member("cyd")))]
    records = Records(calls)
    found = await look_for(query({"members": "ann", "created_by_user_id": "bob"}), records)
    assert [each.id for each in found.items] == ["099"]
    assert records.read == [("calls:by:bob", 26)]


async def test_ways_side_by_side_are_read_in_one_order_and_each_call_once() -> None:
    calls = [
        call(number, members=tuple(member(name) for name in names))
        for number, names in enumerate([("ann",), ("bob",), ("ann", "bob"), ("cyd",)] * 20)
    ]
    either = {"members": {"$in": ["ann", "bob", "cyd"]}}
    forward = await look_for(query(either, limit=100), Records(calls))
    assert [each.id for each in forward.items] == [f"{n:03d}" for n in range(79, -1, -1)]
    up = query(either, limit=100, sort=[{"field": "created_at"}])
    assert [each.id for each in (await look_for(up, Records(calls))).items] == [
        f"{n:03d}" for n in range(80)
    ]


async def test_an_earlier_call_of_the_same_cid_is_not_found_twice() -> None:
    records = Records([call(1), call(2)])
    for where, text in marks_of_call(call(1, created_at=T0 + 77)):
        records.mark(where, text)
    found = await look_for(query(), records)
    assert [each.id for each in found.items] == ["002", "001"]


async def test_a_query_that_takes_too_long_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"not answered within 0 s: narrow it, or try again"):
        await Queries(query_s=0.0).find(query(), Records(HUNDRED))


async def test_a_few_queries_are_answered_at_a_time() -> None:
    class Busy(Records):
        looking = most = 0

        async def look(self, identities: Sequence[str], budget: Budget) -> list[Call | None]:
            self.looking += 1
            self.most = max(self.most, self.looking)
            found = await super().look(identities, budget)
            self.looking -= 1
            return found

    busy, queries = Busy(HUNDRED), Queries(at_once=2)
    found = await asyncio.gather(*[queries.find(query(limit=5), busy) for _ in range(6)])
    assert [len(each.items) for each in found] == [5] * 6
    assert busy.most == 2


async def test_a_costly_filter_lets_others_have_their_turn() -> None:
    crowd = tuple(member(f"user-{number}") for number in range(1000))
    records = Records([call(number, members=crowd) for number in range(20)])
    costly = [{"members": {"$nin": [f"nobody-{number}"]}} for number in range(90)]
    finding = asyncio.create_task(look_for(query({"$and": costly}), records))
    turns = 0
    while not finding.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(finding.result().items) == 20
    assert turns > 10
