"""What a page of history can tell about a position: the rules are the interface's own."""

from __future__ import annotations

import pytest

from relay.broker import Entry, Epoch, History
from relay.events import Position


def page(first: int, last: int, *, top: int, epochs: tuple[Epoch, ...]) -> History:
    entries = tuple(Entry(offset, b"%d" % offset) for offset in range(first, last + 1))
    return History(top=Position(epochs[-1].name, top), epochs=epochs, entries=entries)


ONE = (Epoch("a", 1),)
THREE = (Epoch("a", 1), Epoch("b", 11), Epoch("c", 21))


@pytest.mark.parametrize(
    ("position", "good"),
    [
        (Position("a", 0), True),
        (Position("a", 10), True),
        (Position("a", 11), False),  # that offset was given again by another epoch
        (Position("b", 11), True),
        (Position("b", 20), True),
        (Position("b", 21), False),
        (Position("c", 25), True),
        (Position("c", 26), False),  # never given
        (Position("z", 5), False),
    ],
)
def test_a_position_is_good_below_the_next_epoch(position: Position, good: bool) -> None:
    assert page(1, 25, top=25, epochs=THREE).is_good(position) is good


@pytest.mark.parametrize(
    ("offset", "continues"), [(3, False), (4, True), (7, True), (10, True), (11, False)]
)
def test_history_continues_what_it_reaches_back_to(offset: int, continues: bool) -> None:
    assert page(5, 10, top=10, epochs=ONE).continues(Position("a", offset)) is continues


def test_an_empty_page_continues_the_top_only() -> None:
    empty = page(1, 0, top=10, epochs=ONE)
    assert empty.continues(Position("a", 10))
    assert not empty.continues(Position("a", 9))


def test_the_top_of_an_unknown_epoch_continues_nothing() -> None:
    assert not page(1, 10, top=10, epochs=ONE).continues(Position("z", 10))


@pytest.mark.parametrize(
    ("after", "first"), [(0, 5), (4, 5), (5, 6), (9, 10), (10, None), (99, None)]
)
def test_entries_after_an_offset(after: int, first: int | None) -> None:
    entries = page(5, 10, top=10, epochs=ONE).after(after)
    assert (entries[0].offset if entries else None) == first


def test_an_empty_page_has_no_entries_after_anything() -> None:
    assert page(1, 0, top=10, epochs=ONE).after(3) == ()
