"""Redis dies, freezes, forgets, fills up or is promoted: nothing twice, nothing out of order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from random import Random

import pytest

from relay.broker import Broker, Limits
from relay.broker.redis import RedisBroker
from relay.errors import Unavailable
from relay.events import Position, Publication
from tests.broker.proxy import Proxy, proxied
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
from tests.redis_server import RedisServer, running

pytestmark = pytest.mark.anyio

PATIENT = Limits(publish_timeout_s=10.0)
HASTY = Limits(publish_timeout_s=2.0)


@pytest.fixture
async def proxy(own_server: RedisServer) -> AsyncIterator[Proxy]:
    async with proxied(own_server) as made:
        yield made


def publishing(broker: Broker, count: int) -> list[asyncio.Task[Publication]]:
    return [asyncio.create_task(broker.publish(event(n))) for n in range(1, count + 1)]


async def kept(broker: Broker, cid: str = CID) -> list[int]:
    history = await broker.history(cid, 0)
    assert [entry.offset for entry in history.entries] == list(range(1, history.top.offset + 1))
    return [content(entry.body) for entry in history.entries]


# -- the connection is lost -------------------------------------------------------------------


async def test_a_lost_answer_publishes_once_and_in_order(
    own_rig: RedisRig, proxy: Proxy, recorder: Recorder
) -> None:
    watching = await own_rig.broker(recorder=recorder)
    await watching.subscribe(CID)
    broker = await own_rig.broker(PATIENT, url=proxy.url)
    proxy.mute()
    tasks = publishing(broker, 50)
    await until(lambda: len(recorder.contents()) == 50, "the steps have run")
    proxy.cut()
    publications = await asyncio.gather(*tasks)
    assert [p.position and p.position.offset for p in publications] == list(range(1, 51))
    assert await kept(watching) == list(range(1, 51))
    assert recorder.contents() == list(range(1, 51))


async def test_the_relays_own_second_try_is_no_duplicate(
    own_rig: RedisRig, proxy: Proxy, recorder: Recorder
) -> None:
    watching = await own_rig.broker(recorder=recorder)
    await watching.subscribe(CID)
    broker = await own_rig.broker(PATIENT, url=proxy.url)
    proxy.mute()
    tasks = publishing(broker, 3)
    await until(lambda: len(recorder.contents()) == 3, "the steps have run")
    proxy.cut()
    publications = await asyncio.gather(*tasks)
    assert not any(publication.duplicate for publication in publications)


async def test_a_volatile_event_with_an_unknown_outcome_is_not_sent_again(
    own_rig: RedisRig, proxy: Proxy, recorder: Recorder
) -> None:
    watching = await own_rig.broker(recorder=recorder)
    await watching.subscribe(CID)
    broker = await own_rig.broker(PATIENT, url=proxy.url)
    proxy.mute()
    task = asyncio.create_task(broker.publish(event(1, volatile=True, identity=None)))
    await until(lambda: recorder.contents() == [1], "it was shown")
    proxy.cut()
    with pytest.raises(Unavailable, match="outcome is unknown"):
        await task
    await broker.publish(event(2))
    await caught_up(watching, recorder)
    assert recorder.contents() == [1, 2]


async def test_waiting_ends_with_unavailable_and_the_late_answer_harms_nobody(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker(PATIENT)
    await wait_at_most(broker, 0.3)
    own_server.freeze()
    started = time.monotonic()
    outcomes = await asyncio.gather(*publishing(broker, 5), return_exceptions=True)
    waited = time.monotonic() - started
    await wait_at_most(broker, 10.0)
    own_server.thaw()
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert 0.25 < waited < 2.0
    await until_published(broker, event("after"))
    publication = await broker.publish(event("last"))
    assert publication.position is not None
    assert (
        (await broker.history(CID, publication.position.offset - 1))
        .entries[-1]
        .body.count(b'"last"')
    )
    assert (await kept(broker))[-2:] == ["after", "last"]


async def wait_at_most(broker: RedisBroker, seconds: float) -> None:
    """Let what is asked from now on wait so long, and return once nothing waits longer."""
    for commands in (broker._publishing, broker.commands):
        before = list(commands._waiting)
        commands._timeout_s = seconds
        await until(lambda before=before: all(each.reply.done() for each in before), "answers")  # type: ignore[misc]
        commands._expire()  # its clock is set for the end of one of those


async def until_published(broker: Broker, given: object) -> None:
    """Publish under one id until Redis takes it, as a sender does that was answered 503."""
    deadline = time.monotonic() + 10
    while True:
        try:
            await broker.publish(given)  # type: ignore[arg-type]
            return
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_what_waits_is_bounded(own_rig: RedisRig, own_server: RedisServer) -> None:
    broker = await own_rig.broker(Limits(publish_queue=5, publish_timeout_s=20.0))
    own_server.freeze()
    tasks = publishing(broker, 5)
    await asyncio.sleep(0)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="too much waits"):
        await broker.publish(event(6))
    assert time.monotonic() - started < 10, "not even for a moment"
    own_server.thaw()
    await asyncio.gather(*tasks)


async def test_a_cancelled_publish_leaves_the_pipeline_in_order(
    own_rig: RedisRig, proxy: Proxy
) -> None:
    broker = await own_rig.broker(PATIENT, url=proxy.url)
    tasks = publishing(broker, 10)
    await asyncio.sleep(0)
    tasks[4].cancel()
    await asyncio.wait(tasks)
    later = await broker.publish(event(11))
    assert later.position is not None
    assert (await kept(broker))[-1] == 11


@pytest.mark.parametrize("link", ["publish", "command", "subscribe"])
async def test_each_connection_comes_back(
    own_rig: RedisRig, own_server: RedisServer, recorder: Recorder, link: str
) -> None:
    broker = await own_rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    await broker.publish(event(1))
    with own_server.client() as client:
        name = f"relay:{broker.node}:{link}"
        [number] = [each["id"] for each in client.client_list() if each["name"] == name]
        assert client.client_kill_filter(_id=number) == 1
    if link == "subscribe":
        await until(lambda: recorder.interruptions, "the loss is told")
        assert recorder.interruptions == [{CID}]
    await broker.publish(event(2))
    assert await kept(broker) == [1, 2]
    await caught_up(broker, recorder)
    assert recorder.contents() == [1, 2]


# -- Redis itself ends ------------------------------------------------------------------------


async def test_a_restart_with_the_data_begins_an_epoch_and_counts_on() -> None:
    saving = ("--appendonly", "yes", "--appendfsync", "always")
    with running(*saving) as server:
        async with closing(RedisRig(server)) as rig:
            recorder = Recorder()
            broker = await rig.broker(PATIENT, recorder)
            await broker.subscribe(CID)
            first = [await broker.publish(event(n)) for n in range(1, 11)]
            tasks = publishing(broker, 40)
            await asyncio.sleep(0)
            server.kill()
            server.start()
            later = await asyncio.gather(*tasks)
            await until(lambda: recorder.interruptions, "the loss is told")
            history = await broker.history(CID, 0)
            assert [e.offset for e in history.entries] == list(range(1, 51))
            assert [content(e.body) for e in history.entries[10:]] == list(range(1, 41))
            assert [p.position and p.position.offset for p in later] == list(range(11, 51))
            assert len(history.epochs) == 2
            assert first[-1].position is not None
            assert history.is_good(first[-1].position)
            assert history.continues(first[-1].position)


async def test_a_restart_without_the_data_is_a_new_beginning(
    own_rig: RedisRig, own_server: RedisServer, recorder: Recorder
) -> None:
    broker = await own_rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    before = (await broker.publish(event(1))).position
    assert before is not None
    own_server.kill()
    own_server.start()
    publication = await broker.publish(event(2))
    assert publication.position is not None
    assert publication.position.offset == 1
    assert publication.position.epoch != before.epoch
    await until(lambda: recorder.interruptions, "the loss is told")
    assert recorder.interruptions[0] == {CID}
    assert not (await broker.history(CID, 0)).continues(before)
    await caught_up(broker, recorder)
    await broker.publish(event(3))
    await caught_up(broker, recorder)
    assert recorder.contents()[-1] == 3


async def test_while_redis_is_away_everything_is_unavailable(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker(HASTY)
    own_server.kill()
    for attempt in (
        broker.publish(event(1)),
        broker.positions([CID]),
        broker.history(CID, 0),
        broker.subscribe(CID),
        broker.nodes(),
    ):
        with pytest.raises(Unavailable):
            await attempt


async def test_a_subscription_that_failed_is_none(
    own_rig: RedisRig, own_server: RedisServer, recorder: Recorder
) -> None:
    broker = await own_rig.broker(HASTY, recorder)
    own_server.kill()
    with pytest.raises(Unavailable):
        await broker.subscribe(CID)
    own_server.start()
    await until_published(broker, event(1))
    await until_subscribed(broker, OTHER)
    await broker.publish(event(2))
    await caught_up(broker, recorder)
    assert recorder.contents() == []


async def until_subscribed(broker: Broker, cid: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            await broker.subscribe(cid)
            return
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_an_address_without_redis_is_told_at_once(own_server: RedisServer) -> None:
    own_server.kill()
    async with closing(RedisRig(own_server)) as rig:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await rig.broker()


# -- Redis goes on, but differently -----------------------------------------------------------


async def test_forgotten_scripts_are_loaded_again(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    broker = await own_rig.broker(PATIENT)
    await broker.publish(event(0))
    with own_server.client() as client:
        client.script_flush()
    publications = await asyncio.gather(*publishing(broker, 100))
    assert [p.position and p.position.offset for p in publications] == list(range(2, 102))
    assert await kept(broker) == list(range(101))
    with own_server.client() as client:
        client.script_flush()
    assert (await broker.positions([CID]))[0].offset == 101


async def test_forgotten_scripts_come_back_by_their_own_process_alone(
    own_rig: RedisRig, own_server: RedisServer
) -> None:
    """Were another's loading enough, a step could pass one that has just failed."""
    broker, other = await own_rig.broker(PATIENT), await own_rig.broker(PATIENT)
    mine = broker._publish_script.sha
    while other._publish_script.sha == mine:  # one in a thousand
        other = await own_rig.broker(PATIENT)
    with own_server.client() as client:
        client.script_flush()
        await other.publish(event(1, cid=OTHER))
        assert client.script_exists(mine, other._publish_script.sha) == [False, True]
    await asyncio.gather(*publishing(broker, 100))
    assert await kept(broker) == list(range(1, 101))


