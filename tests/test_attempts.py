"""The retry table of docs/delivery.md, row by row, with a clock that only the test moves."""

from __future__ import annotations

from random import Random
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.retry import (
    ATTEMPTS,
    BUDGET_S,
    REQUEST_LIMIT_S,
    SHORTEST_ATTEMPT_S,
    Outcome,
    attempt_limit,
    later_attempt,
    next_attempt,
    outcome_of,
    read_retry_after,
)
from tests.test_retry import Always

FAILURES: Final = [Outcome.REFUSED, Outcome.RETRYABLE, Outcome.NETWORK, Outcome.TIMEOUT]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (199, Outcome.REFUSED),
        (200, Outcome.DELIVERED),
        (204, Outcome.DELIVERED),
        (299, Outcome.DELIVERED),
        (300, Outcome.REFUSED),
        (301, Outcome.REFUSED),
        (307, Outcome.REFUSED),
        (400, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (407, Outcome.REFUSED),
        (408, Outcome.RETRYABLE),
        (410, Outcome.REFUSED),
        (429, Outcome.RETRYABLE),
        (499, Outcome.REFUSED),
        (500, Outcome.RETRYABLE),
        (503, Outcome.RETRYABLE),
        (599, Outcome.RETRYABLE),
    ],
)
def test_a_status_means_one_outcome(status: int, outcome: Outcome) -> None:
    assert outcome_of(status) is outcome


