"""A Cluster whose slots move and whose primaries change: nothing twice, nothing out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import anyio
import pytest

from relay.broker import Broker, Entry, Limits, Roster
from relay.broker.redis import RedisBroker, RedisInbox, RedisStore
from relay.errors import Unavailable
from relay.events import Publication
from relay.settings import SettingsError
from relay.users import Profile
from tests.contract.harness import (
    CID,
    OTHER,
    Recorder,
    RedisRig,
    caught_up,
    closing,
    content,
    event,
    until,
)
from tests.redis_shapes import QUICK_MS, Cluster

pytestmark = pytest.mark.anyio

PATIENT = Limits(publish_timeout_s=20.0, history_count=50_000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a Cluster whose slots these tests move about."""
    with Cluster() as made:
        yield made


@pytest.fixture
async def rig(cluster: Cluster) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(cluster)) as made:
        yield made


def key(broker: RedisBroker, cid: str = CID) -> str:
    return broker.keyspace.channel(cid)


def publishing(broker: Broker, first: int, last: int) -> list[asyncio.Task[Publication]]:
    return [asyncio.create_task(broker.publish(event(n))) for n in range(first, last + 1)]


async def kept(broker: Broker, cid: str = CID) -> list[int]:
    [top] = await broker.positions([cid])
    entries: list[Entry] = []
    while len(entries) < top.offset:
        entries += (await broker.history(cid, len(entries))).entries
    assert [entry.offset for entry in entries] == list(range(1, top.offset + 1))
    return [content(entry.body) for entry in entries]


async def until_live(broker: Broker, recorder: Recorder) -> None:
    """Publish until it arrives: a server that takes over may end what was just subscribed to."""
    async with asyncio.timeout(10):
        while "live" not in recorder.contents():
            await broker.publish(event("live"))
            await asyncio.sleep(0.02)


async def test_events_given_while_the_slot_moves_stay_in_order(
    rig: RedisRig, cluster: Cluster, recorder: Recorder
) -> None:
    broker = await rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    tasks: list[asyncio.Task[Publication]] = []
    for _ in range(5):
        moving = asyncio.create_task(anyio.to_thread.run_sync(cluster.migrate, key(broker)))
        while not moving.done():
            tasks += publishing(broker, len(tasks) + 1, len(tasks) + 5)
            await asyncio.sleep(0.01)
        tasks += publishing(broker, len(tasks) + 1, len(tasks) + 20)
        await moving
        publications = await asyncio.gather(*tasks)
    assert [p.position and p.position.offset for p in publications] == list(
        range(1, len(tasks) + 1)
    )
    assert not any(publication.duplicate for publication in publications)
    assert await kept(broker) == list(range(1, len(tasks) + 1))


async def test_a_subscription_moves_with_its_slot_and_that_is_told(
    rig: RedisRig, cluster: Cluster, recorder: Recorder
) -> None:
    broker = await rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    await broker.subscribe(OTHER)
    await caught_up(broker, recorder)
    recorder.interruptions.clear()
    await anyio.to_thread.run_sync(cluster.migrate, key(broker))
    await until(lambda: recorder.interruptions, "the move is told")
    assert recorder.interruptions == [{CID}]
    await broker.publish(event(1))
    await until(lambda: recorder.contents() == [1], "events arrive from the new server")


async def test_a_slot_on_its_way_holds_up_its_own_calls_alone(
    rig: RedisRig, cluster: Cluster
) -> None:
    broker = await rig.broker(PATIENT)
    await broker.publish(event(1))
    source, target = await anyio.to_thread.run_sync(cluster.begin_migration, key(broker))
    held = publishing(broker, 2, 5)
    neighbour = next(
        cid
        for cid in (f"default:{n}" for n in range(1000))
        if cluster.owner(key(broker, cid)) is source
        and key(broker, cid) != key(broker)
        and broker.keyspace.partition(cid) != broker.keyspace.partition(CID)
    )
    await broker.publish(event(1, cid=neighbour))
    assert not any(task.done() for task in held)
    await anyio.to_thread.run_sync(cluster.move_keys, key(broker), source, target)
    await anyio.to_thread.run_sync(cluster.end_migration, key(broker), source, target)
    held += publishing(broker, 6, 8)
    await asyncio.gather(*held)
    assert await kept(broker) == list(range(1, 9))


async def test_a_key_that_has_left_before_its_slot_is_asked_for(
    rig: RedisRig, cluster: Cluster
) -> None:
    broker = await rig.broker(PATIENT)
    store = RedisStore(broker)
    user = broker.keyspace.user("ann")
    await store.save_user("ann", Profile(name="Ann"), 1)
    source, target = await anyio.to_thread.run_sync(cluster.begin_migration, user)
    await anyio.to_thread.run_sync(cluster.move_keys, user, source, target)
    saved, again = await asyncio.gather(
        store.save_user("ann", Profile(image="a.png"), 2), store.user("ann")
    )
    assert (saved.name, saved.image) == ("Ann", "a.png")
    assert again is not None
    assert await store.user("ann") == saved
    await anyio.to_thread.run_sync(cluster.end_migration, user, source, target)
    assert await store.user("ann") == saved