async def test_a_full_redis_refuses_events_and_shows_none(
    own_rig: RedisRig, own_server: RedisServer, recorder: Recorder
) -> None:
    broker = await own_rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    await broker.publish(event(1))
    with own_server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(Unavailable, match="out of memory"):
            await broker.publish(event(2, identity="x"))
        with pytest.raises(Unavailable, match="out of memory"):
            await broker.publish(event(3, volatile=True))
        # Repair and what keeps a process alive go on.
        assert await kept(broker) == [1]
        assert (await broker.positions([CID, OTHER]))[0].offset == 1
        assert broker.node in await broker.nodes()
        client.config_set("maxmemory", 0)
    assert (await broker.publish(event(2, identity="x"))).position is not None
    await caught_up(broker, recorder)
    assert recorder.contents() == [1, 2]


async def test_a_demoted_redis_is_waited_for(own_rig: RedisRig, own_server: RedisServer) -> None:
    broker = await own_rig.broker(PATIENT)
    before = (await broker.publish(event(1))).position
    with own_server.client() as client:
        client.replicaof("127.0.0.1", own_server.port)
        tasks = publishing(broker, 5)
        # It is tried again and again, on new connections.
        await until(lambda: _attempts(client) > 5, "readonly replies")
        client.replicaof("NO", "ONE")
    publications = await asyncio.gather(*tasks)
    assert [p.position and p.position.offset for p in publications] == [2, 3, 4, 5, 6]
    history = await broker.history(CID, 0)
    assert before is not None
    assert history.continues(before)


