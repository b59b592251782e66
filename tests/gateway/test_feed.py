"""The order of one call: contiguous, or reported; nothing twice; never stuck."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.broker import Entry, Epoch, History
from relay.events import Position
from relay.gateway.feed import HOLD_LIMIT, Feed, Verdict

SOAK = int(os.environ.get("SOAK", "1"))
E1 = Epoch("e1", 1)


def body(offset: int, epoch: str = "e1") -> bytes:
    return f"{epoch}:{offset}".encode()


def history(
    top: int, first: int = 1, last: int | None = None, *, epochs: tuple[Epoch, ...] = (E1,)
) -> History:
    """The page from ``first`` to ``last`` (the top) of a call at ``top``."""
    entries = range(first, (top if last is None else last) + 1)
    return History(
        Position(epochs[-1].name, top),
        epochs,
        tuple(Entry(offset, body(offset)) for offset in entries),
    )


def feed_at(offset: int, epoch: str = "e1") -> Feed:
    return Feed(Position(epoch, offset))


def test_what_follows_is_delivered() -> None:
    feed = feed_at(4)
    assert feed.live(Position("e1", 5), body(5)) is Verdict.DELIVER
    assert feed.position == ("e1", 5)
    assert not feed.repairing


def test_what_was_delivered_before_is_dropped() -> None:
    feed = feed_at(4)
    assert feed.live(Position("e1", 4), body(4)) is Verdict.DROP
    assert feed.live(Position("e1", 1), body(1)) is Verdict.DROP
    assert feed.position == ("e1", 4)


def test_a_jump_begins_a_repair_and_the_rest_is_held() -> None:
    feed = feed_at(4)
    assert feed.live(Position("e1", 6), body(6)) is Verdict.REPAIR
    assert feed.live(Position("e1", 7), body(7)) is Verdict.HOLD
    assert feed.reading() == 4
    filled = feed.page(history(7, 5))
    assert filled == ([body(5), body(6), body(7)], None, True)
    assert feed.live(Position("e1", 8), body(8)) is Verdict.DELIVER


def test_another_epoch_begins_a_repair_even_at_the_next_offset() -> None:
    feed = feed_at(4)
    assert feed.live(Position("e2", 5), body(5, "e2")) is Verdict.REPAIR
    feed.reading()
    epochs = (E1, Epoch("e2", 5))
    filled = feed.page(history(5, 5, epochs=epochs))
    assert not filled.lost
    assert feed.position == ("e2", 5)


def test_what_is_held_and_follows_the_page_is_delivered_after_it() -> None:
    feed = feed_at(0)
    feed.live(Position("e1", 3), body(3))
    feed.reading()
    feed.live(Position("e1", 4), body(4))
    filled = feed.page(history(2, 1))  # read before 3 and 4
    assert filled.bodies == [body(n) for n in (1, 2, 3, 4)]
    assert filled.done


def test_a_gap_among_what_was_held_since_the_read_is_read_again() -> None:
    feed = feed_at(0)
    feed.live(Position("e1", 2), body(2))
    feed.reading()
    feed.live(Position("e1", 5), body(5))
    filled = feed.page(history(2, 1))
    assert filled == ([body(1), body(2)], None, False)
    assert feed.reading() == 2
    assert feed.page(history(5, 3)) == ([body(3), body(4), body(5)], None, True)


def test_what_was_held_before_the_read_and_is_not_in_history_never_happened() -> None:
    feed = feed_at(2)
    feed.live(Position("e1", 9), body(9))
    feed.reading()
    assert feed.page(history(3, 3)) == ([body(3)], None, True)
    assert feed.live(Position("e1", 4), body(4)) is Verdict.DELIVER


def test_a_page_that_ends_before_the_top_asks_for_another() -> None:
    feed = feed_at(0)
    feed.live(Position("e1", 4), body(4))
    feed.reading()
    assert feed.page(history(4, 1, 2)) == ([body(1), body(2)], None, False)
    assert feed.reading() == 2
    assert feed.page(history(4, 3)) == ([body(3), body(4)], None, True)


def test_trimmed_history_is_reported_and_continues_with_what_is_left() -> None:
    feed = feed_at(2)
    feed.live(Position("e1", 9), body(9))
    feed.reading()
    feed.live(Position("e1", 10), body(10))
    left = [body(offset) for offset in range(5, 11)]
    assert feed.page(history(9, 5)) == (left, Position("e1", 4), True)
    assert feed.position == ("e1", 10)


def test_history_of_which_nothing_is_left_continues_at_the_top() -> None:
    feed = feed_at(2)
    feed.reading()
    assert feed.page(history(9, 10)) == ([], Position("e1", 9), True)


def test_a_position_that_a_failover_replaced_is_reported() -> None:
    feed = feed_at(7)
    feed.reading()
    epochs = (E1, Epoch("e2", 6))
    filled = feed.page(history(8, 8, epochs=epochs))
    assert filled == ([], Position("e2", 5), False)
    # What stands now where other events stood before is delivered too.
    assert feed.reading() == 5
    filled = feed.page(history(8, 6, epochs=epochs))
    assert filled == ([body(6), body(7), body(8)], None, True)
    assert feed.position == ("e2", 8)


def test_an_unknown_epoch_is_reported() -> None:
    feed = feed_at(3, "older")
    feed.reading()
    assert feed.page(history(3)).lost


def test_a_call_that_forgot_everything_is_reported() -> None:
    feed = feed_at(3)
    feed.reading()
    filled = feed.page(History(Position("new", 0), (Epoch("new", 1),), ()))
    assert filled == ([], Position("new", 0), True)
    assert feed.live(Position("new", 1), body(1)) is Verdict.DELIVER


def test_a_call_that_forgot_everything_goes_on_with_what_came_since() -> None:
    feed = feed_at(9)
    feed.reading()
    epochs = (Epoch("new", 1),)
    assert feed.page(history(2, 3, epochs=epochs)) == ([], Position("new", 0), False)
    assert feed.reading() == 0
    assert feed.page(history(2, 1, epochs=epochs)) == ([body(1), body(2)], None, True)


def test_an_epoch_that_has_left_the_table_goes_on_where_the_table_begins() -> None:
    feed = feed_at(9, "older")
    feed.reading()
    epochs = (Epoch("e2", 5), Epoch("e3", 12))
    assert feed.page(history(13, 10, epochs=epochs)) == ([], Position("e3", 4), False)
    early = feed_at(2, "older")
    early.reading()
    filled = early.page(history(6, 3, epochs=(Epoch("e2", 5),)))
    assert filled == ([body(n) for n in (3, 4, 5, 6)], Position("e2", 2), True)


def test_a_read_that_finds_nothing_missing_ends_the_repair() -> None:
    feed = feed_at(3)
    feed.reading()
    assert feed.page(history(3, 4)) == ([], None, True)
    assert not feed.repairing


def test_more_than_can_be_held_is_read_from_history() -> None:
    feed = feed_at(0)
    feed.live(Position("e1", 2), body(2))
    feed.reading()
    top = HOLD_LIMIT + 50
    for offset in range(3, top + 1):
        assert feed.live(Position("e1", offset), body(offset)) is Verdict.HOLD
    filled = feed.page(history(2, 1))
    assert not filled.done, "what was not held is missing"
    got = len(filled.bodies)
    assert got == HOLD_LIMIT + 1
    assert feed.reading() == got
    assert feed.page(history(top, got + 1)).done
    assert feed.position.offset == top


# -- any race, against a model --------------------------------------------------------------------


@dataclass
class World:
    """A broker, and what was told to watchers: bodies, and where they were told of a loss."""

    page_count: int
    epochs: list[Epoch] = field(default_factory=lambda: [E1])
    entries: list[Entry] = field(default_factory=list)
    top: int = 0
    taken_over: int = 0
    in_flight: list[tuple[Position, bytes]] = field(default_factory=list)
    page_asked: int | None = None
    page_read: History | None = None
    told: list[bytes | Position] = field(default_factory=list)
    feed: Feed = field(default_factory=lambda: Feed(Position("e1", 0)))

    @property
    def position(self) -> Position:
        return Position(self.epochs[-1].name, self.top)

    # -- the broker

    def publish(self, *, arrives: bool) -> None:
        self.top += 1
        entry = Entry(self.top, body(self.top, self.position.epoch))
        self.entries.append(entry)
        if arrives:
            self.in_flight.append((self.position, entry.body))

    def trim(self, count: int) -> None:
        del self.entries[:count]

    def fail_over(self, lost: int) -> None:
        self.top = max(0, self.top - lost)
        self.entries = [entry for entry in self.entries if entry.offset <= self.top]
        # What the new primary has is a beginning of what happened, its table of epochs too.
        self.epochs = [epoch for epoch in self.epochs if epoch.start <= self.top + 1]
        self.taken_over += 1
        self.epochs.append(Epoch(f"e{1 + self.taken_over}", self.top + 1))

    def read(self, after: int) -> History:
        entries = [entry for entry in self.entries if entry.offset > after]
        return History(self.position, tuple(self.epochs), tuple(entries[: self.page_count]))

    # -- the hub

    def arrive(self, index: int) -> None:
        if self.in_flight:
            position, data = self.in_flight.pop(index % len(self.in_flight))
            match self.feed.live(position, data):
                case Verdict.DELIVER:
                    self.told.append(data)
                case Verdict.REPAIR:
                    assert self.page_asked is None
                    self.page_asked = self.feed.reading()

    def repeat(self, index: int) -> None:
        """Let a message come again later: a resubscribe and a broker's retry may do that."""
        if self.in_flight:
            self.in_flight.append(self.in_flight[index % len(self.in_flight)])

    def compare(self) -> None:
        if not self.feed.repairing and self.feed.position != self.position:
            self.page_asked = self.feed.reading()

    def broker_reads(self) -> None:
        if self.page_asked is not None and self.page_read is None:
            self.page_read = self.read(self.page_asked)

    def page_arrives(self) -> None:
        if self.page_read is None:
            return
        page, self.page_read, self.page_asked = self.page_read, None, None
        filled = self.feed.page(page)
        if filled.lost is not None:
            self.told.append(filled.lost)
        self.told += filled.bodies
        if not filled.done:
            self.page_asked = self.feed.reading()

    def settle(self) -> None:
        """Nothing happens any more: everything arrives and the silence check comes round."""
        while self.in_flight:
            self.arrive(0)
        pages = 0
        self.compare()
        while self.page_asked is not None:
            self.broker_reads()
            self.page_arrives()
            self.compare()
            pages += 1
            assert pages <= 10 + self.top, "stuck"