async def test_outsiders_events_arrive_once(
    rig: RedisRig, cluster: Cluster, recorder: Recorder
) -> None:
    broker = await rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    await caught_up(broker, recorder)
    for number, server in enumerate(cluster.servers):
        with server.client() as client:
            client.publish(f"{rig.prefix}live", str(number))
    await until(lambda: len(recorder.live) == 3, "all of them")
    await caught_up(broker, recorder)
    assert sorted(recorder.live) == [b"0", b"1", b"2"]


async def test_the_ingest_stream_is_read(rig: RedisRig, cluster: Cluster) -> None:
    broker = await rig.broker(PATIENT)
    box = RedisInbox(broker, wait_s=0.05)
    stream = f"{rig.prefix}ingest"
    await anyio.to_thread.run_sync(
        cluster.run, cluster.owner(stream), "XADD", stream, "*", "event", "{}"
    )
    [entry] = await box.take()
    assert entry.text == b"{}"
    await anyio.to_thread.run_sync(cluster.migrate, stream)
    assert [each.id for each in await box.take()] == [entry.id]
    await box.settle([entry.id])
    assert await box.take() == []
    await box.aclose()


async def test_a_cluster_is_not_taken_for_a_single_server(cluster: Cluster) -> None:
    async with closing(RedisRig(cluster)) as rig:
        with pytest.raises(SettingsError, match=r"redis\+cluster://"):
            await rig.broker(url=cluster.servers[0].url)


async def test_a_single_server_is_not_taken_for_a_cluster(own_rig: RedisRig) -> None:
    with pytest.raises(Unavailable, match="cluster support disabled"):
        await own_rig.broker(url=own_rig.server.url.replace("redis:", "redis+cluster:"))


# -- a primary is replaced ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def replicated() -> Iterator[Cluster]:
    """Return a Cluster of three primaries and their replicas."""
    with Cluster(replicas=1) as made:
        yield made


async def test_a_replica_that_takes_over_is_followed(
    replicated: Cluster, recorder: Recorder
) -> None:
    async with closing(RedisRig(replicated)) as rig:
        broker = await rig.broker(PATIENT, recorder)
        await broker.subscribe(CID)
        await caught_up(broker, recorder)
        recorder.interruptions.clear()
        tasks = publishing(broker, 1, 50)
        await anyio.to_thread.run_sync(replicated.failover, key(broker))
        tasks += publishing(broker, 51, 100)
        publications = await asyncio.gather(*tasks)
        assert not any(publication.duplicate for publication in publications)
        assert await kept(broker) == list(range(1, 101))
        await until(lambda: CID in set().union(*recorder.interruptions), "the loss is told")
        await until_live(broker, recorder)


@pytest.fixture
def divided() -> Iterator[Cluster]:
    """Return a Cluster that serves what it can while a server is away."""
    with Cluster("--cluster-require-full-coverage", "no") as made:
        yield made


async def test_lists_do_not_need_the_server_that_knows_who_is_alive(divided: Cluster) -> None:
    """While it is away nobody is taken out of them, and nobody's login fails."""
    async with closing(RedisRig(divided)) as rig:
        broker = await rig.broker(Limits(publish_timeout_s=3.0))
        keys = broker.keyspace
        knows = divided.owner(keys.nodes)

        def elsewhere(key: Callable[[str], str], names: Iterable[str]) -> str:
            return next(name for name in names if divided.owner(key(name)) is not knows)

        cid = elsewhere(keys.roster, [f"default:{n}" for n in range(50)])
        user = elsewhere(keys.connections, [f"user{n}" for n in range(50)])
        await broker.set_roster(cid, Roster(2))
        knows.freeze()
        with pytest.raises(Unavailable):
            await broker.nodes()
        assert (await broker.rosters(cid))[broker.node].count == 2
        assert await broker.set_connections(user, 3) == {broker.node: 3}
        knows.thaw()


async def test_a_primary_that_dies_is_replaced(replicated: Cluster, recorder: Recorder) -> None:
    async with closing(RedisRig(replicated)) as rig:
        broker = await rig.broker(PATIENT, recorder)
        await broker.subscribe(CID)
        await asyncio.gather(*publishing(broker, 1, 20))
        await anyio.to_thread.run_sync(replicated.until_joined)
        dead = replicated.owner(key(broker))
        dead.kill()
        await anyio.to_thread.run_sync(replicated.set_down_after, QUICK_MS)
        tasks = publishing(broker, 21, 40)
        await asyncio.gather(*tasks)
        offsets = [entry.offset for entry in (await broker.history(CID, 20)).entries]
        assert offsets == list(range(21, 41))
        await until_live(broker, recorder)
        dead.start()
