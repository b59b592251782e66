"""What both brokers agree on: digests of ids, and that nothing outlives what it refers to."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from relay.broker import Limits
from relay.broker.rules import alias_key, call_life_s, given_window_s, seen_key
from tests.contract.harness import event

parts = st.text(alphabet=string.ascii_letters + ":0123456789", max_size=6)


@given(st.tuples(parts, parts, parts), st.tuples(parts, parts, parts))
def test_different_calls_senders_and_ids_never_meet(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    keys = [
        seen_key(event(cid=cid, sender=sender, identity=f"#{identity}"))
        for cid, sender, identity in (one, other)
    ]
    assert (keys[0] == keys[1]) == (one == other)


def test_an_alias_never_meets_an_identity() -> None:
    both = event(identity="x", alias="x")
    assert alias_key(both) != seen_key(both)


def test_without_an_identity_nothing_is_remembered() -> None:
    assert seen_key(event(identity=None)) is None
    assert alias_key(event(identity=None, alias="x")) is None
    assert alias_key(event(identity="x")) is None


@given(
    st.builds(
        Limits,
        history_age_s=st.floats(0.1, 1e6),
        dedupe_window_s=st.floats(0.1, 1e6),
        minted_window_s=st.floats(0.1, 1e6),
    )
)
def test_an_idle_call_outlives_what_refers_to_it(limits: Limits) -> None:
    life = call_life_s(limits)
    assert life > limits.history_age_s
    assert life > given_window_s(limits) > limits.dedupe_window_s
    assert life > limits.minted_window_s
