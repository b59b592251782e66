"""What a Python backend sends through Redis, blocking and from asyncio, is what the doors read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import relay
from relay.backends import Bounds, backend_event
from relay.broker import clients
from relay.errors import BadInput, TooLarge, Unavailable
from relay.publisher import command
from tests.redis_server import RedisServer, running
from tests.redis_shapes import Cluster, Watched

pytestmark = pytest.mark.anyio

CID = "default:demo"
NOW_NS = 1_800_000_000_123_456_789


def built(**arguments: Any) -> tuple[str, ...]:
    return command(
        "relay:", arguments.pop("cid", CID), **{"event_id": "e1", "now_ns": NOW_NS, **arguments}
    )


def test_a_kept_event_is_one_xadd() -> None:
    *words, text = built(custom={"render-animation": "balloons"}, user_id="ann")
    assert words == ["XADD", "relay:ingest", "*", "event"]
    assert json.loads(text) == {
        "type": "custom",
        "call_cid": CID,
        "created_at": "2027-01-15T08:00:00.123456789Z",
        "event_id": "e1",
        "custom": {"render-animation": "balloons"},
        "user": {"id": "ann"},
    }


def test_a_volatile_event_is_one_publish() -> None:
    *words, text = built(custom={}, volatile=True)
    assert words == ["PUBLISH", "relay:live"]
    assert json.loads(text)["custom"] == {}


def test_other_types_bring_their_own_fields() -> None:
    text = built(type="call.updated", fields={"call": {"id": "demo"}, "created_at": NOW_NS})[-1]
    assert json.loads(text) == {
        "type": "call.updated",
        "call_cid": CID,
        "created_at": NOW_NS,
        "event_id": "e1",
        "call": {"id": "demo"},
    }


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def test_what_may_just_be_is_taken() -> None:
    assert built(custom=nested(63), fields={"a": nested(63), "user": {"id": "ann"}})


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"custom": {}, "cid": "demo"}, "cid"),
        ({"custom": None}, "custom"),
        ({"custom": [1]}, "custom"),
        ({"custom": {}, "user_id": "a b"}, "user_id"),
        ({"custom": {}, "event_id": "a b"}, "event_id"),
        ({"type": "Nonsense!"}, "type"),
        ({"type": "health.check"}, "frame of the socket"),
        ({"custom": {}, "fields": {"offset": 1}}, "offset"),
        ({"custom": {}, "fields": {"epoch": "x"}}, "epoch"),
        ({"custom": {}, "fields": {"call_cid": "x:y"}}, "call_cid"),
        ({"custom": {}, "fields": {"created_at": "yesterday"}}, "created_at"),
        ({"custom": {"a": object()}}, "JSON"),
        ({"custom": {}, "fields": {"a": object()}}, "JSON"),
        ({"custom": {}, "fields": {"user": {"id": "a b!"}}}, "user_id"),
        ({"custom": {}, "fields": {"user": "ann"}}, "user must be"),
        ({"custom": {}, "user_id": "ann", "fields": {"user": {"id": "bob"}}}, "user_id and user"),
        ({"custom": {}, "user_id": "ann", "fields": {"user": {"id": "ann"}}}, "user_id and user"),
        ({"custom": nested(64)}, "64 levels"),
        ({"custom": {}, "fields": {"a": nested(64)}}, "64 levels"),
        ({"custom": {}, "volatile": True, "fields": {"a": nested(64)}}, "64 levels"),
    ],
)
def test_what_a_relay_would_refuse_is_refused_here(arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(BadInput, match=names):
        built(**arguments)


def test_custom_is_bounded_as_in_the_relay() -> None:
    custom = {"x": "y" * 6000}
    with pytest.raises(TooLarge, match="5120"):
        built(custom=custom)
    assert built(custom=custom, custom_limit=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"custom": {}, "fields": {"a": "y" * 2**20}},
        {"custom": {"a": "y" * 2**20}, "custom_limit": 0},
        {"type": "call.updated", "fields": {"call": {"a": "y" * 2**20}}},
    ],
)
def test_the_whole_event_is_bounded_as_in_the_relay(arguments: dict[str, Any]) -> None:
    with pytest.raises(TooLarge, match="1048576"):
        built(**arguments)
    assert built(**arguments, event_limit=2**21)


ids = st.sampled_from(["ann", "bob", "a b!", "", "\ud800"]) | st.text(max_size=5) | st.integers()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
odd = st.one_of(
    st.fixed_dictionaries({"user": values | st.fixed_dictionaries({"id": ids})}),
    st.fixed_dictionaries({"user_id": ids}),
    st.fixed_dictionaries(
        {"created_at": values | st.just(NOW_NS) | st.just("2027-01-15T08:00:00Z")}
    ),
    st.fixed_dictionaries({"event_id": values}),
    st.fixed_dictionaries({"type": st.sampled_from(["custom", "call.updated", "error", "No!"])}),
    st.fixed_dictionaries({"custom": values}),
    st.fixed_dictionaries({"deep": st.integers(55, 70).map(nested)}),
    st.fixed_dictionaries({"long": st.integers(0, 400).map(lambda length: "y" * length)}),
    st.dictionaries(st.text(max_size=5), values, max_size=2),
)


@given(
    custom=st.dictionaries(st.text(max_size=5), values, max_size=2) | st.none(),
    type=st.sampled_from(["custom", "call.updated"]),
    user_id=st.none() | ids,
    volatile=st.booleans(),
    fields=st.just({}) | odd | st.tuples(odd, odd).map(lambda both: {**both[0], **both[1]}),
)
def test_what_the_publisher_sends_is_what_the_doors_take(volatile: bool, **arguments: Any) -> None:
    bounds = Bounds(custom=100, event=400)
    try:
        *_, text = built(volatile=volatile, custom_limit=100, event_limit=400, **arguments)
    except (BadInput, TooLarge):
        return
    later = NOW_NS + 10**9
    event = backend_event(
        text.encode(), later, bounds, event_id="entry", sender="ingest", volatile=volatile
    )
    assert event.cid == CID
    if (user_id := arguments["user_id"]) is not None:
        assert json.loads(event.body)["user"]["id"] == user_id


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


def entries(server: RedisServer, prefix: str) -> list[dict[str, Any]]:
    with server.client() as client:
        return [json.loads(fields["event"]) for _, fields in client.xrange(f"{prefix}ingest")]


def test_the_blocking_publisher_stores_events_in_order(server: RedisServer) -> None:
    with relay.Publisher(server.url, prefix="sync:") as publisher:
        first = publisher.publish(CID, custom={"n": 1})
        second = publisher.publish(CID, custom={"n": 2}, event_id="mine", scope="all")
    stored = entries(server, "sync:")
    assert [event["event_id"] for event in stored] == [first, second]
    assert second == "mine"
    assert len(first) >= 12
    assert stored[1]["scope"] == "all"


def test_the_blocking_publisher_reaches_who_listens_live(server: RedisServer) -> None:
    with server.client() as client, client.pubsub() as listening:
        listening.subscribe("sync:live")
        assert listening.get_message(timeout=5) is not None
        with relay.Publisher(server.url, prefix="sync:") as publisher:
            publisher.publish(CID, custom={"n": 3}, volatile=True)
        message = listening.get_message(timeout=5)
    assert message is not None
    assert json.loads(message["data"])["custom"] == {"n": 3}


async def test_the_asynchronous_publisher_does_the_same(server: RedisServer) -> None:
    async with relay.AsyncPublisher(server.url, prefix="async:") as publisher:
        first = await publisher.publish(CID, custom={"n": 1}, user_id="ann")
        second = await publisher.publish(CID, custom={"n": 2}, event_id="mine", scope="all")
        await publisher.publish(CID, custom={"n": 3}, volatile=True)
    stored = entries(server, "async:")
    assert [event["event_id"] for event in stored] == [first, second]
    assert stored[0]["user"] == {"id": "ann"}
    assert stored[1]["scope"] == "all"


def test_every_event_gets_an_id_of_its_own(server: RedisServer) -> None:
    with relay.Publisher(server.url, prefix="ids:") as publisher:
        assert len({publisher.publish(CID, custom={}) for _ in range(20)}) == 20


@pytest.mark.parametrize("field", ["offset", "epoch", "call_cid"])
def test_fields_of_the_relay_are_refused_before_anything_is_sent(
    server: RedisServer, field: str
) -> None:
    with (
        relay.Publisher(server.url, prefix="refused:") as publisher,
        pytest.raises(BadInput, match=field),
    ):
        publisher.publish(CID, custom={}, **{field: "x"})
    assert entries(server, "refused:") == []


@pytest.mark.parametrize("made", [running, Watched, Cluster])
async def test_a_redis_that_is_away_is_told_in_one_way_in_any_shape(
    made: Callable[[], AbstractContextManager[Any]],
) -> None:
    with made() as server:
        blocking, asynchronous = relay.Publisher(server.url), relay.AsyncPublisher(server.url)
        blocking.publish(CID, custom={})
        await asynchronous.publish(CID, custom={})
    async with asynchronous:
        for volatile in (False, True):
            with pytest.raises(Unavailable, match="Redis: ") as caught:
                blocking.publish(CID, custom={}, volatile=volatile)
            assert caught.value.__cause__ is not None
            with pytest.raises(Unavailable, match="Redis: "):
                await asynchronous.publish(CID, custom={}, volatile=volatile)
    blocking.close()


async def test_a_cluster_that_is_away_from_the_start_is_told_in_that_way_too() -> None:
    with Cluster() as gone:
        pass
    with pytest.raises(Unavailable, match="Redis: "):
        relay.Publisher(gone.url)
    async with relay.AsyncPublisher(gone.url) as publisher:
        with pytest.raises(Unavailable, match="Redis: "):
            await publisher.publish(CID, custom={})


def test_a_redis_that_does_not_take_it_is_told_in_that_way_too(server: RedisServer) -> None:
    with server.client() as client, relay.Publisher(server.url, prefix="other:") as publisher:
        client.set("other:ingest", "no stream")
        with pytest.raises(Unavailable, match="WRONGTYPE"):
            publisher.publish(CID, custom={})


@pytest.mark.parametrize("shape", ["redis_sentinel", "redis_cluster"])
async def test_a_publisher_finds_redis_in_any_shape(
    shape: str, request: pytest.FixtureRequest
) -> None:
    server: Watched | Cluster = request.getfixturevalue(shape)
    with relay.Publisher(server.url, prefix="p:") as publisher:
        publisher.publish(CID, custom={})
        publisher.publish(CID, custom={}, volatile=True)
    async with relay.AsyncPublisher(server.url, prefix="p:") as publisher:
        await publisher.publish(CID, custom={})
        await publisher.publish(CID, custom={}, volatile=True)
    client = clients.blocking(server.url)
    assert client.xlen("p:ingest") == 2
    clients.close(client)


async def test_a_publisher_leaves_a_primary_that_was_replaced_and_lives() -> None:
    """Or what it publishes is taken, and forgotten when that primary is made a replica."""
    with Watched() as server:
        old, new = server.primary, server.replica
        with relay.Publisher(server.url, prefix="a:") as blocking:
            async with relay.AsyncPublisher(server.url, prefix="b:") as publisher:
                blocking.publish(CID, custom={})
                await publisher.publish(CID, custom={})
                publish = partial(blocking.publish, CID, custom={})
                await anyio.to_thread.run_sync(server.failover)
                with new.client() as there:
                    async with asyncio.timeout(5):
                        while not there.xrange("a:ingest", min="(" + last(old, "a:ingest")):
                            await anyio.to_thread.run_sync(publish)
                        while not there.xrange("b:ingest", min="(" + last(old, "b:ingest")):
                            await publisher.publish(CID, custom={})
        with old.client() as client:
            assert client.info("replication")["role"] == "master", "nobody has told it yet"


async def test_a_sentinel_that_says_nothing_is_asked_once_and_for_a_moment() -> None:
    with Watched() as server:
        blocking, asynchronous = clients.blocking(server.url), clients.asynchronous(server.url)
        assert blocking.ping()
        assert await asynchronous.ping()
        server.sentinels[0].freeze()
        began = time.monotonic()
        await anyio.to_thread.run_sync(clients.follow, blocking)
        await clients.afollow(asynchronous)
        # A second each; with the repeats that redis-py makes by itself it is fifteen.
        assert clients.LOOK_S < time.monotonic() - began < 2 * clients.LOOK_S + 3
        assert blocking.ping()
        assert await asynchronous.ping()
        clients.close(blocking)
        await clients.aclose(asynchronous)


def last(server: RedisServer, stream: str) -> str:
    """Return the id of a stream's last entry on one server."""
    with server.client() as client:
        [(entry, _)] = client.xrevrange(stream, count=1)
    return str(entry)
