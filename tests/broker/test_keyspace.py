"""Names in Redis do not change: other processes, other versions and backends rely on them."""

from __future__ import annotations

import pytest

from relay.broker.keyspace import HEADER, HEADER_SIZE, KEPT, Keyspace
from tests.contract.harness import event

KEYS = Keyspace("relay:")


@pytest.mark.parametrize(
    ("cid", "partition"),
    [("default:demo", 155), ("default:standup", 59), ("livestream:a.b!c@d", 152)],
)
def test_partitions_do_not_move(cid: str, partition: int) -> None:
    assert KEYS.partition(cid) == partition


def test_keys_have_their_documented_names() -> None:
    tag = "relay:{p155}"
    assert KEYS.channel("default:demo") == f"{tag}:c:default:demo"
    assert KEYS.of_order("default:demo") == (f"{tag}:m:default:demo", f"{tag}:h:default:demo")
    assert KEYS.roster("default:demo") == f"{tag}:w:default:demo"
    assert KEYS.call("default:demo") == f"{tag}:call:default:demo"
    assert KEYS.user("ann") == "relay:u:ann"
    assert KEYS.index("calls:type:default") == "relay:ix:calls:type:default"
    assert KEYS.spent("ann", 60, 7) == "relay:n:60:7:ann"
    assert (KEYS.live, KEYS.ingest, KEYS.ingest_lease) == (
        "relay:live",
        "relay:ingest",
        "relay:ingest:lease",
    )
    assert KEYS.session("default:demo") == f"{tag}:s:default:demo"
    assert KEYS.departures("default:demo") == f"{tag}:left:default:demo"
    assert (KEYS.seats, KEYS.seats_lease) == ("relay:seats", "relay:seats:lease")
    assert (KEYS.everybody, KEYS.inbox("a1b2")) == ("relay:all", "relay:node:a1b2")
    assert KEYS.connections("ann") == "relay:sockets:ann"
    assert KEYS.tickets("ann") == "relay:tickets:ann"
    assert KEYS.marks("a1b2") == "relay:marks:a1b2"
    assert KEYS.notices == "relay:notices"
    assert (KEYS.nodes, KEYS.partitions_key) == ("relay:nodes", "relay:partitions")


def test_the_publish_step_declares_every_key_it_touches() -> None:
    keys = KEYS.of_publish(event(1, cid="default:demo", identity="x", alias="y"))
    kinds = ["c", "m", "h", "w", "out", "out", "out", "out", "out", "i", "i"]
    assert [key.split(":")[2] for key in keys] == kinds
    assert len(KEYS.of_publish(event(1, identity="x"))) == 10
    assert len(KEYS.of_publish(event(1, identity=None, alias="y"))) == 9


def test_the_keys_of_an_outbox_lie_in_its_partition() -> None:
    keys = KEYS.outboxes[7]
    assert all(key.startswith("relay:{p7}:out") for key in keys)
    assert len(set(keys)) == len(keys)
    assert (keys.entries, keys.wake) == ("relay:{p7}:out", "relay:{p7}:out:wake")


def test_the_header_has_a_fixed_size() -> None:
    assert HEADER_SIZE == 17
    assert HEADER.pack(KEPT, b"abcdefgh", 258) == b"\x00abcdefgh\x00\x00\x00\x00\x00\x00\x01\x02"
