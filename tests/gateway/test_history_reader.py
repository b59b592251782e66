"""Shared reads of history: one at a time, spaced out, and nobody kept waiting."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Entry, Epoch, History, Unavailable
from relay.gateway.recovery import CHUNK_BYTES, CHUNKS_SHARED, READ_INTERVAL_S, HistoryReader, Page
from relay.tasks import Tasks
from tests.gateway.fakes import (
    CID,
    FakeBroker,
    at,
    body,
    gathered,
    texts_in,
    turns,
)

pytestmark = pytest.mark.anyio


# -- pages ----------------------------------------------------------------------------------------


def page(top: int, first: int, last: int, after: int, size: int = 0) -> Page:
    entries = tuple(Entry(n, body(n) + b" " * size) for n in range(first, last + 1))
    return Page(History(at(top), (Epoch("e1", 1),), entries), after)


def test_a_page_covers_what_it_was_read_for_and_no_more() -> None:
    inner = page(top=9, first=3, last=6, after=2)
    assert [inner.covers(n) for n in (1, 2, 5, 6, 9)] == [False, True, True, False, False]
    last = page(top=6, first=3, last=6, after=2)
    assert [last.covers(n) for n in (1, 2, 6, 7)] == [False, True, True, True]


def test_a_page_serves_until_the_call_has_come_further() -> None:
    last = page(top=6, first=3, last=6, after=2)
    assert last.serves(6, at(6))
    assert not last.serves(6, at(7))
    assert last.serves(5, at(7))
    assert not last.serves(5, at(6, "e2"))


def test_a_chunk_ends_where_it_should() -> None:
    some = page(top=9, first=3, last=9, after=2)
    data, frames, offset = some.chunk(4, 7)
    assert list(texts_in(data)) == [body(5), body(6), body(7)]
    assert (frames, offset) == (3, 7)
    assert some.chunk(7, 7) == (b"", 0, 7)
    assert some.chunk(4, 7) is some.chunk(4, 7)


def test_a_chunk_is_bounded_in_bytes() -> None:
    large = page(top=20, first=1, last=20, after=0, size=CHUNK_BYTES // 4)
    assert large.chunk(0, 20).frames == 4


def test_a_page_does_not_remember_a_chunk_for_everybody() -> None:
    some = page(top=100, first=1, last=100, after=0)
    for offset in range(100):
        some.chunk(offset, 100)
    assert len(some._chunks) == CHUNKS_SHARED


# -- the reader -----------------------------------------------------------------------------------


async def test_a_reader_asks_once_for_all_who_wait(broker: FakeBroker) -> None:
    tasks = Tasks("test")
    reader = HistoryReader(broker, CID, tasks)
    broker.lose(5)
    pages = await gathered([reader.page(2, at(5)) for _ in range(10)])
    assert len({id(page) for page in pages}) == 1
    assert broker.asked("history") == [2]
    await tasks.aclose()


async def test_a_page_is_let_go_of_once_a_fresh_one_may_be_read(broker: FakeBroker) -> None:
    tasks = Tasks("test")
    reader = HistoryReader(broker, CID, tasks)
    broker.lose(5)
    first = await reader.page(2, at(5))
    assert await reader.page(2, at(5)) is first
    await asyncio.sleep(READ_INTERVAL_S)
    await turns()
    assert reader._page is None
    await tasks.aclose()


async def test_all_who_wait_are_told_that_the_broker_is_away(broker: FakeBroker) -> None:
    tasks = Tasks("test")
    reader = HistoryReader(broker, CID, tasks)
    broker.away["history"] = 1
    broker.lose(5)
    results = await asyncio.gather(*(reader.page(n, at(5)) for n in (1, 2)), return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, Unavailable]
    assert results[0] is not results[1], "each has its own traceback"
    assert (await reader.page(1, at(5))).history.top == at(5)
    await tasks.aclose()


async def test_one_who_no_longer_waits_is_not_read_for(broker: FakeBroker) -> None:
    tasks = Tasks("test")
    reader = HistoryReader(broker, CID, tasks)
    await reader.page(0, at(0))
    waiting = asyncio.create_task(reader.page(3, at(5)))
    await turns()
    waiting.cancel()
    await asyncio.sleep(1)
    assert broker.asked("history") == [0]
    assert len(tasks) == 0


async def test_those_who_wait_when_it_closes_are_let_go(broker: FakeBroker) -> None:
    tasks = Tasks("test")
    reader = HistoryReader(broker, CID, tasks)
    broker.gates["history"] = asyncio.Event()
    waiting = asyncio.create_task(reader.page(0, at(1)))
    await turns()
    await tasks.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