def _attempts(client: object) -> int:
    errors = client.info("errorstats")  # type: ignore[attr-defined]
    return int(errors.get("errorstat_READONLY", {}).get("count", 0))


async def test_another_primary_begins_an_epoch_where_counting_goes_on(
    rig: RedisRig,
) -> None:
    broker = await rig.broker()
    names = []
    for n in range(1, 12):
        publication = await broker.publish(event(n))
        assert publication.position is not None
        assert publication.position.offset == n
        names.append(publication.position.epoch)
        with rig.server.client() as client:
            [meta] = client.keys(f"{rig.prefix}*:m:{CID}")
            client.hset(meta, "replid", "another")
    assert len(set(names)) == 11
    history = await broker.history(CID, 0)
    # Reading notices it too: the epoch that begins at 12 is the newest of eight.
    assert [epoch.start for epoch in history.epochs] == list(range(5, 13))
    assert history.top == Position(history.epochs[-1].name, 11)
    assert not history.is_good(Position(names[2], 3))
    assert history.is_good(Position(names[5], 6))
    assert not history.is_good(Position(names[5], 7))


async def test_writes_lost_in_a_failover_cannot_pass_under_old_offsets(rig: RedisRig) -> None:
    broker = await rig.broker()
    for n in range(1, 11):
        last = await broker.publish(event(n))
    with rig.server.client() as client:
        # The promoted replica had seen seven.
        [meta] = client.keys(f"{rig.prefix}*:m:{CID}")
        [history] = client.keys(f"{rig.prefix}*:h:{CID}")
        client.hset(meta, mapping={"offset": 7, "replid": "promoted"})
        client.delete(history)
    for n in range(5):
        await broker.publish(event(f"new {n}"))
    page = await broker.history(CID, 10)
    assert last.position is not None
    assert not page.continues(last.position)
    assert page.is_good(Position(last.position.epoch, 7))
    assert not page.is_good(Position(last.position.epoch, 8))


