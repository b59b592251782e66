"""The outbox in Redis between processes: leases, fences, hooks that change while others publish."""

from __future__ import annotations

import asyncio

import pytest

from relay import wire
from relay.broker import Changes, HookList, Key, LeaseLost, Limits, Span, Tried
from relay.broker.redis import RedisBroker, RedisOutbox
from relay.hooks import Hook, Hooks, HookType
from tests.broker.proxy import proxied
from tests.contract.harness import CID, RedisRig, content, event, until
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

NOW = 1_900_000_000_000


def hooks(*names: str) -> Hooks:
    return Hooks(
        tuple(
            Hook(id=name, hook_type=HookType.WEBHOOK, webhook_url=f"https://{name}.test/")
            for name in names
        )
    )


async def set_hooks(rig: RedisRig, broker: RedisBroker, *names: str) -> HookList:
    store = rig.store(broker)
    saved = await store.save_hooks(hooks(*names), await store.hooks(), NOW)
    assert saved is not None
    return saved


async def outboxes(rig: RedisRig, **options: float) -> tuple[RedisOutbox, RedisOutbox, int]:
    """Return the outboxes of two processes, and the partition of the call."""
    one, two = await rig.broker(), await rig.broker()
    here = await rig.outbox(one, lambda _: None, **options)
    there = await rig.outbox(two, lambda _: None, **options)
    return here, there, one.keyspace.partition(CID)


async def test_one_process_at_a_time_has_a_partition(rig: RedisRig) -> None:
    here, there, partition = await outboxes(rig)
    lease = await here.lease(partition)
    assert lease is not None
    assert await there.lease(partition) is None
    assert await there.lease(partition + 1) is not None
    await here.give_back(lease)
    assert await there.lease(partition) is not None
    assert await here.lease(partition, lease.token) is None
    await here.give_back(lease)  # what is another's is left alone
    assert await here.lease(partition) is None


async def test_a_lease_that_is_not_renewed_runs_out(rig: RedisRig) -> None:
    here, there, partition = await outboxes(rig, lease_s=2.0)
    lease = await here.lease(partition)
    assert lease is not None
    await rig.pass_time(2.05)
    taken = await there.lease(partition)
    assert taken is not None
    with pytest.raises(LeaseLost):
        await here.record(lease, Changes(tried={Key(1, "one"): Tried(first_ms=1)}))
    assert (await there.progress(taken)).tried == {}


async def test_a_lease_that_ran_out_is_another_one_when_taken_again(rig: RedisRig) -> None:
    here, _, partition = await outboxes(rig, lease_s=0.2)
    lease = await here.lease(partition)
    assert lease is not None
    await rig.pass_time(0.25)
    again = await here.lease(partition, lease.token)
    assert again is not None
    assert again.token != lease.token