STEPS = st.one_of(
    st.tuples(st.just("publish"), st.booleans()),
    st.tuples(st.just("publish"), st.just(True)),
    st.tuples(st.just("arrive"), st.integers(0, 3)),
    st.tuples(st.just("arrive"), st.just(0)),
    st.tuples(st.just("arrive twice"), st.integers(0, 3)),
    st.tuples(st.just("trim"), st.integers(1, 5)),
    st.tuples(st.just("fail over"), st.integers(0, 4)),
    st.tuples(st.just("compare"), st.none()),
    st.tuples(st.just("read"), st.none()),
    st.tuples(st.just("page"), st.none()),
)


def play(world: World, steps: list[tuple[str, object]]) -> None:
    for name, argument in steps:
        match name, argument:
            case "publish", bool(arrives):
                world.publish(arrives=arrives)
            case "arrive", int(index):
                world.arrive(index)
            case "arrive twice", int(index):
                world.repeat(index)
                world.arrive(index)
            case "trim", int(count):
                world.trim(count)
            case "fail over", int(lost):
                world.fail_over(lost)
            case "compare", _:
                world.compare()
            case "read", _:
                world.broker_reads()
            case "page", _:
                world.page_arrives()
    world.settle()


def check(told: list[bytes | Position]) -> None:
    """Between two reports offsets follow one another: nothing twice, nothing missing."""
    expected = 1
    for thing in told:
        if isinstance(thing, Position):
            expected = thing.offset + 1
            continue
        offset = int(thing.decode().partition(":")[2])
        assert offset == expected, told
        expected = offset + 1


