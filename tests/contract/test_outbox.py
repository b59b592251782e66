"""The outbox: what is owed to whom, how far it has come, and what becomes of what was given up."""

from __future__ import annotations

from typing import Any

import pytest

from relay.broker import (
    Attempt,
    Broker,
    Changes,
    DeadLetter,
    HookList,
    Key,
    Lease,
    LeaseLost,
    Limits,
    Mark,
    Outbox,
    Owed,
    Progress,
    Reason,
    Replayed,
    Span,
    Store,
    Tried,
    Waiting,
    delivery_id,
)
from relay.events import Position
from relay.hooks import Hook, Hooks, HookType
from tests.contract.harness import CID, OTHER, RedisRig, Rig, content, event, until

pytestmark = pytest.mark.anyio

NOW = 1_900_000_000_000


def hook(name: str, *types: str, **fields: Any) -> Hook:
    return Hook(
        id=name,
        hook_type=HookType.WEBHOOK,
        webhook_url=f"https://{name}.test/",
        event_types=types,
        **fields,
    )


async def set_hooks(store: Store, *hooks: Hook) -> HookList:
    saved = await store.save_hooks(Hooks(hooks), await store.hooks(), NOW)
    assert saved is not None
    return saved


class Bench:
    """A broker with its store and outbox, and the partitions that were woken."""

    def __init__(self, rig: Rig, broker: Broker) -> None:
        self.rig = rig
        self.broker = broker
        self.store = rig.store(broker)
        self.woken: list[int] = []
        self.outbox: Outbox

    async def open(self) -> Bench:
        self.outbox = await self.rig.outbox(self.broker, self.woken.append)
        return self

    def partition(self, cid: str = CID) -> int:
        return self.broker.keyspace.partition(cid) if isinstance(self.rig, RedisRig) else 0  # type: ignore[attr-defined]

    async def lease(self, cid: str = CID, token: str = "") -> Lease:
        lease = await self.outbox.lease(self.partition(cid), token)
        assert lease is not None
        return lease

    async def owed(self, cid: str = CID, after: int = 0) -> list[Owed]:
        return await self.outbox.read(await self.lease(cid), after, 100)


@pytest.fixture
async def bench(rig: Rig, broker: Broker) -> Bench:
    return await Bench(rig, broker).open()


# -- hooks ------------------------------------------------------------------------------------


async def test_without_hooks_there_is_an_empty_list(bench: Bench) -> None:
    assert await bench.store.hooks() == HookList()


async def test_hooks_are_saved_and_read_back(bench: Bench) -> None:
    one = hook("one", "custom", sqs_secret="hidden", retry_schedule=(60, 600))
    saved = await set_hooks(bench.store, one)
    assert await bench.store.hooks() == saved
    assert saved.hooks.hooks == (one,)
    assert saved.version >= NOW


async def test_of_two_who_change_the_hooks_at_once_one_does(bench: Bench) -> None:
    before = await set_hooks(bench.store, hook("one"))
    assert await bench.store.save_hooks(Hooks((hook("two"),)), before, NOW) is not None
    assert await bench.store.save_hooks(Hooks((hook("three"),)), before, NOW) is None
    assert [h.id for h in (await bench.store.hooks()).hooks.hooks] == ["two"]


async def test_versions_grow_though_the_clock_goes_back(bench: Bench) -> None:
    first = await set_hooks(bench.store, hook("one"))
    second = await bench.store.save_hooks(Hooks(), first, NOW - 60_000)
    assert second is not None
    assert second.version > first.version


async def test_a_hook_is_owed_what_was_accepted_while_it_was_there_and_enabled(
    bench: Bench,
) -> None:
    await set_hooks(bench.store, hook("old"), hook("off", enabled=False))
    await bench.broker.publish(event("before"))
    hooks = await set_hooks(bench.store, hook("old"), hook("new"), hook("off"))
    await bench.broker.publish(event("after"))
    before, after = await bench.owed()
    owed = {
        each.id: [hooks.owed(each, before), hooks.owed(each, after)] for each in hooks.hooks.hooks
    }
    assert owed == {"old": [True, True], "new": [False, True], "off": [False, True]}
    hooks = await set_hooks(bench.store, hook("old", "call.ended"))
    assert not hooks.owed(hooks.hooks.hooks[0], after)
    assert not hooks.owed(hook("stranger"), after)


