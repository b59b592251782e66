"""What the broker leaves in Redis: names, lifetimes, bounds."""

from __future__ import annotations

import json

import pytest

from relay.broker import Limits, Roster
from tests.contract.harness import CID, RedisRig, event

pytestmark = pytest.mark.anyio

LIMITS = Limits(history_age_s=100.0, dedupe_window_s=1000.0, minted_window_s=10.0)


def lifetimes(rig: RedisRig) -> dict[str, float]:
    """Return seconds to live by kind of key; -0.001 means for ever."""
    with rig.server.client() as client:
        keys = client.keys(f"{rig.prefix}*")
        return {_kind(key): client.pttl(key) / 1000 for key in keys if not _is_canary(key)}


def _is_canary(key: str) -> bool:
    """Tell whether a key is the one that says nothing: it is written each second."""
    return key.endswith("}:canary")


def _kind(key: str) -> str:
    return key.partition("}:")[2].partition(":")[0] or key.rpartition(":")[2]


async def test_all_of_a_call_lies_in_one_partition(rig: RedisRig) -> None:
    broker = await rig.broker()
    await broker.publish(event(1, alias="a"))
    await broker.set_roster(CID, Roster(1))
    with rig.server.client() as client:
        found = [key for key in client.keys(f"{rig.prefix}*") if not _is_canary(key)]
    keys = {key.removeprefix(rig.prefix) for key in found}
    tags = {key.partition(":")[0] for key in keys if key.startswith("{")}
    assert tags == {f"{{p{broker.keyspace.partition(CID)}}}"}
    assert {key for key in keys if not key.startswith("{")} == {"nodes", "partitions"}


async def test_a_canary_leaves_one_key_for_a_moment(rig: RedisRig) -> None:
    brokers = [await rig.broker(), await rig.broker()]
    for broker in brokers:
        await broker._publish_canary(broker.keyspace.canary(broker.node, 0), b"1")
    with rig.server.client() as client:
        [key] = client.keys(f"{rig.prefix}*canary*")
        assert _is_canary(key)
        assert client.pttl(key) / 1000 == pytest.approx(10, abs=2)


async def test_nothing_outlives_the_position_it_refers_to(rig: RedisRig) -> None:
    broker = await rig.broker(LIMITS)
    await broker.publish(event(1))
    await broker.set_roster(CID, Roster(1))
    lives = lifetimes(rig)
    assert lives["i"] == pytest.approx(1060, abs=2)  # the window, and how far ahead may be dated
    assert lives["h"] == pytest.approx(100, abs=2)
    assert lives["m"] == pytest.approx(1120, abs=2)
    assert lives["w"] == pytest.approx(1120, abs=2)


async def test_a_call_that_was_deleted_elsewhere_is_forgotten_after_a_day(rig: RedisRig) -> None:
    broker = await rig.broker()
    await rig.store(broker).note_gone(CID, 1, 2)
    assert lifetimes(rig)["gone"] == pytest.approx(86_400, abs=2)


async def test_a_minted_id_is_remembered_for_the_relays_own_tries_only(rig: RedisRig) -> None:
    broker = await rig.broker(LIMITS)
    await broker.publish(event(1, minted=True))
    assert lifetimes(rig)["i"] == pytest.approx(10, abs=2)


async def test_a_volatile_event_leaves_its_id_only(rig: RedisRig) -> None:
    broker = await rig.broker(LIMITS)
    await broker.publish(event(1, volatile=True))
    await broker.publish(event(2, volatile=True, identity=None))
    assert set(lifetimes(rig)) == {"i", "nodes", "partitions"}
    with rig.server.client() as client:
        assert len(client.keys(f"{rig.prefix}*:i:*")) == 1


async def test_asking_for_a_position_keeps_it_and_the_rosters(rig: RedisRig) -> None:
    broker = await rig.broker(LIMITS)
    await broker.publish(event(1))
    await broker.set_roster(CID, Roster(1))
    with rig.server.client() as client:
        for kind in ("m", "w"):
            [key] = client.keys(f"{rig.prefix}*:{kind}:*")
            client.pexpire(key, 5000)
    await broker.positions([CID])
    lives = lifetimes(rig)
    assert min(lives["m"], lives["w"]) > 1000


async def test_a_busy_call_keeps_its_rosters(rig: RedisRig) -> None:
    broker = await rig.broker(LIMITS)
    await broker.set_roster(CID, Roster(1))
    with rig.server.client() as client:
        [key] = client.keys(f"{rig.prefix}*:w:*")
        client.pexpire(key, 5000)
    for n in range(16):
        await broker.publish(event(n))
    assert lifetimes(rig)["w"] > 1000


async def test_history_in_redis_is_bounded_by_count(rig: RedisRig) -> None:
    broker = await rig.broker(Limits(history_count=7))
    for n in range(50):
        await broker.publish(event(n))
    with rig.server.client() as client:
        [key] = client.keys(f"{rig.prefix}*:h:*")
        assert client.xlen(key) == 7


async def test_history_in_redis_is_bounded_by_age(rig: RedisRig) -> None:
    broker = await rig.broker(Limits(history_age_s=0.5))
    for n in range(500):
        await broker.publish(event(n))
    await rig.pass_time(0.3)
    await broker.publish(event("in between"))  # or the whole key would have expired
    await rig.pass_time(0.3)
    for n in range(160):
        await broker.publish(event(n))
    with rig.server.client() as client:
        [key] = client.keys(f"{rig.prefix}*:h:*")
        assert client.xlen(key) <= 161 + 32


async def test_entries_are_found_by_offset(rig: RedisRig) -> None:
    broker = await rig.broker()
    for n in range(1, 4):
        await broker.publish(event(n))
    with rig.server.client() as client:
        [key] = client.keys(f"{rig.prefix}*:h:*")
        entries = client.xrange(key, "2", "2")
    assert entries[0][0].startswith("2-")
    assert json.loads(entries[0][1]["body"])["offset"] == 2


async def test_a_large_offset_stays_a_whole_number(rig: RedisRig) -> None:
    broker = await rig.broker()
    await broker.publish(event(1))
    with rig.server.client() as client:
        [meta] = client.keys(f"{rig.prefix}*:m:*")
        client.hset(meta, "offset", 10**15 + 7)
    publication = await broker.publish(event(2))
    assert publication.position is not None
    assert publication.position.offset == 10**15 + 8
    history = await broker.history(CID, 10**15)
    assert history.entries[-1].offset == 10**15 + 8
    assert history.entries[-1].body.endswith(b'"offset":1000000000000008}')
