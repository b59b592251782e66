"""Slots are those that a real Cluster counts, and commands go by their first key."""

from __future__ import annotations

import pytest

from relay.broker.slots import first_key, key_slot
from tests.redis_shapes import Cluster


def test_slots_are_counted_as_redis_does(redis_cluster: Cluster) -> None:
    keys = ("foo", "", "{p7}:x", "a{b}c{d}", "{}x", "{}{a}", "a}b{c}", "{{a}}", "{a", "ü{ä}")
    for key in keys:
        asked = redis_cluster.run(redis_cluster.servers[0], "CLUSTER", "KEYSLOT", key)
        assert key_slot(key) == key_slot(key.encode()) == asked


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("SPUBLISH", "c", b"m"), "c"),
        (("EVALSHA", "sha", 2, "a", "b", "x"), "a"),
        (("evalsha", "sha", "0", "x"), None),
        (("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "s", "0"), "s"),
        (("PING",), None),
        (("INFO", "memory"), None),
        (("DEL", 7), "7"),
    ],
)
def test_a_command_goes_by_its_first_key(command: tuple[str, ...], key: str | None) -> None:
    assert first_key(command) == key
