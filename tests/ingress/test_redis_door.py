from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay import wire
from relay.backends import Bounds, backend_event
from relay.broker import InboxEntry, Limits
from relay.doors import Door
from relay.errors import BadInput, TooLarge, Unavailable
from relay.events import Event, Publication
from relay.ingress import IngestDoor, LiveDoor
from tests.edges import NOW_NS, AwayBroker, Clock, counted, refused

pytestmark = pytest.mark.anyio


BOUNDS = Bounds(custom=5120, event=10_000)


def event(text: bytes | dict[str, Any], bounds: Bounds = BOUNDS, **more: Any) -> Event:
    given: dict[str, Any] = {"event_id": "minted", "sender": "ingest"}
    raw = text if isinstance(text, bytes) else wire.encode(text)
    return backend_event(raw, NOW_NS, bounds, **given | more)


def shown(text: bytes | dict[str, Any]) -> dict[str, Any]:
    return wire.decode_object(event(text).body)


# -- what a backend writes ----------------------------------------------------------------------


def test_a_call_and_a_custom_are_enough() -> None:
    found = event({"call_cid": "default:demo", "custom": {"n": 1}})
    body = wire.decode_object(found.body)
    assert (found.cid, found.type, found.sender) == ("default:demo", "custom", "ingest")
    assert (found.event_id, found.identity, found.volatile) == ("minted", "minted", False)
    assert (body["type"], body["custom"]) == ("custom", {"n": 1})
    assert body["created_at"] == wire.rfc3339(NOW_NS)
    assert body["user"]["id"] == "backend"


@pytest.mark.parametrize("named", [{"user_id": "john"}, {"user": {"id": "john"}}])
def test_of_a_user_only_the_id_is_believed(named: dict[str, Any]) -> None:
    said = {"user": {"id": "john", "name": "Admin", "role": "admin", "custom": {"x": 1}}}
    for user in (named, said, named | said):
        body = shown({"call_cid": "a:b", "custom": {}} | user)
        assert body["user"]["id"] == "john"
        assert (body["user"]["name"], body["user"]["role"]) == ("", "user")
        assert body["user"]["custom"] == {}
        assert "user_id" not in body


def test_a_backend_cannot_set_a_position() -> None:
    body = shown({"call_cid": "a:b", "custom": {}, "epoch": "x", "offset": 7, "extra": [1]})
    assert "epoch" not in body
    assert "offset" not in body
    assert body["extra"] == [1]


def test_an_event_keeps_the_id_and_the_time_it_comes_with() -> None:
    text = {"call_cid": "a:b", "custom": {}, "event_id": "mine", "created_at": NOW_NS - 1}
    found = event(text)
    assert found.event_id == found.identity == "mine"
    assert shown(text)["created_at"] == wire.rfc3339(NOW_NS - 1)


def test_another_type_needs_no_custom() -> None:
    assert event({"call_cid": "a:b", "type": "call.updated", "call": {}}).type == "call.updated"