def test_what_is_wanted_is_every_type_when_a_hook_or_too_many_types_say_so() -> None:
    def wanted(*hooks: Hook) -> str:
        return HookList().changed(Hooks(hooks), NOW).wanted()

    assert wanted() == ""
    assert wanted(hook("off", enabled=False)) == ""
    assert wanted(hook("a", "x.y", "b"), hook("b", "b")) == ",b,x.y,"
    assert wanted(hook("a", "x.y"), hook("b")) == "*"
    assert wanted(hook("a", *(f"t{n}" for n in range(201)))) == "*"


# -- what is owed -----------------------------------------------------------------------------


async def test_a_publication_is_owed_with_its_position_and_the_watchers_bytes(
    bench: Bench,
) -> None:
    hooks = await set_hooks(bench.store, hook("one"))
    published = await bench.broker.publish(event({"a": []}, identity='odd"id'))
    history = await bench.broker.history(CID, 0)
    [owed] = await bench.owed()
    assert owed == Owed(
        1, hooks.version, CID, "custom", 'odd"id', published.position, history.entries[0].body
    )


async def test_nothing_is_owed_without_a_hook_that_wants_it(bench: Bench) -> None:
    await bench.broker.publish(event(1))
    await set_hooks(bench.store, hook("other", "call.custom", "custom.more"))
    await bench.broker.publish(event(2))
    await set_hooks(bench.store, hook("custom", "custom"))
    await bench.broker.publish(event(3))
    await set_hooks(bench.store, hook("off", enabled=False))
    await bench.broker.publish(event(4))
    await set_hooks(bench.store)
    await bench.broker.publish(event(5))
    assert [content(owed.body) for owed in await bench.owed()] == [3]


async def test_volatile_events_and_repeats_are_not_owed(bench: Bench) -> None:
    await set_hooks(bench.store, hook("one"))
    await bench.broker.publish(event(1, volatile=True))
    await bench.broker.publish(event(1, volatile=True, identity=None))
    await bench.broker.publish(event(2, identity="same"))
    await bench.broker.publish(event(2, identity="same"))
    assert [content(owed.body) for owed in await bench.owed()] == [2]


async def test_entries_are_read_in_order_and_in_pages(bench: Bench) -> None:
    await set_hooks(bench.store, hook("one"))
    for n in range(1, 41):
        await bench.broker.publish(event(n))
    lease = await bench.lease()
    assert (lease.top, lease.length) == (40, 40)
    first = await bench.outbox.read(lease, 0, 25)
    second = await bench.outbox.read(lease, 25, 25)
    assert [owed.seq for owed in first + second] == list(range(1, 41))
    assert [content(owed.body) for owed in first + second] == list(range(1, 41))


async def test_the_leaseholder_is_woken_by_publications_and_changes_of_hooks(
    bench: Bench,
) -> None:
    lease = await bench.lease()
    await set_hooks(bench.store, hook("one"))
    await until(lambda: bench.woken, "the change wakes")
    assert (await bench.lease(token=lease.token)).hooks_version >= NOW
    bench.woken.clear()
    await bench.broker.publish(event(1))
    await until(lambda: bench.woken, "the publication wakes")
    assert set(bench.woken) == {bench.partition()}


async def test_calls_of_other_partitions_are_apart(rig: Rig, bench: Bench) -> None:
    await set_hooks(bench.store, hook("one"))
    await bench.broker.publish(event(1))
    await bench.broker.publish(event(2, cid=OTHER))
    here = {owed.cid for owed in await bench.owed()}
    assert here == ({CID} if isinstance(rig, RedisRig) else {CID, OTHER})


