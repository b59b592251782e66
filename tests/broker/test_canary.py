"""The canary: events that do not flow are told within five seconds, by hop, and healed."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Limits
from relay.broker.canary import (
    BROKER,
    EVERY_S,
    HEAL_EVERY_S,
    LATE_S,
    PUBLISH,
    SUBSCRIPTION,
    Canary,
)
from tests.broker.proxy import proxied
from tests.contract.harness import CID, Recorder, RedisRig, closing, event, until
from tests.redis_shapes import Cluster

pytestmark = pytest.mark.anyio


def test_a_canary_that_comes_back_is_well() -> None:
    canary = Canary(100.0)
    for second in range(100, 120):
        canary.taken(float(second))
        canary.heard(second + 0.1)
        assert canary.problem(second + EVERY_S) is None


def test_what_redis_does_not_take_is_the_publishing() -> None:
    canary = Canary(100.0)
    canary.failure = "it is on fire"
    assert canary.problem(100.0 + LATE_S) is None
    problem = canary.problem(100.1 + LATE_S)
    assert problem is not None
    assert problem[0] == PUBLISH
    assert "it is on fire" in problem[1]
    assert not canary.is_to_heal(200.0)


def test_what_does_not_come_back_is_the_subscription_and_is_healed_now_and_then() -> None:
    canary = Canary(100.0)
    for second in range(100, 103):
        canary.taken(float(second))
    assert canary.problem(100.0 + LATE_S - EVERY_S) is None
    problem = canary.problem(100.1 + LATE_S - EVERY_S)
    assert problem is not None
    assert problem[0] == SUBSCRIPTION
    for now, heals in ((106.0, True), (106.0 + HEAL_EVERY_S / 2, False), (116.0, True)):
        canary.taken(now)
        assert canary.is_to_heal(now) is heals


def test_one_that_is_missing_since_redis_fell_silent_does_not_blame_the_subscription() -> None:
    canary = Canary(100.0)
    canary.taken(101.0)
    problem = canary.problem(110.0)
    assert problem is not None
    assert problem[0] == PUBLISH


def test_a_connection_that_was_just_made_anew_has_time_to_prove_itself() -> None:
    canary = Canary(100.0)
    for second in range(101, 110):
        canary.taken(float(second))
    canary.reconnecting(109.0)
    problem = canary.problem(110.0)
    assert problem is not None
    assert problem[0] == SUBSCRIPTION
    assert not canary.is_to_heal(110.0)
    canary.taken(114.0)
    assert canary.is_to_heal(109.0 + HEAL_EVERY_S)


def test_a_server_that_answers_no_command_is_told() -> None:
    canary = Canary(100.0)
    canary.answered(101.0)
    canary.silence = "it is on fire"
    assert canary.silent(101.0 + LATE_S) is None
    assert "it is on fire" in str(canary.silent(101.1 + LATE_S))


def test_a_process_that_stood_still_does_not_blame_its_subscription() -> None:
    canary = Canary(100.0)
    canary.taken(200.0)  # what was sent before it stood still; it will be heard in a moment
    assert canary.problem(200.0) is None


def test_it_is_told_within_five_seconds() -> None:
    assert EVERY_S + LATE_S < 5.0


async def test_canaries_fly_and_nobody_else_sees_them(rig: RedisRig, recorder: Recorder) -> None:
    broker = await rig.broker(recorder=recorder)
    await broker.subscribe(CID)
    [canary] = await _canaries(broker)
    began = canary.heard_at
    await until(lambda: canary.heard_at > began, "one has come back")
    assert broker.health().problems == {BROKER: None, PUBLISH: None, SUBSCRIPTION: None}
    assert broker._subscriber.cids == [CID]
    assert recorder.publications == recorder.interruptions == []


async def _canaries(broker: object) -> list[Canary]:
    await until(lambda: broker._canaries._canaries, "there is one")  # type: ignore[attr-defined]
    return list(broker._canaries._canaries.values())  # type: ignore[attr-defined]


async def test_a_redis_that_says_nothing_is_told(own_rig: RedisRig) -> None:
    broker = await own_rig.broker(Limits(publish_timeout_s=2.0))
    [canary] = await _canaries(broker)
    own_rig.server.freeze()
    canary.heard_at -= LATE_S  # as if that long ago
    await until(lambda: broker.health().problems[PUBLISH], "it is told")
    assert broker.health().problems[SUBSCRIPTION] is None
    own_rig.server.thaw()
    await until(lambda: not any(broker.health().problems.values()), "it is well again")


async def test_a_subscription_that_leads_elsewhere_is_told_and_made_anew(
    own_rig: RedisRig, recorder: Recorder
) -> None:
    """As a connection to a primary that was replaced and still lives."""
    async with proxied(own_rig.server) as proxy:
        broker = await own_rig.broker(recorder=recorder, url=proxy.url)
        await broker.subscribe(CID)
        [canary] = await _canaries(broker)
        began = canary.heard_at
        await until(lambda: canary.heard_at > began, "one has come back")
        subscriber = broker._subscriber
        # The server forgets the subscriptions without a word; the connection stands.
        connection = subscriber._keeper.connection  # type: ignore[attr-defined]
        connection.on_reply = lambda reply: None
        await until(lambda: canary.missing_since, "Redis has taken one")
        canary.missing_since -= LATE_S  # type: ignore[operator]
        canary._healed_at -= HEAL_EVERY_S
        assert broker.health().problems[SUBSCRIPTION]
        await until(lambda: recorder.interruptions == [{CID}], "it is made anew")
        assert connection.is_closed
        await until(lambda: not any(broker.health().problems.values()), "it is well again")
        await broker.publish(event(1))
        await until(lambda: recorder.contents() == [1], "events flow")


async def test_one_canary_for_each_server_of_a_cluster(redis_cluster: object) -> None:
    async with closing(RedisRig(redis_cluster)) as rig:  # type: ignore[arg-type]
        broker = await rig.broker()
        canaries = await _canaries(broker)
        assert len(canaries) == 3
        began = [canary.heard_at for canary in canaries]
        await until(
            lambda: all(c.heard_at > b for c, b in zip(canaries, began, strict=True)), "all of them"
        )


async def test_a_server_that_is_away_keeps_no_other_s_subscription_from_being_made_anew() -> None:
    with Cluster("--cluster-require-full-coverage", "no") as cluster:
        async with closing(RedisRig(cluster)) as rig:
            broker = await rig.broker()
            canaries = broker._canaries._canaries
            await until(lambda: len(canaries) == 3, "one for each server")
            began = {cid: canary.heard_at for cid, canary in canaries.items()}
            await until(
                lambda: all(c.heard_at > began[cid] for cid, c in canaries.items()), "all of them"
            )
            gone, blind = list(canaries)[:2]
            cluster.owner(broker.keyspace.channel(gone)).kill()
            await until(lambda: not broker._subscriber.stands(gone), "one is away")
            canary = canaries[blind]
            connection = broker._subscriber._home(blind)._keeper.connection
            connection.on_reply = lambda reply: None
            await until(lambda: canary.missing_since, "Redis has taken one")
            canary.missing_since -= LATE_S
            canary._healed_at -= HEAL_EVERY_S
            await until(lambda: connection.is_closed, "it is made anew")
            before = canary.heard_at
            await until(lambda: canary.heard_at > before, "they come back")
            assert not broker._subscriber.stands(gone)


async def test_a_canary_that_could_not_be_subscribed_to_names_the_connection_it_would_fly_on(
    redis_cluster: Cluster,
) -> None:
    async with closing(RedisRig(redis_cluster)) as rig:
        subscriber = (await rig.broker())._subscriber
        await until(lambda: subscriber.stands(CID), "it would fly")
        connection = subscriber._home(CID)._keeper.connection
        subscriber.drop(CID, "a test")
        assert connection.is_closed
        assert not subscriber.stands(CID)


async def test_a_redis_that_evicts_is_warned_of(own_rig: RedisRig) -> None:
    with own_rig.server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    broker = await own_rig.broker()
    await until(lambda: broker.health().warnings, "it is warned of")
    assert "allkeys-lru" in broker.health().warnings[0]
    assert not any(broker.health().problems.values())


async def test_a_redis_that_keeps_everything_is_not(rig: RedisRig) -> None:
    broker = await rig.broker()
    await asyncio.sleep(0)
    assert await broker._memory_policy(0) == "noeviction"
    assert broker.health().warnings == ()