def test_the_fingerprint_is_of_what_was_said() -> None:
    one = event(b'{"call_cid":"a:b","custom":{"a":1,"b":2}}')
    same = event(b'{"custom":{"b":2,"a":1}, "call_cid":"a:b"}')
    other = event(b'{"call_cid":"a:b","custom":{"a":1}}')
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"balloons", "not_json"),
        (b"[]", "not_an_object"),
        (b"[" * 2000, "too_deep"),
        ({"custom": {}}, "bad_cid"),
        ({"call_cid": "a/b", "custom": {}}, "bad_cid"),
        ({"call_cid": "a:b"}, "custom_not_an_object"),
        ({"call_cid": "a:b", "custom": "x"}, "custom_not_an_object"),
        ({"call_cid": "a:b", "custom": {}, "type": 7}, "no_type"),
        ({"call_cid": "a:b", "custom": {}, "type": "connection.ok"}, "reserved_type"),
        ({"call_cid": "a:b", "custom": {}, "event_id": "a b"}, "bad_event_id"),
        ({"call_cid": "a:b", "custom": {}, "user_id": 7}, "bad_user_id"),
        ({"call_cid": "a:b", "custom": {}, "user": "john"}, "bad_user"),
        ({"call_cid": "a:b", "custom": {}, "user": {"id": "x"}, "user_id": "y"}, "bad_user_id"),
        ({"call_cid": "a:b", "custom": {}, "created_at": "soon"}, "bad_time"),
        ({"call_cid": "a:b", "custom": {}, "created_at": None}, "bad_time"),
    ],
)
def test_what_is_no_event_is_refused(text: bytes | dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        event(text)
    assert caught.value.reason == reason


def test_size_is_bounded_as_a_whole_and_in_custom() -> None:
    big = {"call_cid": "a:b", "custom": {"n": "x" * 6000}}
    with pytest.raises(TooLarge, match="limit is 5120"):
        event(big)
    assert event(big, Bounds(custom=0))
    with pytest.raises(TooLarge, match="more than 100 bytes"):
        event(big, Bounds(custom=0, event=100))


# -- the live channel ---------------------------------------------------------------------------


async def test_a_live_event_goes_to_the_hub_and_is_counted() -> None:
    delivered: list[tuple[str, bytes]] = []
    accepted = counted("relay_events_accepted", door="live")
    before = counted("relay_events_published", door="live", kind="volatile")
    door = LiveDoor(lambda cid, body: delivered.append((cid, body)), Clock())
    door.receive(b'{"call_cid":"default:demo","custom":{"n":1}}')
    ((cid, raw),) = delivered
    body = wire.decode_object(raw)
    assert (cid, body["custom"]) == ("default:demo", {"n": 1})
    assert len(body["event_id"]) == 32
    assert "offset" not in body
    assert counted("relay_events_published", door="live", kind="volatile") == before + 1
    assert counted("relay_events_accepted", door="live") == accepted + 1


async def test_two_live_events_are_two() -> None:
    ids: list[str] = []
    door = LiveDoor(lambda _, body: ids.append(wire.decode(body)["event_id"]), Clock())
    for _ in range(2):
        door.receive(b'{"call_cid":"default:demo","custom":{}}')
    assert len(set(ids)) == 2


@given(st.binary())
def test_whatever_comes_on_the_channel_the_door_stands(raw: bytes) -> None:
    door = LiveDoor(lambda cid, body: None, Clock())
    door.receive(raw)


def test_a_bad_live_event_is_counted_logged_and_never_shown() -> None:
    delivered: list[bytes] = []
    before = refused("live", "not_json")
    with capture_logs() as lines:
        LiveDoor(lambda _, body: delivered.append(body), Clock()).receive(b"a secret payload")
    assert delivered == []
    assert refused("live", "not_json") == before + 1
    (line,) = lines
    assert (line["event"], line["reason"]) == ("live event dropped", "not_json")
    assert "a secret payload" not in str(line)


# -- the ingest stream --------------------------------------------------------------------------


class FakeInbox:
    """An ingest stream in memory: entries stay until they are settled."""

    def __init__(self, *texts: bytes) -> None:
        self.entries = [InboxEntry(f"{n}-0", text) for n, text in enumerate(texts, 1)]
        self.settled: list[str] = []
        self.closed = False
        self.failing_takes = 0
        self.failing_settles = 0
        self.drained = asyncio.Event()

    async def take(self) -> list[InboxEntry]:
        if self.failing_takes:
            self.failing_takes -= 1
            raise Unavailable("away")
        if not self.entries:
            self.drained.set()
            await asyncio.Event().wait()
        return self.entries[:2]

    async def settle(self, ids: Sequence[str]) -> None:
        if self.failing_settles:
            self.failing_settles -= 1
            raise Unavailable("away")
        self.settled += ids
        self.entries = [entry for entry in self.entries if entry.id not in ids]

    async def aclose(self) -> None:
        self.closed = True


class Broker(AwayBroker):
    """A broker that fails as told, once for each of ``failures``, and notes what was tried."""

    def __init__(self) -> None:
        super().__init__(Limits(), Clock(), "node")
        self.failures: list[Exception] = []
        self.tried: list[str] = []

    async def publish(self, event: Event) -> Publication:
        self.tried.append(event.event_id)
        if self.failures:
            raise self.failures.pop(0)
        return await super().publish(event)

    async def seen(self) -> list[Any]:
        history = await self.history("default:demo", 0)
        return [wire.decode(entry.body)["custom"]["n"] for entry in history.entries]


class Ingest:
    """The door with its fakes, run until the stream is empty."""

    def __init__(self, *texts: bytes) -> None:
        self.inbox, self.broker = FakeInbox(*texts), Broker()
        self.pauses: list[float] = []
        self.while_waiting: Callable[[], None] = lambda: None
        self.door = IngestDoor(
            Door("ingest", self.broker), self.inbox, Clock(), rng=Random(1), sleep=self.sleep
        )

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.while_waiting()
        await asyncio.sleep(0)

    async def run(self) -> None:
        self.door.start()
        async with asyncio.timeout(5):
            await self.inbox.drained.wait()
        await self.door.aclose()


def entry(n: int, **more: Any) -> bytes:
    return wire.encode({"call_cid": "default:demo", "custom": {"n": n}} | more)


async def test_entries_are_published_in_order_and_leave_the_stream() -> None:
    ingest = Ingest(*(entry(n) for n in range(5)))
    await ingest.run()
    assert await ingest.broker.seen() == [0, 1, 2, 3, 4]
    assert ingest.inbox.settled == ["1-0", "2-0", "3-0", "4-0", "5-0"]
    assert ingest.broker.tried[0] == "ingest:1-0"
    assert ingest.inbox.closed


async def test_an_entry_is_tried_again_until_redis_is_back_and_none_overtakes_it() -> None:
    ingest = Ingest(*(entry(n) for n in range(3)))
    ingest.broker.failures = [Unavailable("away")] * 6
    with capture_logs() as lines:
        await ingest.run()
    assert [line["event"] for line in lines] == ["ingest waits for redis"]
    assert await ingest.broker.seen() == [0, 1, 2]
    assert ingest.broker.tried[:7] == ["ingest:1-0"] * 7
    assert len(ingest.pauses) == 6
    assert ingest.pauses[0] <= 0.1
    assert 1.0 <= ingest.pauses[-1] <= 2.0


async def test_an_entry_published_twice_is_one_event() -> None:
    ingest = Ingest(entry(0), entry(1))
    ingest.inbox.entries.append(ingest.inbox.entries[0])
    await ingest.run()
    assert await ingest.broker.seen() == [0, 1]


async def test_reading_outlasts_redis_too() -> None:
    ingest = Ingest(entry(0))
    ingest.inbox.failing_takes = 2
    await ingest.run()
    assert await ingest.broker.seen() == [0]
    assert len(ingest.pauses) == 2


async def test_settling_outlasts_redis_too() -> None:
    ingest = Ingest(entry(0))
    ingest.inbox.failing_settles = 1
    await ingest.run()
    assert await ingest.broker.seen() == [0]
    assert ingest.inbox.settled == ["1-0"]
    assert ingest.broker.tried == ["ingest:1-0"]


async def test_a_bad_entry_is_counted_dropped_and_passed_by() -> None:
    before = refused("ingest", "not_json")
    ingest = Ingest(entry(0), b"a secret payload", entry(2))
    with capture_logs() as lines:
        await ingest.run()
    (line,) = lines
    assert (line["event"], line["entry"]) == ("ingest entry dropped", "2-0")
    assert "a secret payload" not in str(line)
    assert await ingest.broker.seen() == [0, 2]
    assert ingest.inbox.settled == ["1-0", "2-0", "3-0"]
    assert refused("ingest", "not_json") == before + 1


async def test_an_entry_that_the_broker_refuses_is_counted_dropped_and_passed_by() -> None:
    before = refused("ingest", "call_full"), counted("relay_events_failed", door="ingest")
    ingest = Ingest(entry(0), entry(1))
    ingest.broker.failures = [Unavailable("away"), BadInput("no", reason="call_full")]
    with capture_logs() as lines:
        await ingest.run()
    assert [line["event"] for line in lines] == ["ingest waits for redis", "ingest entry dropped"]
    assert (lines[1]["entry"], lines[1]["reason"]) == ("1-0", "call_full")
    assert ingest.broker.tried == ["ingest:1-0", "ingest:1-0", "ingest:2-0"]
    assert await ingest.broker.seen() == [1]
    assert ingest.inbox.settled == ["1-0", "2-0"]
    after = refused("ingest", "call_full"), counted("relay_events_failed", door="ingest")
    assert after == (before[0] + 1, before[1] + 2)


async def test_an_id_of_the_backend_is_its_identity() -> None:
    ingest = Ingest(entry(0, event_id="mine"), entry(0, event_id="mine"))
    await ingest.run()
    assert await ingest.broker.seen() == [0]


async def test_a_crash_is_survived_with_nothing_lost() -> None:
    ingest = Ingest(entry(0), entry(1))
    ingest.broker.failures = [RuntimeError("bug")]
    with capture_logs() as lines:
        await ingest.run()
    assert [(line["event"], line["log_level"]) for line in lines] == [("ingest failed", "error")]
    assert await ingest.broker.seen() == [0, 1]
    assert ingest.pauses == [2.0]


async def test_closing_ends_the_task_while_it_waits_for_redis() -> None:
    ingest = Ingest(entry(0))
    ingest.broker.failures = [Unavailable("away")] * 1_000_000
    waiting = asyncio.Event()
    ingest.while_waiting = waiting.set
    ingest.door.start()
    async with asyncio.timeout(5):
        await waiting.wait()
        await ingest.door.aclose()
    tried = len(ingest.broker.tried)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(ingest.broker.tried) == tried
    assert ingest.inbox.closed
    assert ingest.inbox.settled == []