async def test_above_its_bound_the_oldest_become_dead_letters_without_body(rig: Rig) -> None:
    bench = await Bench(rig, await rig.broker(Limits(outbox_bytes=20_000))).open()
    await set_hooks(bench.store, hook("one"))
    for n in range(60):
        await bench.broker.publish(event("x" * 1000, identity=f'"{n}\\'))
    owed = await bench.owed()
    assert 12 <= len(owed) <= 20
    letters = await bench.outbox.dead_letters(Span())
    assert (await bench.lease()).shed == len(letters)
    letters.sort(key=lambda letter: letter.offset)
    assert [each.event_id for each in letters] == [f'"{n}\\' for n in range(len(letters))]
    assert len(letters) + len(owed) == 60
    assert {letter.reason for letter in letters} == {Reason.OUTBOX_BOUND}
    letter = await bench.outbox.dead_letter(letters[0].id)
    assert letter is not None
    assert (letter.body, letter.hook_id, letter.cid, letter.offset) == (None, "", CID, 1)
    assert await bench.outbox.replay([letter.id], ["one"]) == Replayed(0, 1)


# -- leases -----------------------------------------------------------------------------------


async def test_a_lease_is_renewed_under_its_token(bench: Bench) -> None:
    lease = await bench.lease()
    assert (await bench.lease(token=lease.token)).token == lease.token
    assert (await bench.lease(token="another")).token != lease.token


async def test_a_lease_given_back_records_nothing_any_more(bench: Bench) -> None:
    lease = await bench.lease()
    await bench.outbox.give_back(lease)
    with pytest.raises(LeaseLost):
        await bench.outbox.record(lease, Changes(settled={"one": 1}))
    after = await bench.lease()
    assert after.token != lease.token
    assert (await bench.outbox.progress(after)).settled == {}


# -- progress ---------------------------------------------------------------------------------

TRIED = Tried(
    first_ms=NOW,
    under_way=True,
    lost=1,
    before=2,
    attempts=(Attempt(NOW, "retryable", 503, 12, "busy"), Attempt(NOW, "network", None, 3, "é")),
)


async def test_what_was_recorded_is_found_by_the_next_leaseholder(bench: Bench) -> None:
    lease = await bench.lease()
    odd = "hook|with:signs"
    changes = Changes(
        tried={Key(7, "one"): TRIED, Key(8, odd): None, Key(9, odd): Tried()},
        settled={"one": 6, odd: 3},
    )
    await bench.outbox.record(lease, changes)
    await bench.outbox.record(lease, Changes(tried={Key(9, odd): TRIED}))
    progress = await bench.outbox.progress(await bench.lease())
    assert progress == Progress(
        {"one": 6, odd: 3}, {Key(8, odd)}, {Key(7, "one"): TRIED, Key(9, odd): TRIED}
    )
    assert TRIED.number == 6
    after = await bench.lease()
    await bench.outbox.record(after, Changes(forget=set(changes.tried), gone={odd}))
    assert await bench.outbox.progress(after) == Progress({"one": 6}, set(), {})


async def test_entries_done_for_every_hook_are_removed(bench: Bench) -> None:
    await set_hooks(bench.store, hook("one"))
    for n in range(1, 6):
        await bench.broker.publish(event(n))
    lease = await bench.lease()
    await bench.outbox.record(lease, Changes(trim=3))
    assert [owed.seq for owed in await bench.owed()] == [4, 5]
    assert [owed.seq for owed in await bench.owed(after=4)] == [5]
    await bench.broker.publish(event(6))
    assert [owed.seq for owed in await bench.owed(after=4)] == [5, 6]
    await bench.outbox.record(await bench.lease(), Changes(trim=6))
    assert await bench.owed() == []


def test_changes_that_say_nothing_are_false() -> None:
    assert not Changes()
    assert Changes(trim=1)
    assert Changes(gone={"one"})


