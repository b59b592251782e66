"""When a hook is left alone, what it earns, and how partitions are shared out."""

from __future__ import annotations

from random import Random

import pytest

from relay.egress.breaker import (
    FAILURES,
    FIRST_PAUSE_S,
    FIRST_REST_S,
    LONGEST_PAUSE_S,
    LONGEST_REST_S,
    MOST_AT_ONCE,
    SLOW_S,
    STEADY_AFTER_S,
    Allowance,
    Breaker,
    Rests,
    Slots,
)
from relay.egress.dispatcher import shares


def opened() -> tuple[Breaker, float]:
    breaker = Breaker(Random(1))
    pauses = [breaker.failed() for _ in range(FAILURES)]
    assert pauses[:-1] == [None] * (FAILURES - 1)
    assert pauses[-1] is not None
    return breaker, pauses[-1]


def test_a_hook_is_opened_by_failures_in_a_row_only() -> None:
    breaker = Breaker(Random(1))
    for _ in range(5):
        for _ in range(FAILURES - 1):
            assert breaker.failed() is None
        breaker.succeeded()
    assert not breaker.is_open
    assert breaker.admits(1000)


def test_an_open_hook_begins_nothing_until_its_pause_is_over_and_then_one() -> None:
    breaker, pause_s = opened()
    assert FIRST_PAUSE_S / 2 <= pause_s <= FIRST_PAUSE_S
    assert breaker.is_open
    assert not breaker.admits(0)
    assert breaker.failed() is None  # an attempt that was under way
    breaker.pause_is_over()
    assert breaker.admits(0)
    assert not breaker.admits(1)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.admits(5)


def test_every_probe_that_fails_makes_the_pause_longer_up_to_a_bound() -> None:
    breaker, _ = opened()
    pauses = []
    for _ in range(8):
        breaker.pause_is_over()
        pause_s = breaker.failed()
        assert pause_s is not None
        assert not breaker.admits(0)
        pauses.append(pause_s)
    assert pauses[0] > FIRST_PAUSE_S / 2
    assert max(pauses) <= LONGEST_PAUSE_S
    assert pauses[-1] >= LONGEST_PAUSE_S / 2


def test_the_end_of_a_pause_means_nothing_to_a_hook_that_is_closed() -> None:
    breaker, _ = opened()
    breaker.succeeded()
    breaker.pause_is_over()
    assert breaker.admits(5)


def test_what_may_be_under_way_is_earned_by_speed() -> None:
    allowance = Allowance()
    assert allowance.earned == 1
    for _ in range(200):
        allowance.ended(SLOW_S / 2)
    assert allowance.earned == MOST_AT_ONCE
    allowance.ended(SLOW_S)
    assert allowance.earned == MOST_AT_ONCE // 2
    for _ in range(20):
        allowance.ended(SLOW_S)
    assert allowance.earned == 1


@pytest.mark.parametrize(
    ("taken", "under_way", "earned", "admits"),
    [
        (0, 0, 1, True),
        (100, 0, 64, True),  # each may always have one
        (99, 3, 3, False),
        (99, 3, 4, True),
        (49, 3, 1, True),  # there is room for those who have not earned it
        (50, 3, 1, False),
        (100, 3, 64, False),
        (0, MOST_AT_ONCE, MOST_AT_ONCE, False),
    ],
)
def test_attempts_are_bounded_in_all_and_for_each_hook(
    taken: int, under_way: int, earned: int, admits: bool
) -> None:
    slots = Slots(100)
    slots.taken = taken
    assert slots.admits(under_way, earned) is admits


def test_a_partition_that_fails_again_and_again_rests_longer_each_time() -> None:
    rests, now_ms, spans = Rests(Random(1)), 0, []
    for _ in range(8):
        rests.failed(3, now_ms)
        assert rests.admits(4, now_ms)
        began = now_ms
        while not rests.admits(3, now_ms):
            now_ms += 100
        spans.append((now_ms - began) / 1000)
    assert 0 < spans[0] <= FIRST_REST_S
    assert LONGEST_REST_S / 2 <= spans[-1] <= LONGEST_REST_S
    rests.failed(3, now_ms + int(1000 * (STEADY_AFTER_S + LONGEST_REST_S)))
    assert rests.admits(3, now_ms + int(1000 * (STEADY_AFTER_S + LONGEST_REST_S + FIRST_REST_S)))


def test_partitions_are_shared_out_evenly_and_few_move() -> None:
    three = shares(["a", "b", "c"], 256)
    assert set.union(*three.values()) == set(range(256))
    assert sum(map(len, three.values())) == 256
    assert min(map(len, three.values())) > 50
    two = shares(["a", "c"], 256)
    assert three["a"] <= two["a"]
    assert three["c"] <= two["c"]
    assert shares(["c", "b", "a"], 256) == three
