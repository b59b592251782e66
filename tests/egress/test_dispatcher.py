"""What is owed is delivered: matched, retried by the table, given up, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from relay import metrics
from relay.broker import Changes, HookList, Lease, Limits, Reason, Replayed, Span, Tried
from relay.egress.lane import Bounds
from relay.egress.sinks import Delivery, Result
from relay.errors import Unavailable
from relay.hooks import Hook
from relay.retry import Outcome
from tests.contract.harness import CID, OTHER, event
from tests.egress.works import (
    BUSY,
    NO,
    OK,
    START_MS,
    Gate,
    Works,
    content,
    hook,
    result,
    settled,
    works,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def rig() -> AsyncIterator[Works]:
    async with works() as made:
        yield made


async def test_an_event_is_delivered_at_once_with_what_the_watchers_got(rig: Works) -> None:
    await rig.start(hook())
    await rig.publish({"a": 1})
    [(at_s, hook_id, delivery, limit_s)] = rig.sink.attempts
    history = await rig.broker.history(CID, 0)
    assert (at_s, hook_id, limit_s) == (0.0, "one", 6.0)
    assert delivery.body == history.entries[0].body
    assert (delivery.cid, delivery.type, delivery.attempt) == (CID, "custom", 1)
    assert delivery.event_id.startswith("e")
    assert await rig.left() == 0


async def test_every_hook_gets_what_it_wants_under_an_id_of_its_own(rig: Works) -> None:
    await rig.start(
        hook("all"), hook("some", "custom"), hook("none", "call.ended"), hook("off", enabled=False)
    )
    await rig.publish(1, 2)
    assert rig.sink.contents("all") == rig.sink.contents("some") == [1, 2]
    assert {hook_id for _, hook_id, _, _ in rig.sink.attempts} == {"all", "some"}
    assert len({delivery.delivery_id for _, _, delivery, _ in rig.sink.attempts}) == 4
    assert await rig.left() == 0


async def test_without_hooks_nothing_is_leased(rig: Works) -> None:
    await rig.start()
    await rig.publish(1)
    await rig.timers.advance(30)
    assert rig.outbox._token == ""
    await rig.set_hooks(hook())
    await rig.timers.advance(2.5)
    await rig.publish(2)
    assert rig.sink.contents() == [2]


async def test_what_was_owed_before_the_start_is_delivered(rig: Works) -> None:
    await rig.set_hooks(hook())
    await rig.publish(*range(200))
    await rig.start()
    assert sorted(rig.sink.contents()) == list(range(200))
    assert await rig.left() == 0


# -- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [
        (Outcome.RETRYABLE, 3),
        (Outcome.TIMEOUT, 3),
        (Outcome.NETWORK, 2),
        (Outcome.REFUSED, 1),
    ],
)
async def test_an_attempt_that_fails_is_repeated_by_the_table_and_then_given_up(
    rig: Works, outcome: Outcome, attempts: int
) -> None:
    rig.sink.answer = lambda _hook, _delivery: result(outcome, answer=b"why\xff")
    await rig.start(hook())
    await rig.publish("x")
    await rig.timers.advance(20)
    assert rig.sink.numbers == list(range(1, attempts + 1))
    assert len({delivery.delivery_id for _, _, delivery, _ in rig.sink.attempts}) == 1
    [letter] = await rig.dead()
    found = await rig.outbox.dead_letter(letter.id)
    assert found is not None
    assert (letter.reason, letter.hook_id, letter.cid) == (Reason.EXHAUSTED, "one", CID)
    assert found.body is not None
    assert content(found.body.encode()) == "x"
    assert [(each.outcome, each.answer) for each in letter.tried.attempts] == [
        (outcome.value, "why�")
    ] * attempts
    assert await rig.left() == 0


async def test_an_attempt_never_reaches_beyond_the_budget_of_its_event(rig: Works) -> None:
    gate = Gate()
    rig.sink.answer = gate
    await rig.start(hook())
    await rig.publish("x")
    for _ in range(3):
        await rig.timers.advance(6)
        gate.open(result(Outcome.TIMEOUT, latency_s=6.0))
        await rig.timers.advance(2)
    spans = [(at_s, at_s + limit_s) for at_s, _, _, limit_s in rig.sink.attempts]
    assert spans[0] == (0.0, 6.0)
    assert len(spans) == 3
    assert all(begin < end <= 15.0 for begin, end in spans)
    assert len(await rig.dead()) == 1


async def test_a_success_after_failures_is_a_success(rig: Works) -> None:
    answers = iter([BUSY, result(Outcome.NETWORK), OK])
    rig.sink.answer = lambda _hook, _delivery: next(answers)
    await rig.start(hook())
    await rig.publish("x")
    await rig.timers.advance(20)
    assert rig.sink.numbers == [1, 2]  # after a network error the second is the last
    rig.sink.attempts.clear()
    answers = iter([BUSY, BUSY, OK])
    await rig.publish("y")
    await rig.timers.advance(20)
    assert rig.sink.numbers == [1, 2, 3]
    assert len(await rig.dead()) == 1
    assert await rig.left() == 0


async def test_what_waits_for_its_next_attempt_holds_nothing_up(rig: Works) -> None:
    rig.sink.answer = lambda _hook, delivery: BUSY if content(delivery.body) == 0 else OK
    await rig.start(hook())
    await rig.publish(*range(50))
    assert sorted(rig.sink.contents()) == list(range(50))
    assert await rig.left() == 50  # the first one is not done
    await rig.timers.advance(20)
    assert await rig.left() == 0
    assert len(await rig.dead()) == 1


# -- order ------------------------------------------------------------------------------------


async def test_ordered_deliveries_of_a_call_go_one_after_another(rig: Works) -> None:
    gate = Gate(1, 11)
    rig.sink.answer = gate
    await rig.start(hook(ordered=True))
    for n in range(1, 6):
        await rig.publish(n)
        await rig.publish(n + 10, cid=OTHER)
    assert rig.sink.contents() == [1, 11]
    gate.futures[1].set_result(OK)
    await settled()
    assert rig.sink.contents() == [1, 11, 12, 13, 14, 15]
    gate.open()
    await settled()
    assert rig.sink.contents()[6:] == [2, 3, 4, 5]
    assert await rig.left() == 0


async def test_an_ordered_delivery_that_is_given_up_lets_the_next_one_go(rig: Works) -> None:
    rig.sink.answer = lambda _hook, delivery: BUSY if content(delivery.body) == 1 else OK
    await rig.start(hook(ordered=True, retry_schedule=(60,)))
    await rig.publish(1, 2, 3)
    assert rig.sink.contents() == [1]
    await rig.timers.advance(20)
    assert rig.sink.contents() == [1, 1, 1, 2, 3]
    assert [letter.offset for letter in await rig.dead()] == [1]


async def test_unordered_deliveries_of_a_call_overtake_each_other(rig: Works) -> None:
    rig.sink.answer = gate = Gate(1)
    await rig.start(hook())
    await rig.publish(0)  # a hook earns to have more than one under way
    await rig.publish(1, 2, 3)
    assert sorted(rig.sink.contents()) == [0, 1, 2, 3]
    gate.open()


# -- what a crash leaves ----------------------------------------------------------------------


async def test_who_takes_over_repeats_what_was_not_seen_to_end(rig: Works) -> None:
    rig.sink.answer = gate = Gate(2)
    await rig.start(hook())
    await rig.publish(1, 2, 3)
    [_, (_, _, before, _), _] = sorted(rig.sink.attempts, key=lambda each: content(each[2].body))
    await rig.crash()
    gate.open()
    rig.sink.attempts.clear()
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.start()
    [(_, _, after, _)] = rig.sink.attempts
    assert (after.delivery_id, after.body) == (before.delivery_id, before.body)
    assert (before.attempt, after.attempt) == (1, 2)
    assert await rig.left() == 0


async def test_an_attempt_without_outcome_does_not_count_but_the_budget_goes_on(
    rig: Works,
) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook())
    await rig.publish("x")
    await rig.crash()
    gate.open()
    await rig.timers.advance(4)
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start()
    await rig.timers.advance(20)
    # One was lost; of the three that count the last one still fits.
    assert rig.sink.numbers == [1, 2, 3, 4]
    assert rig.sink.times[-1] < 15
    [letter] = await rig.dead()
    assert (letter.tried.lost, len(letter.tried.attempts)) == (1, 3)


async def test_a_lost_attempt_is_made_again_however_late(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook())
    await rig.publish("x")
    await rig.crash()
    gate.open()
    await rig.timers.advance(60)
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.start()
    assert rig.sink.numbers == [1, 2]
    assert await rig.dead() == []


async def test_a_retry_whose_time_has_passed_meanwhile_is_given_up(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start(hook())
    await rig.publish("x")
    await rig.crash()
    await rig.timers.advance(60)
    await rig.start()
    assert rig.sink.numbers == [1]
    assert [letter.reason for letter in await rig.dead()] == [Reason.EXHAUSTED]


async def test_what_kills_the_relay_again_and_again_is_given_up(rig: Works) -> None:
    await rig.set_hooks(hook())
    rig.sink.answer = gate = Gate("poison")
    await rig.publish("poison", "other")
    for n in range(5):
        await rig.start()
        assert rig.sink.contents().count("poison") == n + 1
        await rig.crash()
        gate.open()
    await rig.start()
    assert rig.sink.contents().count("poison") == 5
    assert [letter.reason for letter in await rig.dead()] == [Reason.POISON]
    assert await rig.left() == 0


async def test_what_one_hook_has_got_is_not_repeated_because_another_is_behind(
    rig: Works,
) -> None:
    gate = Gate(0)
    rig.sink.answer = lambda at, d: OK if at.id == "fast" else gate(at, d)
    await rig.start(hook("fast"), hook("stuck"))
    await rig.publish(*range(50))
    assert await rig.left() == 50
    await rig.crash()
    gate.open()
    rig.sink.attempts.clear()
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.start()
    await rig.quiet()
    assert rig.sink.contents("fast") == []
    assert 0 in rig.sink.contents("stuck")
    assert await rig.left() == 0


async def test_a_process_that_lost_its_lease_begins_nothing_any_more(rig: Works) -> None:
    await rig.start(hook())
    await rig.publish(1)
    await rig.outbox.lease(0)  # another process
    await rig.publish(2)
    assert rig.sink.contents() == [1]
    await rig.timers.advance(2.5)  # memory has one process: it takes it again
    assert rig.sink.contents() == [1, 2]


async def test_a_partition_of_another_process_is_handed_over(rig: Works) -> None:
    rig.sink.answer = gate = Gate(1)
    await rig.start(hook())
    await rig.publish(1)
    while 0 in _mine(rig.outbox.others | {"here"}):
        rig.outbox.others.add(f"there-{len(rig.outbox.others)}")
    await rig.timers.advance(2.5)
    await rig.publish(2)
    assert rig.outbox._token  # an attempt is under way
    gate.open()
    await settled()
    assert rig.outbox._token == ""
    assert rig.sink.contents() == [1]
    rig.outbox.others.clear()
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1, 2]


def _mine(nodes: set[str]) -> set[int]:
    from relay.egress.dispatcher import shares

    return shares(nodes, 1)["here"]


async def test_a_stopping_process_finishes_what_is_under_way(rig: Works) -> None:
    rig.sink.answer = gate = Gate(1)
    await rig.start(hook())
    await rig.publish(0)
    await rig.publish(1)
    draining = asyncio.create_task(rig.dispatcher.drain(10))
    await settled()
    await rig.publish(2)
    assert not draining.done()
    gate.open()
    await draining
    assert rig.sink.contents() == [0, 1]
    assert rig.outbox._token == ""
    assert [content(each.body) for each in rig.outbox._entries] == [2]


# -- after the table --------------------------------------------------------------------------


async def test_the_longer_schedule_gives_further_attempts(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start(hook(retry_schedule=(60, 3600)))
    await rig.publish("x")
    await rig.timers.advance(30)
    assert rig.sink.numbers == [1, 2, 3]
    assert await rig.left() == 0  # it waits elsewhere
    assert await rig.dead() == []
    await rig.timers.advance(100)
    assert rig.sink.numbers == [1, 2, 3, 4]
    await rig.timers.advance(4200)
    assert rig.sink.numbers == [1, 2, 3, 4, 5]
    gaps = [b - a for a, b in zip(rig.sink.times[2:], rig.sink.times[3:], strict=False)]
    assert 60 <= gaps[0] <= 70
    assert 3600 <= gaps[1] <= 3970
    [letter] = await rig.dead()
    assert len(letter.tried.attempts) == 5


async def test_an_attempt_of_the_longer_schedule_may_succeed(rig: Works) -> None:
    rig.sink.answer = lambda _hook, delivery: BUSY if delivery.attempt < 4 else OK
    await rig.start(hook(retry_schedule=(60, 3600)))
    await rig.publish("x")
    await rig.timers.advance(5000)
    assert rig.sink.numbers == [1, 2, 3, 4]
    assert await rig.dead() == []
    assert rig.outbox._waiting == {}


async def test_what_waits_outlives_the_process(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start(hook(retry_schedule=(60,)))
    await rig.publish("x")
    await rig.timers.advance(20)
    await rig.crash()
    rig.sink.answer = gate = Gate()
    [waiting] = rig.outbox._waiting.values()
    await rig.start()
    await rig.timers.advance(60)
    assert rig.sink.numbers == [1, 2, 3, 4]
    assert START_MS + rig.sink.times[-1] * 1000 == pytest.approx(waiting.due_ms, abs=2)
    await rig.crash()
    gate.open()
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.start()
    await rig.timers.advance(90)
    assert rig.sink.numbers == [1, 2, 3, 4, 5]
    assert rig.outbox._waiting == {}


async def test_a_replayed_dead_letter_is_delivered_under_its_id(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: NO
    await rig.start(hook())
    await rig.publish("x", "y")
    ids = [letter.id for letter in await rig.dead()]
    rig.sink.answer = lambda _hook, _delivery: OK
    rig.sink.attempts.clear()
    assert await rig.outbox.replay(ids, ["one"]) == Replayed(2, 0)
    await rig.timers.advance(2.5)
    assert sorted(rig.sink.contents()) == ["x", "y"]
    assert {delivery.delivery_id for _, _, delivery, _ in rig.sink.attempts} == set(ids)
    assert rig.sink.numbers == [2, 2]
    assert await rig.dead() == []
    assert rig.outbox._waiting == {}


async def test_a_replayed_dead_letter_has_the_whole_table_again(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start(hook())
    await rig.publish("x")
    await rig.timers.advance(20)
    [letter] = await rig.dead()
    await rig.outbox.replay([letter.id], ["one"])
    await rig.timers.advance(20)
    assert rig.sink.numbers == [1, 2, 3, 4, 5, 6]
    [again] = await rig.dead()
    assert again.id == letter.id
    assert again.tried.number == 6


# -- hooks change -----------------------------------------------------------------------------


async def test_a_new_hook_gets_what_is_published_from_then_on(rig: Works) -> None:
    rig.sink.answer = gate = Gate(1)
    await rig.start(hook("old"))
    await rig.publish(1)
    await rig.set_hooks(hook("old"), hook("new"))
    await rig.publish(2)  # nobody has told the dispatcher
    assert rig.sink.contents("new") == [2]
    gate.open()
    await settled()
    assert rig.sink.contents("old") == [1, 2]
    assert await rig.left() == 0


async def test_what_is_owed_to_a_removed_hook_is_dropped_and_counted(rig: Works) -> None:
    dropped = metrics.UNOWED.labels("gone")._value
    before = dropped.get()
    rig.sink.answer = gate = Gate()
    await rig.start(hook("gone"), hook("kept"))
    await rig.publish(*range(40))
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.set_hooks(hook("kept"))
    await rig.timers.advance(2.5)
    gate.open()
    await settled()
    assert sorted(rig.sink.contents("kept")) == list(range(40))
    assert len(rig.sink.contents("gone")) < 40
    assert dropped.get() - before == 40
    assert await rig.left() == 0
    assert rig.outbox._tried == {}
    assert "gone" not in rig.outbox._settled


async def test_an_attempt_of_a_removed_hook_leaves_nothing(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook("gone", retry_schedule=(60,)), hook("kept"))
    await rig.publish(1)
    await rig.set_hooks(hook("kept"))
    await rig.timers.advance(2.5)
    gate.open(NO)
    await rig.quiet()
    assert rig.outbox._tried == {}
    assert rig.outbox._waiting == {}
    assert [letter.hook_id for letter in await rig.dead()] == ["kept"]


async def test_hooks_removed_while_nobody_delivered_leave_nothing(rig: Works) -> None:
    rig.sink.answer = lambda at, d: BUSY if at.id == "a" or content(d.body) == 5 else OK
    await rig.start(hook("a"), hook("b"), hook("c"))
    await rig.publish(*range(10))
    assert {key.hook_id for key in rig.outbox._tried} == {"a", "b", "c"}
    assert rig.outbox._settled.keys() >= {"b", "c"}
    await rig.crash()
    rig.sink.answer = lambda _hook, _delivery: OK
    rig.sink.attempts.clear()
    await rig.set_hooks(hook("c"))
    await rig.start()
    await rig.timers.advance(20)
    assert rig.sink.contents() == [5]
    assert rig.outbox._tried == {}
    assert rig.outbox._settled.keys() <= {"c"}
    assert await rig.left() == 0


async def test_a_hook_that_comes_back_is_owed_nothing_of_before(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start(hook())
    await rig.publish(1)
    await rig.set_hooks(hook(enabled=False))
    await rig.publish(2)
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.set_hooks(hook())
    rig.sink.attempts.clear()
    await rig.publish(3)
    await rig.timers.advance(20)
    assert rig.sink.contents() == [3]
    assert await rig.left() == 0


async def test_the_first_hook_after_none_gets_all_that_is_owed_to_it(rig: Works) -> None:
    """Also when its lease tells of it before anything else does."""
    await rig.start(hook(enabled=False))
    rig.outbox._woken = lambda _number: None
    await rig.set_hooks(hook())
    await rig.broker.publish(event(1))
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1]
    assert await rig.left() == 0


async def test_the_first_hook_after_none_gets_what_was_being_read(rig: Works) -> None:
    await rig.start(hook(enabled=False))
    rig.outbox.after["read"] = asyncio.Event()
    await rig.set_hooks(hook())
    await rig.broker.publish(event(1))
    await rig.timers.advance(2.5)
    rig.outbox.after.pop("read").set()
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1]
    assert await rig.left() == 0


def hooks_read_late(rig: Works) -> asyncio.Event:
    """Hold up whoever reads the hooks until the event is set."""
    read, known = rig.store.hooks, asyncio.Event()

    async def read_late() -> HookList:
        await known.wait()
        return await read()

    rig.store.hooks = read_late  # type: ignore[method-assign]
    return known


async def test_a_partition_that_is_being_opened_passes_nothing_over(rig: Works) -> None:
    """Its lease may be renewed meanwhile, and tell of what is owed to a hook that is new."""
    await rig.set_hooks(hook(enabled=False))
    progress = rig.outbox.before["progress"] = asyncio.Event()
    await rig.start()
    await rig.set_hooks(hook())
    await rig.broker.publish(event(1))
    known = hooks_read_late(rig)
    await rig.timers.advance(2.5)  # the lease is renewed, and the hooks are being read
    progress.set()
    await settled()
    known.set()
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1]
    assert await rig.left() == 0


async def test_a_partition_that_is_handed_over_passes_nothing_over(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook())
    await rig.publish(1)
    await rig.set_hooks(hook(enabled=False))
    await rig.timers.advance(2.5)
    await rig.set_hooks(hook())
    await rig.broker.publish(event(2))
    known = hooks_read_late(rig)
    await rig.timers.advance(2.5)  # the lease is renewed, and the hooks are being read
    draining = asyncio.create_task(rig.dispatcher.drain(5))
    await settled()
    known.set()
    await settled()
    gate.open()
    await draining
    assert await rig.left() == 1


async def test_a_dead_letter_of_a_hook_that_was_just_enabled_is_not_dropped(rig: Works) -> None:
    rig.sink.answer = lambda at, _: NO if at.id == "two" else BUSY
    await rig.start(hook("one", retry_schedule=(30,)), hook("two"))
    await rig.publish(1)
    [letter] = await rig.dead()
    await rig.set_hooks(hook("one", retry_schedule=(30,)))
    await rig.timers.advance(20)
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.set_hooks(hook("one", retry_schedule=(30,)), hook("two"))
    assert await rig.outbox.replay([letter.id], ["one", "two"]) == Replayed(1, 0)
    rig.dispatcher._partitions[0]._shelf.look()  # as when another delivery is due
    await settled()
    await rig.timers.advance(2.5)
    assert rig.sink.contents("two") == [1, 1]
    assert await rig.dead() == []


async def test_while_the_hooks_cannot_be_read_the_partitions_wait_for_it_together(
    rig: Works,
) -> None:
    rig.outbox.partitions = 20
    await rig.start(hook("old", enabled=False))
    await rig.set_hooks(hook("old"), hook("new"))
    reads = 0

    async def away() -> HookList:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0)
        raise Unavailable("away")

    rig.store.hooks = away  # type: ignore[method-assign]
    await rig.timers.advance(2.5)
    assert 0 < reads < 5


async def test_who_takes_over_knows_every_hook_that_is_owed_something(rig: Works) -> None:
    """Also one that was new to the process before, which had not come to it yet."""
    await rig.set_hooks(hook("old"))
    take = rig.outbox.lease

    async def take_after_another(partition: int, token: str = "") -> Lease | None:
        rig.outbox.lease = take  # type: ignore[method-assign]
        await rig.set_hooks(hook("old"), hook("new"))
        await rig.broker.publish(event(1))
        theirs = await take(partition)
        assert theirs is not None
        await rig.outbox.record(theirs, Changes(settled={"old": theirs.top}))
        await rig.outbox.give_back(theirs)
        return await take(partition, token)

    rig.outbox.lease = take_after_another  # type: ignore[method-assign]
    await rig.start()
    assert rig.sink.contents("new") == [1]
    assert rig.sink.contents("old") == []
    assert await rig.left() == 0


async def test_many_partitions_read_the_hooks_once_for_all(rig: Works) -> None:
    rig.outbox.partitions = 20
    await rig.start(hook("old", enabled=False))
    await rig.set_hooks(hook("old"), hook("new"))
    reads = 0
    read = rig.store.hooks

    async def counted() -> HookList:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0)
        return await read()

    rig.store.hooks = counted  # type: ignore[method-assign]
    await rig.timers.advance(2.5)
    assert reads < 5


async def test_a_changed_hook_is_tried_as_it_is_now(rig: Works) -> None:
    urls = []

    def answer(at: Hook, _: Delivery) -> Result:
        urls.append(at.webhook_url)
        return BUSY if len(urls) == 1 else OK

    rig.sink.answer = answer
    await rig.start(hook())
    await rig.publish(1)
    await rig.set_hooks(
        Hook(id="one", hook_type=hook().hook_type, webhook_url="https://other.test/")
    )
    await rig.dispatcher.refresh()
    await rig.timers.advance(20)
    assert urls == ["https://one.test/", "https://other.test/"]


async def test_waiting_deliveries_of_a_removed_hook_are_dropped(rig: Works) -> None:
    rig.sink.answer = lambda _hook, _delivery: BUSY
    await rig.start(hook(retry_schedule=(60,)))
    await rig.publish(1)
    await rig.timers.advance(20)
    assert len(rig.outbox._waiting) == 1
    await rig.set_hooks()
    await rig.timers.advance(90)
    assert rig.outbox._waiting == {}
    assert len(rig.sink.attempts) == 3


async def test_what_waits_for_a_removed_hook_takes_no_room_of_the_others() -> None:
    """It may not be due for a day."""
    async with works(Limits(dead_letter_bytes=5000)) as rig:
        rig.sink.answer = lambda _hook, d: NO if content(d.body) % 2 else OK
        await rig.start(hook("gone", retry_schedule=(86_400,)), hook("kept"))
        await rig.publish(*range(40))
        assert {letter.reason for letter in await rig.dead()} == {
            Reason.WAITING_BOUND,
            Reason.EXHAUSTED,
        }
        await rig.set_hooks(hook("kept", retry_schedule=(86_400,)))
        await rig.timers.advance(5)
        assert rig.outbox._waiting == {}
        await rig.publish(41)
        assert [waiting.hook_id for waiting in rig.outbox._waiting.values()] == ["kept"]


async def test_hooks_of_the_file_return_when_all_were_forgotten(rig: Works) -> None:
    rig.file = [hook("file")]
    await rig.start(hook("file"), hook("other"))
    rig.outbox._hooks = HookList()
    await rig.timers.advance(2.5)
    await rig.publish(1)
    assert [hook_id for _, hook_id, _, _ in rig.sink.attempts] == ["file"]


# -- bounds -----------------------------------------------------------------------------------


async def test_a_hook_that_keeps_failing_is_left_alone_and_what_it_is_owed_waits(
    rig: Works,
) -> None:
    rig.sink.answer = lambda at, _: NO if at.id == "bad" else OK
    await rig.start(hook("bad"), hook("good"))
    await rig.publish(*range(100))
    assert rig.sink.contents("good") == list(range(100))
    assert 10 <= len(rig.sink.contents("bad")) <= 80
    assert list(rig.dispatcher.troubles()) == ["bad"]
    tried = len(rig.sink.contents("bad"))
    await rig.timers.advance(4)
    assert len(rig.sink.contents("bad")) <= tried + 1
    await rig.timers.advance(600)
    probes = len(rig.sink.contents("bad")) - tried
    assert 10 <= probes <= 30  # one now and then
    assert len(await rig.dead()) == tried + probes
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.timers.advance(60)
    assert rig.dispatcher.troubles() == {}
    assert set(rig.sink.contents("bad")) == set(range(100))
    assert await rig.left() == 0


async def test_at_a_hooks_bound_its_oldest_become_dead_letters_without_body(rig: Works) -> None:
    rig.sink.answer = lambda at, _: NO if at.id == "bad" else OK
    await rig.start(hook("bad", pending_limit=50), hook("good"))
    await rig.publish(*range(300))
    await rig.timers.advance(3)
    letters = await rig.dead(hook_id="bad")
    shed = [letter for letter in letters if letter.reason is Reason.HOOK_BOUND]
    tried = len(rig.sink.contents("bad"))
    assert len(shed) + tried == pytest.approx(250, abs=3)
    found = await rig.outbox.dead_letter(shed[0].id)
    assert found is not None
    assert found.body is None
    assert (await rig.outbox.replay([shed[0].id], ["one"])) == Replayed(0, 1)
    rig.sink.answer = lambda _hook, _delivery: OK
    await rig.timers.advance(90)
    assert rig.sink.contents("bad")[-1] == 299
    assert await rig.left() == 0
    every = set(rig.sink.contents("bad")) | {letter.offset - 1 for letter in await rig.dead()}
    assert every == set(range(300))


async def test_what_was_shed_while_it_was_read_is_not_delivered_as_well(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook(pending_limit=100))
    await rig.publish(*range(200))
    read = rig.outbox.after["read"] = asyncio.Event()
    await rig.timers.advance(2.5)  # the oldest are read to be shed
    rig.sink.answer = lambda _hook, _delivery: OK
    gate.open()
    await settled()  # and, as there is room now, to be delivered
    del rig.outbox.after["read"]
    read.set()
    await rig.timers.advance(20)
    dead = {letter.event_id for letter in await rig.dead()}
    sent = [delivery.event_id for _, _, delivery, _ in rig.sink.attempts]
    assert dead
    assert dead.isdisjoint(sent)
    assert len(dead) + len(sent) == 200


async def test_a_hook_that_does_not_answer_holds_few_deliveries(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook())
    await rig.publish(*range(3000))
    assert rig.sink.under_way <= 64
    assert rig.dispatcher.held_bytes < 100 * 300
    rig.sink.answer = lambda _hook, _delivery: OK
    gate.open()
    await rig.quiet()
    assert sorted(rig.sink.contents()) == list(range(3000))
    assert rig.dispatcher.held_bytes == 0
    assert rig.dispatcher.slots.taken == 0


async def test_who_waits_for_a_free_slot_gets_it(rig: Works) -> None:
    a, b, fast = hook("a"), hook("b"), hook("fast", "custom")
    await rig.start(a, b, fast, bounds=Bounds(attempts=3))
    await rig.publish(*range(10))  # now each has earned more than one
    gates = {each.id: Gate() for each in (a, b, fast)}
    rig.sink.answer = lambda at, d: gates[at.id](at, d)
    rig.sink.attempts.clear()
    await rig.publish("x")
    await rig.publish("y")
    assert sorted(name for _, name, _, _ in rig.sink.attempts) == ["a", "b", "fast"]
    gates["a"].open()
    await settled()
    # What a has left may always begin; the slot that b gives back goes to who has waited longest.
    gates["b"].open()
    await settled()
    assert rig.sink.contents("b") == ["x", "y"]
    gates["a"].open()
    await settled()
    assert rig.sink.contents("fast") == ["x", "y"]
    for gate in gates.values():
        gate.open()


async def test_many_slow_hooks_leave_room_for_a_fast_one(rig: Works) -> None:
    slow = [hook(f"slow-{n}") for n in range(100)]
    gate = Gate()
    rig.sink.answer = lambda at, delivery: OK if at.id == "fast" else gate(at, delivery)
    await rig.start(*slow, hook("fast"), bounds=Bounds(attempts=300))
    await rig.publish(*range(100))
    assert rig.sink.most <= 301
    assert rig.sink.contents("fast") == list(range(100))
    for _ in range(20):
        gate.open(result(latency_s=5.0))
        await rig.timers.advance(1)
        assert rig.sink.under_way <= 301
    rig.sink.answer = lambda _hook, _delivery: OK
    gate.open()
    await rig.quiet()
    for each in slow:
        assert sorted(rig.sink.contents(each.id)) == list(range(100))
    assert await rig.left() == 0


async def test_what_finds_no_room_to_wait_in_is_given_up_with_its_event() -> None:
    """What waits already keeps its place, however often it is tried."""
    async with works(Limits(dead_letter_bytes=5000)) as rig:
        rig.sink.answer = lambda _hook, d: NO if content(d.body) % 2 else OK
        await rig.start(hook(retry_schedule=(60, 60)))
        await rig.publish(*range(40))
        waiting = set(rig.outbox._waiting)
        letters = await rig.dead()
        assert 10 <= len(waiting) < 20
        assert len(waiting) + len(letters) == 20
        assert {letter.reason for letter in letters} == {Reason.WAITING_BOUND}
        kept = [await rig.outbox.dead_letter(letter.id) for letter in letters]
        assert all(letter is not None and letter.body for letter in kept)
        await rig.timers.advance(80)
        assert set(rig.outbox._waiting) == waiting
        rig.sink.answer = lambda _hook, _delivery: OK
        await rig.timers.advance(80)
        assert (rig.outbox._waiting, await rig.dead()) == ({}, letters)
        rig.sink.answer = lambda _hook, _delivery: NO
        await rig.publish(43)
        assert len(rig.outbox._waiting) == 1, "there is room again"


async def test_what_the_outbox_shed_is_not_waited_for() -> None:
    async with works(Limits(outbox_bytes=5000)) as rig:
        rig.sink.answer = gate = Gate()
        await rig.start(hook())
        await rig.publish(*range(100))
        gate.open()
        rig.sink.answer = lambda _hook, _delivery: OK
        await rig.timers.advance(3)
        assert await rig.left() == 0
        got = set(rig.sink.contents())
        assert 99 in got
        assert got | {letter.offset - 1 for letter in await rig.dead()} == set(range(100))


async def test_deliveries_that_wait_for_their_next_attempt_are_bounded(
    rig: Works,
) -> None:
    rig.sink.answer = lambda _hook, d: BUSY if d.attempt == 1 and content(d.body) % 2 else OK
    await rig.start(hook(), bounds=Bounds(parked=5))
    await rig.publish(*range(200))
    assert len(rig.sink.attempts) < 100
    await rig.timers.advance(120)
    assert set(rig.sink.contents()) == set(range(200))
    assert await rig.left() == 0


async def test_bodies_in_hand_are_bounded_and_each_hook_may_have_one(
    rig: Works,
) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook("a"), hook("b"), hook("c"), bounds=Bounds(held_bytes=1000))
    await rig.publish(*("x" * 2000 for _ in range(20)))
    assert sorted(name for _, name, _, _ in rig.sink.attempts) == ["a", "b", "c"]
    assert rig.dispatcher.held_bytes < 4 * 2200
    rig.sink.answer = lambda _hook, _delivery: OK
    gate.open()
    await rig.quiet()
    assert len(rig.sink.attempts) == 60


async def test_a_partition_that_was_not_told_of_the_hooks_is_told(rig: Works) -> None:
    rig.outbox.forgets = True
    await rig.start(hook())
    version = rig.outbox.hooks.version
    assert rig.outbox.informed == [version]
    await rig.timers.advance(2.5)
    assert rig.outbox.informed == [version, version]
    rig.outbox.forgets = False
    await rig.timers.advance(2.5)
    assert rig.outbox.informed == [version, version]


async def test_while_redis_is_away_nothing_is_sent_and_then_it_goes_on(rig: Works) -> None:
    await rig.start(hook())
    await rig.publish(1)
    rig.outbox.is_away = True
    await rig.publish(2)
    await rig.timers.advance(9)
    assert rig.sink.contents() == [1]
    rig.outbox.is_away = False
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1, 2]


async def test_a_record_is_tried_again_until_redis_is_back(rig: Works) -> None:
    rig.sink.answer = gate = Gate()
    await rig.start(hook())
    await rig.publish(1)
    rig.outbox.is_away = True
    gate.open()
    await settled()
    assert await rig.left() == 1
    rig.outbox.is_away = False
    await until_empty(rig)
    assert rig.sink.contents() == [1]


async def until_empty(rig: Works) -> None:
    async with asyncio.timeout(10):
        while await rig.left():
            await asyncio.sleep(0.01)  # the pauses between tries are real ones


async def test_how_much_waits_is_counted(rig: Works) -> None:
    rig.sink.answer = Gate()
    await rig.start(hook("counted"))
    await rig.publish(*range(100))
    await rig.timers.advance(2.5)
    assert metrics.PENDING.labels("counted")._value.get() == 100
    assert metrics.OUTBOX_ENTRIES._value.get() == 100
    assert metrics.PARTITIONS._value.get() == 1


async def test_what_the_outbox_shed_is_told() -> None:
    async with works(Limits(outbox_bytes=5000)) as rig:
        rig.sink.answer = Gate()
        await rig.start(hook())
        await rig.timers.advance(2.5)
        await rig.publish(*range(50))
        with capture_logs() as logs:
            await rig.timers.advance(2.5)
        [said] = [each for each in logs if each["event"] == "the outbox is full: its oldest go"]
        assert said["entries"] == len(await rig.dead())


async def test_volatile_events_are_not_delivered(rig: Works) -> None:
    await rig.start(hook())
    await rig.broker.publish(event(1, volatile=True))
    await rig.publish(2)
    assert rig.sink.contents() == [2]


async def test_closing_ends_attempts_of_removed_hooks_too(rig: Works) -> None:
    rig.sink.answer = Gate()
    await rig.start(hook("gone"), hook("kept"))
    await rig.publish(1)
    await rig.set_hooks(hook("kept"))
    await rig.timers.advance(2.5)
    assert rig.sink.under_way == 2
    await rig.dispatcher.aclose()
    assert rig.sink.under_way == 0


async def test_closing_closes_the_sink(rig: Works) -> None:
    await rig.start(hook())
    await rig.dispatcher.aclose()
    assert rig.sink.is_closed


async def test_nothing_recorded_is_left_when_all_is_delivered(rig: Works) -> None:
    rig.sink.answer = lambda _hook, delivery: BUSY if delivery.attempt == 1 else OK
    await rig.start(hook("a"), hook("b"))
    await rig.publish(*range(100))
    await rig.timers.advance(30)
    assert await rig.left() == 0
    assert rig.outbox._tried == {}
    assert await rig.outbox.dead_letters(Span()) == []
    assert Tried().number == 0


async def test_a_dead_hook_hides_nothing_that_waits_for_another(rig: Works) -> None:
    """Hundreds of its deliveries are overdue, and it has no room for any of them."""
    blip = False

    def answer(to: Hook, _: Delivery) -> Result:
        return BUSY if to.id == "dead" or blip else OK

    rig.sink.answer = answer
    await rig.start(hook("dead", retry_schedule=(60,) * 20), hook("live", retry_schedule=(60,)))
    await rig.publish(*range(300))
    await rig.timers.advance(3000)
    blip = True
    await rig.publish("late")
    await rig.timers.advance(20)
    blip = False
    assert '"late"' not in str(rig.sink.contents("live"))
    before = len(rig.sink.contents("live"))
    await rig.timers.advance(120)
    assert len(rig.sink.contents("live")) == before + 1


async def test_a_fault_of_ours_in_an_attempt_is_a_failed_attempt(rig: Works) -> None:
    faulty = True

    def answer(to: Hook, _: Delivery) -> Result:
        nonlocal faulty
        if faulty:
            faulty = False
            raise OverflowError("a bug")
        return OK

    rig.sink.answer = answer
    await rig.start(hook(ordered=True))
    with capture_logs() as logged:
        await rig.publish(1, 2)
        await rig.timers.advance(30)
    assert rig.sink.contents() == [1, 1, 2]
    assert [entry["event"] for entry in logged].count("attempt failed") == 1
    assert (await rig.left(), await rig.dead()) == (0, [])


async def test_what_lies_on_a_server_that_is_away_keeps_nothing_else_from_being_delivered(
    rig: Works,
) -> None:
    """A process has died, and its partition becomes free while a shard of the Cluster is away."""
    rig.outbox.partitions = 3
    rig.outbox.taken = {0}
    await rig.start(hook())
    assert set(rig.dispatcher._partitions) == {1, 2}
    await rig.publish(1)
    rig.outbox.silent = {1}
    rig.outbox.taken = set()
    await rig.timers.advance(2.5)
    assert rig.sink.contents() == [1]
    await rig.set_hooks(hook(), hook("new"))
    await rig.timers.advance(2.5)
    await rig.publish(2)
    assert rig.sink.contents("new") == [2]
    rig.outbox.silent = set()
    await rig.timers.advance(2.5)
    assert set(rig.dispatcher._partitions) == {0, 1, 2}