# -- waiting ----------------------------------------------------------------------------------


def waiting(name: str, due_ms: int, body: str = '{"a":"é"}') -> Waiting:
    return Waiting(
        id=name,
        due_ms=due_ms,
        hook_id="hook|with:signs",
        cid=CID,
        type="custom",
        event_id="e",
        epoch="k",
        offset=5,
        body=body,
        tried=TRIED,
    )


async def test_waiting_deliveries_come_when_they_are_due(bench: Bench) -> None:
    lease = await bench.lease()
    late, soon, last = waiting("late", NOW + 20), waiting("soon", NOW + 10), waiting("x", NOW + 30)
    await bench.outbox.record(
        lease, Changes(waiting={each.id: each for each in (late, soon, last)})
    )
    assert await bench.outbox.due(lease, NOW, 10) == ([], NOW + 10)
    assert await bench.outbox.due(lease, NOW + 25, 10) == ([soon.mark, late.mark], NOW + 30)
    assert (await bench.outbox.due(lease, NOW + 25, 1)).marks == [soon.mark]
    assert await bench.outbox.due(lease, NOW + 25, 10, 1) == ([late.mark], NOW + 30)
    assert await bench.outbox.waiting(lease, ["late", "unknown", "x"]) == [late, last]
    moved = waiting("soon", NOW + 60)
    await bench.outbox.record(lease, Changes(waiting={"soon": moved}, ended={late.mark, last.mark}))
    assert await bench.outbox.due(lease, NOW + 50, 10) == ([], NOW + 60)
    assert await bench.outbox.due(lease, NOW + 60, 10) == ([moved.mark], None)
    assert await bench.outbox.waiting(lease, ["soon", "late", "x"]) == [moved]


async def test_what_waits_takes_room_until_it_is_over(rig: Rig) -> None:
    bench = await Bench(rig, await rig.broker(Limits(dead_letter_bytes=10_000))).open()
    lease = await bench.lease()

    async def room(**changes: Any) -> int:
        if changes:
            await bench.outbox.record(lease, Changes(**changes))
        return (await bench.lease(token=lease.token)).waiting_room

    assert lease.waiting_room == 10_000
    one, two = waiting("one", NOW, body="x" * 3000), waiting("two", NOW, body="x" * 500)
    left = await room(waiting={"one": one})
    assert 6000 < left < 7000
    assert await room(waiting={"one": one}) == left, "recorded again it counts once"
    assert 5000 < await room(waiting={"two": two}) < left - 500
    assert await room(ended={two.mark, Mark("unknown", "one")}) == left
    assert await room(ended={one.mark}) == 10_000
    assert await room(dead={"a": letter("a", body="x" * 1000)}) == 10_000
    assert (await bench.outbox.replay(["a"], ["one"])).replayed == 1
    assert 8000 < await room() < 9000
    assert await room(ended={Mark("a", "one")}) == 10_000


# -- dead letters -----------------------------------------------------------------------------


def letter(
    name: str, at_ms: int = NOW, hook_id: str = "one", body: str | None = '{"é":1}'
) -> DeadLetter:
    return DeadLetter(
        id=name,
        at_ms=at_ms,
        reason=Reason.EXHAUSTED,
        hook_id=hook_id,
        cid=CID,
        type="custom",
        event_id="e1",
        epoch="k",
        offset=5,
        tried=TRIED,
        body=body,
    )


async def bury(bench: Bench, *letters: DeadLetter, cid: str = CID) -> None:
    lease = await bench.lease(cid)
    await bench.outbox.record(lease, Changes(dead={each.id: each for each in letters}))