async def test_leftover_history_of_a_forgotten_call_is_deleted(rig: RedisRig) -> None:
    broker = await rig.broker()
    for n in range(5):
        await broker.publish(event(n))
    with rig.server.client() as client:
        [meta] = client.keys(f"{rig.prefix}*:m:{CID}")
        client.delete(meta)
    publication = await broker.publish(event("new"))
    assert publication.position is not None
    assert publication.position.offset == 1
    assert await kept(broker) == ["new"]


async def test_cut_after_cut_every_event_is_published_once_and_in_its_senders_order(
    own_rig: RedisRig, proxy: Proxy, recorder: Recorder
) -> None:
    many = Limits(publish_timeout_s=20.0, history_count=5000)
    watching = await own_rig.broker(many, recorder)
    await watching.subscribe(CID)
    broker = await own_rig.broker(many, url=proxy.url)
    random = Random(7)

    async def send(sender: str) -> None:
        for n in range(0, 120, 3):
            given = [event([sender, n + k], sender=sender) for k in range(3)]
            await asyncio.gather(*[asyncio.create_task(broker.publish(each)) for each in given])

    async def cut() -> None:
        for seen in range(20, 460, 60):
            await until(lambda seen=seen: len(recorder.publications) >= seen, "events go on")
            lose = random.choice((proxy.mute, proxy.deafen))
            lose()
            await asyncio.sleep(0.003)  # some steps run whose answer is lost, or do not run
            proxy.cut()

    senders = [f"api:{n}" for n in range(4)]
    await asyncio.gather(cut(), *map(send, senders))
    published = await kept(watching)
    assert len(published) == 480
    for sender in senders:
        assert [n for who, n in published if who == sender] == list(range(120))
    await caught_up(watching, recorder)
    assert recorder.contents() == published
