"""How long to wait before trying again. Pure: randomness comes in as an argument."""

from __future__ import annotations

from random import Random


def backoff(failures: int, rng: Random, *, first_s: float = 0.1, longest_s: float = 2.0) -> float:
    """Return seconds to wait after ``failures`` in a row (from 1): doubling, capped, jittered.

    Between half and the whole of the doubled time, so that many who failed together do not return
    together.
    """
    ceiling = min(longest_s, first_s * 2.0 ** min(failures - 1, 16))
    return ceiling * rng.uniform(0.5, 1.0)