@settings(max_examples=400 * SOAK, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(1, 4))
def test_any_race_ends_contiguous_or_reported(
    steps: list[tuple[str, object]], page_count: int
) -> None:
    world = World(page_count)
    play(world, steps)
    assert world.feed.position == world.position, "it ends where the broker is"
    check(world.told)
    final = {entry.offset: entry.body for entry in world.entries}
    last_report = max((i for i, x in enumerate(world.told) if isinstance(x, Position)), default=-1)
    for thing in world.told[last_report + 1 :]:
        assert isinstance(thing, bytes)
        offset = int(thing.decode().partition(":")[2])
        assert final.get(offset, thing) == thing, "another event stands at that offset now"


HARMLESS = st.one_of(
    STEPS.filter(lambda step: step[0] not in ("trim", "fail over")), st.just(("fail over", 0))
)


@settings(max_examples=400 * SOAK, deadline=None)
@given(st.lists(HARMLESS, max_size=60), st.integers(1, 4))
def test_loss_delay_repeats_and_epochs_that_lose_nothing_are_never_reported(
    steps: list[tuple[str, object]], page_count: int
) -> None:
    """What history has is delivered, every one of them once, whatever became of the messages."""
    world = World(page_count)
    play(world, steps)
    assert world.told == [entry.body for entry in world.entries]


@settings(max_examples=300 * SOAK, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(1, 4))
def test_a_report_leaves_out_what_is_lost_and_nothing_else(
    steps: list[tuple[str, object]], page_count: int
) -> None:
    """Of what history still has, all that follows the last report was told, and in order."""
    world = World(page_count)
    play(world, steps)
    reports = [index for index, thing in enumerate(world.told) if isinstance(thing, Position)]
    start = world.told[reports[-1]].offset if reports else 0  # type: ignore[union-attr]
    told = world.told[reports[-1] + 1 :] if reports else world.told
    left = [entry.body for entry in world.entries if entry.offset > start]
    assert told[len(told) - len(left) :] == left


@pytest.mark.parametrize("page_count", [1, 3])
def test_a_feed_behind_by_a_thousand_catches_up_page_by_page(page_count: int) -> None:
    world = World(page_count)
    play(world, [("publish", False)] * 1000)
    assert [thing for thing in world.told if isinstance(thing, Position)] == []
    assert len(world.told) == 1000
