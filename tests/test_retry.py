"""The pause before the next try: it doubles, it is capped, it is never the same for all."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.retry import backoff


class Always(Random):
    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self._share


def test_it_doubles_up_to_the_longest() -> None:
    pauses = [backoff(failures, Always(1.0)) for failures in range(1, 8)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_it_lies_between_half_and_the_whole() -> None:
    assert backoff(3, Always(0.0), first_s=1.0, longest_s=100.0) == 2.0
    assert backoff(3, Always(1.0), first_s=1.0, longest_s=100.0) == 4.0


@given(st.integers(1, 10**9), st.floats(0.001, 10), st.floats(0.001, 1000), st.integers())
def test_its_bounds_hold_for_any_number_of_failures(
    failures: int, first_s: float, longest_s: float, seed: int
) -> None:
    pause = backoff(failures, Random(seed), first_s=first_s, longest_s=longest_s)
    assert min(first_s, longest_s) / 2 <= pause <= longest_s


def test_two_who_failed_together_do_not_return_together() -> None:
    assert backoff(5, Random(1)) != pytest.approx(backoff(5, Random(2)))
