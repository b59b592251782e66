"""Two processes on one Redis: publications, rosters, and who is alive."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Limits, Roster, redis_messages
from relay.broker.redis import RedisBroker, RedisSessions
from relay.broker.seats import Seat, Taken
from relay.calls import Participant, Session
from relay.errors import Unavailable
from relay.settings import SettingsError
from tests.contract.harness import CID, Recorder, RedisRig, caught_up, event, until

pytestmark = pytest.mark.anyio


async def test_what_one_publishes_reaches_the_other_in_order(rig: RedisRig) -> None:
    here, there = Recorder(), Recorder()
    one, two = await rig.broker(recorder=here), await rig.broker(recorder=there)
    await asyncio.gather(one.subscribe(CID), two.subscribe(CID))
    await asyncio.gather(*[(one if n % 2 else two).publish(event(n)) for n in range(100)])
    await asyncio.gather(caught_up(one, here), caught_up(two, there))
    assert here.publications[:100] == there.publications[:100]
    assert here.offsets() == list(range(1, 101))


async def test_an_id_seen_by_one_is_seen_by_the_other(rig: RedisRig) -> None:
    one, two = await rig.broker(), await rig.broker()
    first = await one.publish(event(1, identity="x"))
    again = await two.publish(event(1, identity="x"))
    assert again.duplicate
    assert again.position == first.position


async def test_prefixes_do_not_meet(rig: RedisRig) -> None:
    recorder = Recorder()
    one = await rig.broker(recorder=recorder)
    other_rig = RedisRig(rig.server)
    other = await other_rig.broker()
    await one.subscribe(CID)
    await other.publish(event(1, identity="x"))
    assert not (await one.publish(event(2, identity="x"))).duplicate
    await caught_up(one, recorder)
    assert recorder.contents() == [2]
    await other.aclose()


async def test_a_change_of_roster_is_told_to_those_who_watch(rig: RedisRig) -> None:
    here, there = Recorder(), Recorder()
    one, two = await rig.broker(recorder=here), await rig.broker(recorder=there)
    await asyncio.gather(one.subscribe(CID), two.subscribe(CID))
    await one.set_roster(CID, Roster(2))
    await until(lambda: there.rosters == [CID], "the other is told")
    await two.set_roster(CID, Roster(3))
    await until(lambda: here.rosters == [CID], "the first is told")
    assert await one.rosters(CID) == {one.node: Roster(2), two.node: Roster(3)}
    assert await two.rosters(CID) == await one.rosters(CID)
    await caught_up(two, there)
    assert there.publications == [p for p in there.publications if p[0] != CID]


async def test_both_are_alive(rig: RedisRig) -> None:
    one, two = await rig.broker(), await rig.broker()
    assert await one.nodes() == {one.node, two.node}


async def test_one_that_leaves_is_gone_at_once(rig: RedisRig) -> None:
    one, two = await rig.broker(), await rig.broker()
    await two.set_roster(CID, Roster(3))
    await two.aclose()
    assert await one.nodes() == {one.node}
    assert await one.rosters(CID) == {}
    with rig.server.client() as client:
        assert client.keys(f"{rig.prefix}*:w:{CID}") == []


async def test_one_that_dies_is_gone_after_a_while(rig: RedisRig) -> None:
    one = await rig.broker(heartbeat_s=0.05, dead_after_s=0.4)
    two = await rig.broker(heartbeat_s=1000.0, dead_after_s=0.4)  # silent after its first beat
    await two.set_roster(CID, Roster(3))

    with rig.server.client() as client:
        nodes = f"{rig.prefix}nodes"
        # Nobody but the survivor's own beat removes it.
        await until(lambda: client.zscore(nodes, two.node) is None, "it is forgotten")
    assert await one.nodes() == {one.node}
    assert await one.rosters(CID) == {}


async def test_one_that_is_silent_counts_as_dead_before_it_is_forgotten(rig: RedisRig) -> None:
    one = await rig.broker()
    silent = await rig.broker()
    with rig.server.client() as client:
        eleven_s_ago = client.zscore(f"{rig.prefix}nodes", silent.node) - 11_000
        client.zadd(f"{rig.prefix}nodes", {silent.node: eleven_s_ago})
    assert await one.nodes() == {one.node}


async def test_one_that_was_taken_for_dead_says_everything_again(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder, heartbeat_s=0.05)
    await broker.subscribe(CID)
    with rig.server.client() as client:
        client.zrem(f"{rig.prefix}nodes", broker.node)  # what the others do after its silence
    await until(lambda: recorder.interruptions == [{CID}], "it learns of it")


async def test_one_that_lives_is_not_interrupted(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder, heartbeat_s=0.05)
    await broker.subscribe(CID)
    with rig.server.client() as client:
        key = f"{rig.prefix}nodes"
        first = client.zscore(key, broker.node)
        await until(lambda: client.zscore(key, broker.node) > first + 200, "several beats")
    assert recorder.interruptions == []


async def test_a_relay_of_other_partitions_is_refused(rig: RedisRig) -> None:
    await rig.broker()
    with pytest.raises(SettingsError, match="256 partitions, this relay is made for 16"):
        await rig.broker(partitions=16)


async def test_outsiders_reach_every_process_on_the_live_channel(rig: RedisRig) -> None:
    here, there = Recorder(), Recorder()
    await rig.broker(recorder=here)
    await rig.broker(recorder=there)
    with rig.server.client() as client:
        assert client.publish(f"{rig.prefix}live", "hello") == 2
    await until(lambda: here.live == there.live == [b"hello"], "both get it")


async def test_rubbish_on_a_calls_channel_is_passed_over(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    await broker.subscribe(CID)
    channel = broker.keyspace.channel(CID)
    with rig.server.client() as client:
        for rubbish in (b"", b"short", b"\x00" + b"\xff" * 16 + b"body", b"\x09" + b"a" * 40):
            client.execute_command("SPUBLISH", channel, rubbish)
    await broker.publish(event(1))
    await caught_up(broker, recorder)
    assert recorder.contents() == [1]


async def test_what_is_told_reaches_every_process_in_order(rig: RedisRig) -> None:
    here, there = Recorder(), Recorder()
    one, _ = await rig.broker(recorder=here), await rig.broker(recorder=there)
    for n in range(20):
        await one.tell([f"user{n}"], CID, b"%d" % n)
    await one.broadcast(b"the end")
    await until(lambda: here.notices == there.notices == [b"the end"], "all arrives")
    assert here.told == there.told == [([f"user{n}"], CID, b"%d" % n) for n in range(20)]


async def test_processes_answer_each_other(rig: RedisRig) -> None:
    here, there = Recorder(), Recorder()
    one, two = await rig.broker(recorder=here), await rig.broker(recorder=there)
    questions = [b"number %d" % n for n in range(50)]
    answers = await asyncio.gather(*(one.ask(two.node, question) for question in questions))
    assert answers == [b"you said " + question for question in questions]
    assert (here.questions, sorted(there.questions)) == ([], sorted(questions))
    assert await two.ask(one.node, b"and you?") == b"you said and you?"


async def test_a_notice_waits_for_a_process_that_is_not_listening(rig: RedisRig) -> None:
    here, there = Recorder(), Recorder()
    one, two = await rig.broker(recorder=here), await rig.broker(recorder=there)
    await one.broadcast(b"1")
    await until(lambda: there.notices == [b"1"], "it hears the first")
    with rig.server.client() as client:
        name = f"relay:{two.node}:subscribe"
        [subscriber] = [c for c in client.client_list() if c["name"] == name]
        client.client_kill_filter(_id=subscriber["id"])
        await until(lambda: not two._subscriber.is_connected, "the loss is noticed")
        for notice in (b"2", b"3"):
            await one.broadcast(notice)
    await until(lambda: len(there.notices) == 3, "it reads up on the others")
    await one.broadcast(b"4")
    await until(lambda: len(here.notices) == len(there.notices) == 4, "both hear the last")
    assert here.notices == there.notices == [b"1", b"2", b"3", b"4"]


async def test_a_process_that_starts_is_not_told_old_notices(rig: RedisRig) -> None:
    one = await rig.broker()
    await one.broadcast(b"old")
    recorder = Recorder()
    two = await rig.broker(recorder=recorder)
    two._messages.changed(listening=False)
    two._messages.changed(listening=True)
    await one.broadcast(b"new")
    await until(lambda: recorder.notices, "it hears the new one")
    await until(lambda: two._messages._reading is None, "it has read up")
    with rig.server.client() as client:
        [*_, (entry, _)] = client.xrange(two.keyspace.notices)
    two._messages.take(b'{"type":"notice","id":"%b"}\nnew' % entry.encode())  # it was read already
    assert recorder.notices == [b"new"]


@pytest.mark.parametrize("is_listening", [True, False])
async def test_a_notice_of_a_primary_whose_clock_is_behind_is_heard(
    rig: RedisRig, is_listening: bool
) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    with rig.server.client() as client:
        entry = f"{2**45}-0"  # of one whose clock was a thousand years ahead
        client.xadd(broker.keyspace.notices, {"notice": "1"}, id=entry)
        client.publish(broker.keyspace.everybody, f'{{"type":"notice","id":"{entry}"}}\n1')
        await until(lambda: recorder.notices == [b"1"], "it hears the first")
        client.delete(broker.keyspace.notices)  # a failover lost it
    if not is_listening:
        broker._subscriber._keeper.drop("a test")  # type: ignore[attr-defined]
    await broker.broadcast(b"2")
    await until(lambda: recorder.notices == [b"1", b"2"], "it hears the second")


async def test_a_notice_is_handed_over_once_however_often_it_is_read(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    for n in range(3):
        await broker.broadcast(b"same")
        broker._messages.changed(listening=False)
        broker._messages.changed(listening=True)
        await until(lambda: broker._messages._reading is None, "it has read up")
        assert len(recorder.notices) == n + 1


async def test_what_is_known_of_notices_is_bounded(
    rig: RedisRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_messages, "SEEN_MOST", 5)
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    for n in range(20):
        await broker.broadcast(b"%d" % n)
    await until(lambda: len(recorder.notices) == 20, "all arrive")
    assert len(broker._messages._seen) == 5


async def test_a_notice_that_fails_does_not_keep_others_from_being_read(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    hear = recorder.on_notice

    def fail_once(notice: bytes) -> None:
        recorder.on_notice = hear  # type: ignore[method-assign]
        raise ValueError("a bug")

    recorder.on_notice = fail_once  # type: ignore[method-assign]
    with rig.server.client() as client:
        for notice in ("bad", "good"):
            client.xadd(broker.keyspace.notices, {"notice": notice})
    broker._messages.changed(listening=False)
    broker._messages.changed(listening=True)
    await until(lambda: recorder.notices == [b"good"], "the other one is heard")


async def test_a_notice_that_comes_while_older_ones_are_read_comes_after_them(
    rig: RedisRig,
) -> None:
    here, there = Recorder(), Recorder()
    one, two = await rig.broker(recorder=here), await rig.broker(recorder=there)
    two._messages.changed(listening=False)
    for n in range(20):
        if n % 4 == 0:
            two._messages.changed(listening=False)
            two._messages.changed(listening=True)
        await one.broadcast(b"%d" % n)
    await until(lambda: len(there.notices) >= 20, "all arrive")
    assert there.notices == here.notices == [b"%d" % n for n in range(20)]


async def test_notices_are_read_when_redis_answers_again(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    with rig.server.client() as client:
        client.set(broker.keyspace.notices, "not a stream")  # XRANGE is refused
        broker._messages.changed(listening=False)
        broker._messages.changed(listening=True)
        await until(lambda: client.info("errorstats").get("errorstat_WRONGTYPE"), "it is refused")
        client.delete(broker.keyspace.notices)
    await broker.broadcast(b"at last")
    await until(lambda: recorder.notices == [b"at last"], "it is read")


async def test_notices_are_bounded_in_number_and_time(
    rig: RedisRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_messages, "NOTICES_KEPT", 100)
    broker = await rig.broker()
    await asyncio.gather(*(broker.broadcast(b"%d" % n) for n in range(500)))
    with rig.server.client() as client:
        assert client.xlen(broker.keyspace.notices) < 250
        assert 3590 < client.ttl(broker.keyspace.notices) <= 3600


async def test_a_late_answer_is_nobodys(rig: RedisRig) -> None:
    there = Recorder()
    there.answering = asyncio.Event()
    one, two = await rig.broker(), await rig.broker(recorder=there)
    one._desk.answer_s = 0.05
    with pytest.raises(Unavailable, match="the answer of the process"):
        await one.ask(two.node, b"slow?")
    there.answering.set()
    one._desk.answer_s = 2.0
    assert await one.ask(two.node, b"quick?") == b"you said quick?"


@pytest.mark.parametrize("refusal", [Unavailable("not now"), RuntimeError("a mistake")])
async def test_a_question_that_is_refused_or_fails_is_not_answered(
    rig: RedisRig, refusal: Exception
) -> None:
    there = Recorder()
    there.refusal = refusal
    one, two = await rig.broker(), await rig.broker(recorder=there)
    one._desk.answer_s = 0.1
    with pytest.raises(Unavailable):
        await one.ask(two.node, b"now?")
    assert there.questions == [b"now?"]


async def test_questions_are_bounded_on_both_sides(
    rig: RedisRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Recorder()
    there.answering = asyncio.Event()
    one, two = await rig.broker(), await rig.broker(recorder=there)
    monkeypatch.setattr(redis_messages, "ASKED_BOUND", 3)
    monkeypatch.setattr(redis_messages, "ANSWERING_BOUND", 2)
    one._desk.answer_s = 0.2
    asking = [asyncio.create_task(one.ask(two.node, b"%d" % n)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many questions"):
        await one.ask(two.node, b"one too many")
    await asyncio.gather(*asking, return_exceptions=True)
    assert there.questions == [b"0", b"1"]
    assert one._messages._asked == {}


async def test_rubbish_on_the_channels_of_processes_is_passed_over(rig: RedisRig) -> None:
    recorder = Recorder()
    broker = await rig.broker(recorder=recorder)
    with rig.server.client() as client:
        for channel in (broker.keyspace.everybody, broker.keyspace.inbox(broker.node)):
            for rubbish in (
                b"", b"x", b"{}", b'{"type":"tell"}\n{}', b'{"type":"tell","user_ids":"ann"}\n',
                b'{"type":"question","id":1}\nwhat', b'{"type":"answer","id":"77"}\nno', b"\xff\n",
                b'{"type":"notice"}\nno', b'{"type":"notice","id":"1-x"}\nno',
                b"[" * 100_000,
            ):  # fmt: skip
                assert client.publish(channel, rubbish) == 1
    await broker.broadcast(b"after all that")
    await until(lambda: recorder.notices, "it goes on")
    assert (recorder.told, recorder.questions) == ([], [])


async def test_one_of_two_looks_at_seats_until_it_goes_or_dies(rig: RedisRig) -> None:
    one, two = rig.sessions(await rig.broker()), rig.sessions(await rig.broker())
    assert (await one.lead(), await two.lead(), await one.lead()) == (True, False, True)
    await two.aclose()
    assert await one.lead()
    await one.aclose()
    assert await two.lead()
    brief = RedisSessions(await rig.broker(), lease_s=0.02)
    await two.aclose()
    assert await brief.lead()
    await rig.pass_time(0.05)
    assert await one.lead()


async def test_a_step_whose_answer_was_lost_is_found_when_it_is_looked_at_again(
    rig: RedisRig,
) -> None:
    sessions = rig.sessions(await rig.broker())
    session = Session(id="one", started_at=1)
    ann = Participant(user_id="ann", user_session_id="a", role="user", joined_at=2)
    for _ in range(2):  # the link repeats what it has no answer to
        assert await sessions.join(CID, session, ann) == (session, ann)
    seat = Seat(CID, "ann")
    [taken] = await sessions.look([seat])
    assert isinstance(taken, Taken)
    first = await sessions.leave(seat, taken, 3)
    assert await sessions.leave(seat, taken, 3) is None
    assert await sessions.look([seat]) == [first]
    await sessions.settle(seat)
    with rig.server.client() as client:
        assert client.keys(f"{rig.prefix}*:s:*") == client.keys(f"{rig.prefix}*:left:*") == []


async def test_the_sockets_of_a_dead_process_do_not_count(rig: RedisRig) -> None:
    one, two = await rig.broker(), await rig.broker()
    assert await one.set_connections("ann", 3) == {one.node: 3}
    assert await two.set_connections("ann", 2) == {one.node: 3, two.node: 2}
    await one.aclose()
    assert await two.set_connections("ann", 2) == {two.node: 2}
    with rig.server.client() as client:
        key = two.keyspace.connections("ann")
        assert client.hgetall(key) == {two.node: "2"}
        assert 86_000 < client.ttl(key) <= 86_400
        await two.set_connections("ann", 0)
        assert not client.exists(key)


async def test_a_closed_broker_refuses_and_ends_what_waits(rig: RedisRig) -> None:
    broker = await rig.broker()
    waiting = asyncio.create_task(broker.publish(event(1)))
    await asyncio.sleep(0)
    await broker.aclose()
    with pytest.raises(Unavailable):
        await broker.publish(event(2))
    outcome = (await asyncio.gather(waiting, return_exceptions=True))[0]
    assert not isinstance(outcome, BaseException) or isinstance(outcome, Unavailable)
    assert asyncio.all_tasks() == {asyncio.current_task()} | _runners()


def _runners() -> set[asyncio.Task[object]]:
    """Return the tasks of anyio's test runner."""
    return {task for task in asyncio.all_tasks() if "runner" in repr(task.get_coro()).lower()}


async def test_brokers_can_be_made_before_the_event_loop_runs(rig: RedisRig) -> None:
    loop = asyncio.get_running_loop()
    made = await loop.run_in_executor(
        None, lambda: RedisBroker(rig.server.url, rig.prefix, Limits(), "made")
    )
    recorder = Recorder()
    await made.start(recorder, recorder.on_live)
    await made.publish(event(1))
    await made.aclose()