async def test_another_server_makes_the_lease_another_one(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker()
    outbox = await own_rig.outbox(broker, lambda _: None)
    lease = await outbox.lease(3)
    assert lease is not None
    with own_server.client() as client:
        client.replicaof("127.0.0.1", own_server.port)
        client.replicaof("NO", "ONE")  # as a promotion does, it changes the replication id
    # It may have forgotten entries and given their numbers to others: nothing is settled there
    # by whoever has not seen that.
    with pytest.raises(LeaseLost):
        await outbox.record(lease, Changes(trim=9, settled={"one": 9}))
    renewed = await outbox.lease(3, lease.token)
    assert renewed is not None
    assert renewed.token != lease.token
    assert (await outbox.progress(renewed)).settled == {}


async def test_who_delivers_is_known_to_all_and_who_left_is_not(rig: RedisRig) -> None:
    here, there, _ = await outboxes(rig, lease_s=3.0)
    await rig.broker()  # one that only serves
    assert await here.join() == {here.node}
    assert await there.join() == {here.node, there.node}
    await here.leave()
    assert await there.join() == {there.node}
    await here.join()
    await rig.pass_time(3.1)
    assert await there.join() == {there.node}


async def test_what_is_published_after_the_save_is_owed_whoever_publishes(rig: RedisRig) -> None:
    """Events are published by two processes all the while; the hooks change ten times."""
    brokers = [await rig.broker(Limits(publish_timeout_s=10.0)) for _ in range(2)]
    outbox = await rig.outbox(brokers[0], lambda _: None)
    lease = await outbox.lease(brokers[0].keyspace.partition(CID))
    assert lease is not None
    saved: HookList | None = None
    owed: dict[str, int] = {}
    done = asyncio.Event()

    async def publish(broker: RedisBroker, who: int) -> None:
        n = 0
        while not done.is_set():
            known = saved.version if saved else 0
            name = f"{who}-{(n := n + 1)}"
            await broker.publish(event(name))
            owed[name] = known

    publishing = [asyncio.create_task(publish(b, n)) for n, b in enumerate(brokers)]
    for n in range(10):
        before = len(owed)
        saved = await set_hooks(rig, brokers[n % 2], *(f"hook-{k}" for k in range(n + 1)))
        await until(lambda seen=before: len(owed) > seen + 10, "events go on")
    done.set()
    await asyncio.gather(*publishing)
    entries = []
    while page := await outbox.read(lease, entries[-1].seq if entries else 0, 1000):
        entries += page
    versions = {content(entry.body): entry.version for entry in entries}
    late = [name for name, known in owed.items() if known and versions.get(name, 0) < known]
    assert late == []
    assert len(versions) > 100


async def test_a_save_that_was_cut_off_is_completed_by_who_delivers(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker()
    outbox = await own_rig.outbox(broker, lambda _: None)
    saved = HookList().changed(hooks("one"), NOW)
    with own_server.client() as client:
        client.set(broker.keyspace.hooks, wire.encode(saved))  # and no partition was told
    await broker.publish(event(1))
    lease = await outbox.lease(broker.keyspace.partition(CID))
    assert lease is not None
    assert (lease.hooks_version, lease.top) == (0, 0)
    await outbox.inform(lease, saved)
    await broker.publish(event(2))
    assert [content(entry.body) for entry in await outbox.read(lease, 0, 10)] == [2]
    await outbox.inform(lease, HookList())  # an older list changes nothing
    renewed = await outbox.lease(lease.partition, lease.token)
    assert renewed is not None
    assert renewed.hooks_version == saved.version


async def test_a_save_that_was_cut_off_can_be_told_to_every_partition(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker()
    outbox, store = await own_rig.outbox(broker, lambda _: None), own_rig.store(broker)
    saved = HookList().changed(hooks("one"), NOW)
    with own_server.client() as client:
        client.set(broker.keyspace.hooks, wire.encode(saved))
        client.hset(broker.keyspace.outboxes[0].state, mapping={"version": NOW + 5, "wanted": ""})
    await store.tell_hooks(saved)
    versions = set()
    for partition in range(outbox.partitions):
        lease = await outbox.lease(partition)
        assert lease is not None
        versions.add((partition == 0, lease.hooks_version))
    assert versions == {(True, NOW + 5), (False, saved.version)}


async def test_everything_but_publishing_works_without_memory(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker()
    outbox = await own_rig.outbox(broker, lambda _: None)
    await set_hooks(own_rig, broker, "one")
    await broker.publish(event(1))
    with own_server.client() as client:
        client.config_set("maxmemory", 1)
    lease = await outbox.lease(broker.keyspace.partition(CID))
    assert lease is not None
    assert len(await outbox.read(lease, 0, 10)) == 1
    await outbox.record(lease, Changes(tried={Key(1, "one"): Tried(first_ms=1)}))
    assert len((await outbox.progress(lease)).tried) == 1
    await outbox.record(lease, Changes(forget={Key(1, "one")}, trim=1))
    assert await outbox.read(lease, 0, 10) == []
    assert await outbox.dead_letters(Span()) == []
    await outbox.give_back(lease)


async def test_a_record_whose_answer_was_lost_is_made_once(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    async with proxied(own_server) as proxy:
        broker = await own_rig.broker(Limits(publish_timeout_s=10.0), url=proxy.url)
        outbox = await own_rig.outbox(broker, lambda _: None)
        lease = await outbox.lease(0)
        assert lease is not None
        proxy.mute()
        recording = asyncio.create_task(outbox.record(lease, Changes(settled={"one": 7})))
        with own_server.client() as client:
            await until(lambda: client.hlen(broker.keyspace.outboxes[0].tried), "it has run")
        proxy.cut()
        await recording
        assert (await outbox.progress(lease)).settled == {"one": 7}


async def test_without_hooks_the_publish_step_leaves_nothing_of_an_outbox(rig: RedisRig) -> None:
    broker = await rig.broker()
    await broker.publish(event(1))
    with rig.server.client() as client:
        assert client.keys(f"{rig.prefix}*:out*") == []


async def test_wakes_that_may_have_been_lost_are_made_up_for(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    woken: list[int] = []
    broker = await own_rig.broker(Limits(publish_timeout_s=10.0))
    outbox = await own_rig.outbox(broker, woken.append)
    assert await outbox.lease(5) is not None
    with own_server.client() as client:
        [connection] = [each for each in client.client_list() if each["name"].endswith(":wake")]
        client.client_kill_filter(_id=connection["id"])
    await until(lambda: woken, "it looks by itself")
    assert set(woken) == {5}