def play(outcomes: list[Outcome], takes_s: float, rng: Random) -> list[tuple[float, float]]:
    """Return when each attempt began and ended, the first at 0; they end as listed, in turn."""
    attempts: list[tuple[float, float]] = []
    now_s = 0.0
    while True:
        limit_s = attempt_limit(now_s)
        outcome = outcomes[min(len(attempts), len(outcomes) - 1)]
        lasts_s = limit_s if outcome is Outcome.TIMEOUT else min(takes_s, limit_s)
        attempts.append((now_s, now_s + lasts_s))
        now_s += lasts_s
        delay_s = next_attempt(outcome, len(attempts), now_s, rng)
        if delay_s is None:
            return attempts
        now_s += delay_s


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [
        (Outcome.DELIVERED, 1),
        (Outcome.REFUSED, 1),
        (Outcome.NETWORK, 2),
        (Outcome.RETRYABLE, 3),
        (Outcome.TIMEOUT, 3),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_row_has_its_number_of_attempts(outcome: Outcome, attempts: int, share: float) -> None:
    assert len(play([outcome], 0.01, Always(share))) == attempts


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_three_timeouts_fit_into_fifteen_seconds(share: float) -> None:
    attempts = play([Outcome.TIMEOUT], 0.0, Always(share))
    lengths = [end - begin for begin, end in attempts]
    assert lengths[:2] == [6.0, 6.0]
    assert lengths[2] >= SHORTEST_ATTEMPT_S
    assert attempts[-1][1] <= BUDGET_S


def test_the_limit_is_that_of_the_latest_outcome() -> None:
    rng = Always(0.5)
    assert len(play([Outcome.NETWORK, Outcome.RETRYABLE], 0.01, rng)) == 3
    assert len(play([Outcome.RETRYABLE, Outcome.NETWORK], 0.01, rng)) == 2
    assert len(play([Outcome.TIMEOUT, Outcome.REFUSED], 0.01, rng)) == 2
    assert len(play([Outcome.RETRYABLE, Outcome.DELIVERED], 0.01, rng)) == 2


def test_the_pauses_double_and_are_not_the_same_for_all() -> None:
    assert [next_attempt(Outcome.RETRYABLE, made, 0.0, Always(0.0)) for made in (1, 2)] == [
        0.5,
        1.0,
    ]
    assert [next_attempt(Outcome.RETRYABLE, made, 0.0, Always(1.0)) for made in (1, 2)] == [
        1.0,
        2.0,
    ]


def test_a_pause_leaves_time_for_the_attempt_after_it() -> None:
    assert next_attempt(Outcome.TIMEOUT, 2, 13.0, Always(1.0)) == 1.0
    assert next_attempt(Outcome.TIMEOUT, 2, 14.0, Always(1.0)) == 0.0
    assert next_attempt(Outcome.TIMEOUT, 2, 14.01, Always(1.0)) is None


def test_a_receiver_is_left_alone_for_as_long_as_it_asks_inside_the_budget() -> None:
    rng = Always(1.0)
    assert next_attempt(Outcome.RETRYABLE, 1, 1.0, rng, 7.0) == 7.0
    assert next_attempt(Outcome.RETRYABLE, 1, 1.0, rng, 13.0) == 13.0
    assert next_attempt(Outcome.RETRYABLE, 1, 1.0, rng, 0.0) == 1.0  # never sooner than usual
    assert next_attempt(Outcome.RETRYABLE, 1, 1.0, rng, 13.1) == 1.0  # it does not fit


@given(
    st.sampled_from(FAILURES),
    st.integers(1, 5),
    st.floats(-5, 30),
    st.integers(),
    st.none() | st.floats(0, 1e6),
)
def test_no_attempt_begins_without_time_and_none_beyond_the_table(
    outcome: Outcome, made: int, elapsed_s: float, seed: int, retry_after_s: float | None
) -> None:
    delay_s = next_attempt(outcome, made, elapsed_s, Random(seed), retry_after_s)
    if delay_s is None:
        room_s = BUDGET_S - SHORTEST_ATTEMPT_S - elapsed_s
        assert made >= ATTEMPTS[outcome] or room_s < 0
        return
    assert made < ATTEMPTS[outcome]
    assert delay_s >= 0
    left_s = attempt_limit(max(elapsed_s, 0.0) + delay_s)
    assert SHORTEST_ATTEMPT_S - 1e-9 <= left_s <= REQUEST_LIMIT_S


@given(st.lists(st.sampled_from(FAILURES), min_size=1, max_size=6), st.floats(0, 6), st.integers())
def test_whatever_happens_it_is_over_within_fifteen_seconds(
    outcomes: list[Outcome], takes_s: float, seed: int
) -> None:
    attempts = play(outcomes, takes_s, Random(seed))
    assert len(attempts) <= 3
    assert attempts[-1][1] <= BUDGET_S + 1e-9
    assert all(end - begin <= REQUEST_LIMIT_S + 1e-9 for begin, end in attempts)


def test_an_attempt_may_take_what_is_left_and_what_the_hook_allows() -> None:
    assert attempt_limit(0.0) == 6.0
    assert attempt_limit(-3.0) == 6.0  # another process's clock
    assert attempt_limit(0.0, 0.25) == 0.25
    assert attempt_limit(12.5) == 2.5
    assert attempt_limit(15.5) == -0.5


# -- the longer schedule --------------------------------------------------------------------------


def test_the_longer_schedule_is_gone_through_once() -> None:
    waits = [later_attempt([60, 3600], made, Always(0.0)) for made in range(3)]
    assert waits == [60.0, 3600.0, None]
    assert later_attempt([], 0, Always(0.0)) is None
    assert later_attempt([60], 0, Always(1.0)) == pytest.approx(66.0)


def test_the_longer_schedule_waits_for_what_was_asked_for_up_to_a_day() -> None:
    assert later_attempt([60], 0, Always(0.0), 600.0) == 600.0
    assert later_attempt([60], 0, Always(0.0), 1e9) == 86_400
    assert later_attempt([60], 0, Always(0.0), 1.0) == 60.0


# -- Retry-After ----------------------------------------------------------------------------------

NOON: Final = 1_795_348_800.0  # Sun, 22 Nov 2026 12:00:00 GMT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 5000, 999_999_999.0),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30.0),
        ("Sun Nov 22 12:00:30 2026", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("Sun, 22 Nov 2026 12:00:30", 30.0),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_when_to_come_back_is_read_as_seconds_or_as_a_date(
    text: str | None, seconds: float | None
) -> None:
    assert read_retry_after(text, NOON) == seconds


@given(st.text(max_size=60))
def test_whatever_a_receiver_writes_there_is_survived(text: str) -> None:
    seconds = read_retry_after(text, NOON)
    assert seconds is None or seconds >= 0
