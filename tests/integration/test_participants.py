"""Participants over two processes: who leaves is announced by whoever is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import uuid4

import anyio
import pytest

from relay import calls
from relay.announcer import Announcer
from relay.broker import Limits
from relay.broker.redis import RedisBroker, RedisSessions, RedisStore
from relay.calls import Call
from relay.participants import Participants
from relay.users import Profile
from tests.contract.harness import Recorder
from tests.processes import RelayProcess, relay_pair
from tests.redis_server import RedisServer
from tests.relay_client import Client, Frame, connected

pytestmark = pytest.mark.anyio

JOINED, LEFT = "call.session_participant_joined", "call.session_participant_left"


async def join(redis: RedisServer, prefix: str, cid: str, *user_ids: str) -> None:
    """Let users join a call through a process that comes and goes."""
    broker = RedisBroker(redis.url, prefix, Limits(), uuid4().hex)
    await broker.start(Recorder(), lambda _: None)
    store = RedisStore(broker)
    participants = Participants(
        sessions=RedisSessions(broker),
        broker=broker,
        store=store,
        announcer=Announcer(broker, clock=time.time_ns, new_id=lambda: uuid4().hex),
        occupancy=Nobody(),
        describe=describe,
        clock=time.time_ns,
        new_id=lambda: uuid4().hex,
        rng=Random(7),
    )
    for user_id in user_ids:
        user = await store.save_user(user_id, Profile(), time.time_ns())
        await participants.join(cid, user, "user")
    await broker.aclose()


class Nobody:
    """The sockets of a process that has none."""

    async def occupied(self, _: object) -> set[Any]:
        return set()


async def describe(cid: str) -> dict[str, Any]:
    now_ns = time.time_ns()
    call = Call(cid=cid, created_by="ann", created_at=now_ns, updated_at=now_ns)
    return calls.response(call, {})


def about(kind: str, user_id: str) -> Callable[[Frame], bool]:
    return lambda f: f["type"] == kind and f["participant"]["user"]["id"] == user_id


def participants_left(client: Client) -> list[str]:
    return [f["participant"]["user"]["id"] for f in client.frames if f["type"] == LEFT]


@pytest.mark.parametrize("dies_first", [False, True], ids=["another dies", "who leads dies"])
async def test_who_was_on_a_killed_process_leaves_once(
    redis_server: RedisServer, *, dies_first: bool
) -> None:
    cid, prefix = "default:seats", f"seats-{dies_first}:"
    with relay_pair(redis_server.url, redis_prefix=prefix) as pair:
        dies, stays = pair if dies_first else pair[::-1]  # the first one to start leads
        async with connected(stays, "anna") as anna, connected(dies, "joe") as joe:
            await anna.watch(cid)
            await joe.watch(cid)
            async with connected(dies, "john") as john:
                await john.watch(cid)
                await join(redis_server, prefix, cid, "anna", "joe", "john")
                await anna.until(about(JOINED, "john"))
                await anyio.to_thread.run_sync(dies.kill)
                await john.until_closed()
            await anna.until(about(LEFT, "john"), limit_s=30)
            await anna.until(about(LEFT, "joe"))
            assert sorted(participants_left(anna)) == ["joe", "john"]
            assert [f for f in anna.frames if f["type"] == "call.session_ended"] == []


async def test_a_participant_moves_to_the_other_process_without_leaving(
    redis_server: RedisServer,
) -> None:
    cid, prefix = "default:moves", "moves:"
    with relay_pair(redis_server.url, redis_prefix=prefix) as (here, there):
        async with connected(here, "anna") as anna:
            await anna.watch(cid)
            async with connected(here, "john") as john, connected(here, "joe") as joe:
                await john.watch(cid)
                await joe.watch(cid)
                await join(redis_server, prefix, cid, "anna", "john", "joe")
            async with connected(there, "john") as john:
                await john.watch(cid)
                await anna.until(about(LEFT, "joe"), limit_s=15)
                left_at = len(anna.frames)
                assert participants_left(anna) == ["joe"]
            # The process he moved to noticed that he was there, so it says that he has gone.
            await anna.until(about(LEFT, "john"), limit_s=15, after=left_at)


async def test_a_relay_that_stops_leaves_the_seats_to_the_next(redis_server: RedisServer) -> None:
    cid, prefix = "default:next", "next:"
    with RelayProcess(redis_url=redis_server.url, redis_prefix=prefix) as first:
        async with connected(first, "john") as john:
            await john.watch(cid)
            await join(redis_server, prefix, cid, "john", "anna")
            await anyio.to_thread.run_sync(first.stop)
            await john.until_closed()
    with RelayProcess(redis_url=redis_server.url, redis_prefix=prefix) as second:
        async with connected(second, "anna") as anna:
            await anna.watch(cid)
            await anna.until(about(LEFT, "john"), limit_s=20)
            assert participants_left(anna) == ["john"]