async def test_dead_letters_are_listed_by_time_hook_and_partition(bench: Bench) -> None:
    await bury(bench, letter("a", NOW + 1), letter("c", NOW + 3, hook_id="two"))
    await bury(bench, letter("b", NOW + 2), letter("d", NOW + 4), cid=OTHER)

    async def ids(limit: int = 100, **span: Any) -> str:
        return "".join(each.id for each in await bench.outbox.dead_letters(Span(**span), limit))

    assert await ids() == "abcd"
    assert await ids(2) == "ab"
    assert await ids(1, hook_id="two") == "c"
    assert await ids(hook_id="one") == "abd"
    assert await ids(since_ms=NOW + 2, until_ms=NOW + 4) == "bc"
    assert await ids(since_ms=NOW + 5) == ""


async def test_a_dead_letter_is_listed_without_its_body_and_shown_with_it(bench: Bench) -> None:
    await bury(bench, letter("a"))
    assert [each.body for each in await bench.outbox.dead_letters(Span())] == [None]
    assert await bench.outbox.dead_letter("a") == letter("a")
    assert await bench.outbox.dead_letter("b") is None


async def test_the_same_dead_letter_recorded_again_is_one(bench: Bench) -> None:
    await bury(bench, letter("a"))
    await bury(bench, letter("a", NOW + 1))
    assert [each.at_ms for each in await bench.outbox.dead_letters(Span())] == [NOW + 1]


async def test_a_replayed_dead_letter_waits_and_is_due_at_once(bench: Bench) -> None:
    lease = await bench.lease()
    await bury(bench, letter("a"), letter("b"))
    lease = await bench.lease()
    bench.woken.clear()
    assert await bench.outbox.replay(["a", "unknown"], ["one"]) == Replayed(1, 0)
    await until(lambda: bench.woken, "it wakes")
    assert (await bench.outbox.due(lease, NOW, 10)).marks == [Mark("a", "one")]
    [due] = await bench.outbox.waiting(lease, ["a"])
    assert (due.id, due.body, due.hook_id, due.event_id) == ("a", '{"é":1}', "one", "e1")
    assert due.tried == Tried(before=TRIED.number)
    assert [each.id for each in await bench.outbox.dead_letters(Span())] == ["b"]
    assert await bench.outbox.replay(["a"], ["one"]) == Replayed(0, 0)


async def test_a_dead_letter_that_nobody_would_get_stays(bench: Bench) -> None:
    await bench.lease()
    await bury(bench, letter("a"), letter("b", body=None))
    assert await bench.outbox.replay(["a", "b"], ["another"]) == Replayed(0, 1, 1)
    assert [each.id for each in await bench.outbox.dead_letters(Span())] == ["a", "b"]
    assert (await bench.outbox.due(await bench.lease(), NOW, 10)).marks == []


async def test_dead_letters_are_bounded_in_bytes_and_the_oldest_go(rig: Rig) -> None:
    bench = await Bench(rig, await rig.broker(Limits(dead_letter_bytes=10_000))).open()
    for n in range(30):
        await bury(bench, letter(f"{n:02}", NOW + n, body="x" * 1000))
    ids = [each.id for each in await bench.outbox.dead_letters(Span())]
    assert 6 <= len(ids) <= 9
    assert ids[-1] == "29"
    assert ids == [f"{n:02}" for n in range(30 - len(ids), 30)]
    for _ in range(20):  # what is recorded again counts once
        await bury(bench, letter("29", NOW + 29, body="x" * 1000))
    assert len(await bench.outbox.dead_letters(Span())) == len(ids)
    assert (await bench.outbox.replay(ids, ["one"])).replayed == len(ids)
    for n in range(30, 35):
        await bury(bench, letter(f"{n:02}", NOW + n, body="x" * 1000))
    assert len(await bench.outbox.dead_letters(Span())) == 5


def test_a_delivery_has_an_id_of_its_own_for_each_hook_and_position() -> None:
    ids = {
        delivery_id(hook_id, cid, position)
        for hook_id in ("a", "b")
        for cid in (CID, OTHER)
        for position in (Position("k", 1), Position("k", 2), Position("l", 1))
    }
    assert len(ids) == 12
    assert delivery_id("a", CID, Position("k", 1)) == delivery_id("a", CID, Position("k", 1))
    assert len(ids.pop()) == 36
