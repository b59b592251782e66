"""Any script of publishes, subscriptions and reads has the same outcome in memory and on Redis."""

from __future__ import annotations

import asyncio
import re
from itertools import count
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.broker import Limits, Outbox, Owed, Roster
from relay.events import Event, Position
from relay.hooks import Hook, Hooks, HookType
from tests.contract.harness import MemoryRig, Recorder, RedisRig, caught_up, closing, event
from tests.redis_server import RedisServer

CIDS = ("default:a", "default:b", "livestream:c")
LIMITS = Limits(history_count=4)
NOW = 1_900_000_000_000

cids = st.sampled_from(CIDS)
publishes = st.fixed_dictionaries(
    {
        "cid": cids,
        "sender": st.sampled_from(("api:ann", "api:bob")),
        "identity": st.sampled_from(("1", "2", "3", "4", "5", "", None)),
        "content": st.sampled_from(("x", "y")),
        "alias": st.sampled_from((None, None, "w1", "w2")),
        "volatile": st.sampled_from((False, False, True)),
    }
)
steps = st.one_of(
    st.tuples(st.just("publish"), publishes),
    st.tuples(st.just("publish"), publishes),
    st.tuples(st.just("publish at once"), st.lists(publishes, min_size=2, max_size=6)),
    st.tuples(st.just("subscribe"), cids),
    st.tuples(st.just("unsubscribe"), cids),
    st.tuples(st.just("positions"), st.lists(cids, max_size=3)),
    st.tuples(st.just("history"), st.tuples(cids, st.integers(0, 8))),
    st.tuples(st.just("roster"), st.tuples(cids, st.integers(0, 2))),
    st.tuples(
        st.just("hooks"), st.sampled_from(((), ("*",), ("custom",), ("other",), ("other", "*")))
    ),
)


async def play(
    rig: MemoryRig | RedisRig, recorder: Recorder, script: list[tuple[str, Any]]
) -> list[Any]:
    """Return everything that can be seen from outside while the script runs."""
    broker = await rig.broker(LIMITS, recorder)
    store, outbox = rig.store(broker), await rig.outbox(broker, lambda _: None)
    outcomes: list[Any] = []
    numbers = count()
    for action, arguments in script:
        match action:
            case "publish":
                outcomes.append(await broker.publish(_event(arguments, next(numbers))))
            case "publish at once":
                events = [_event(each, next(numbers)) for each in arguments]
                outcomes.extend(await asyncio.gather(*map(broker.publish, events)))
            case "subscribe":
                await broker.subscribe(arguments)
            case "unsubscribe":
                await caught_up(broker, recorder)
                await broker.unsubscribe(arguments)
            case "positions":
                outcomes.append(await broker.positions(arguments))
            case "history":
                outcomes.append(await broker.history(*arguments))
            case "roster":
                await broker.set_roster(arguments[0], Roster(arguments[1]))
                outcomes.append(list((await broker.rosters(arguments[0])).values()))
            case "hooks":
                await store.save_hooks(_hooks(arguments), await store.hooks(), NOW)
    await caught_up(broker, recorder)
    outcomes.append([p for p in recorder.publications if p[0] in CIDS])
    outcomes.append(await owed(outbox))
    return outcomes


def _hooks(types: tuple[str, ...]) -> Hooks:
    return Hooks(
        tuple(
            Hook(
                id=each,
                hook_type=HookType.WEBHOOK,
                webhook_url="https://a.test/",
                event_types=() if each == "*" else (each,),
            )
            for each in types
        )
    )


async def owed(outbox: Outbox) -> list[Any]:
    """Return what is owed, call by call: only the order within a call is promised."""
    found: list[Owed] = []
    for partition in range(outbox.partitions):
        lease = await outbox.lease(partition)
        assert lease is not None
        if lease.length:
            found += await outbox.read(lease, 0, 1000)
    return [
        (each.version, each.type, each.event_id, each.position, each.body)
        for each in sorted(found, key=lambda each: each.cid)
        if each.cid in CIDS
    ]


def _event(arguments: dict[str, Any], number: int) -> Event:
    identity = arguments["identity"]
    return event(**{**arguments, "identity": f"only-{number}" if identity == "" else identity})


def comparable(outcomes: list[Any]) -> str:
    """Return the outcomes with the random names of epochs replaced by the order they came in."""
    text = repr(outcomes)
    for number, name in enumerate(dict.fromkeys(re.findall("epoch='([^']+)'", text))):
        text = text.replace(name, f"epoch-{number}")
    return text


@settings(
    max_examples=150,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(script=st.lists(steps, max_size=25))
def test_memory_and_redis_do_the_same(
    redis_server: RedisServer, script: list[tuple[str, Any]]
) -> None:
    async def outcome(rig: MemoryRig | RedisRig) -> str:
        async with closing(rig):
            return comparable(await play(rig, Recorder(), script))

    in_memory = asyncio.run(outcome(MemoryRig()))
    assert asyncio.run(outcome(RedisRig(redis_server))) == in_memory


def test_outcomes_compare_whatever_their_epochs_are_called() -> None:
    first, second = Position("abc", 1), Position("def", 1)
    assert comparable([first, second]) == comparable([second, first])
    assert comparable([first, first]) != comparable([first, second])
