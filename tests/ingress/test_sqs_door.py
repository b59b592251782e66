"""The door of Stream's queue, with a queue in memory and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from relay import wire
from relay.broker import Limits
from relay.broker.memory import MemoryBroker, MemoryOutbox, MemoryStore
from relay.calls import Call
from relay.doors import Door
from relay.errors import BadInput, Refused, Unavailable
from relay.events import Event, Publication
from relay.ingress import SqsDoor, load_sources, queue_reader, redrive_warning
from relay.ingress.queue_bodies import body_of
from relay.ingress.sqs_door import VISIBLE_S, Message
from relay.registry import Registry
from relay.settings import SettingsError
from tests.edges import KEY, KEYS, NOW_NS, SECRET, Clock, counted, refused, signed
from tests.ingress.test_queue_bodies import envelope

pytestmark = pytest.mark.anyio

CID = "default:demo"
WINDOW_S = 7200.0


def body(n: int = 1, **fields: Any) -> bytes:
    event = {"type": "custom", "created_at": NOW_NS, "call_cid": CID, "custom": {"n": n}}
    return wire.encode(event | fields)


def called(kind: str = "call.created", **fields: Any) -> bytes:
    call = {"created_by": {"id": "jane"}, "created_at": NOW_NS, "updated_at": NOW_NS}
    return body(type=kind, call=call | fields)


class FakeQueue:
    """A queue in memory: what is received stays until it is deleted, and is given out once."""

    def __init__(self, *texts: str | bytes) -> None:
        self.messages: list[Message] = []
        self.given: set[str] = set()
        self.deleted: list[str] = []
        self.holds: list[tuple[list[str], int]] = []
        self.kept_s = WINDOW_S
        self.receipts: int | None = None
        self.asked = 0
        self.failures: dict[str, list[Exception]] = {}
        self.empty = asyncio.Event()
        self.more = asyncio.Event()
        self.closed = False
        self.put(*texts)

    def put(self, *texts: str | bytes, again: bool = False) -> None:
        for text in texts:
            number = str(len(self.messages) + len(self.deleted) + 1)
            said = text if isinstance(text, str) else text.decode()
            self.messages.append(Message(number, f"r{number}", said, again))
        self.empty.clear()
        self.more.set()

    def fail(self, operation: str, *errors: Exception) -> None:
        self.failures[operation] = list(errors)

    def _fails(self, operation: str) -> None:
        if errors := self.failures.get(operation):
            raise errors.pop(0)

    async def retention_s(self) -> float:
        self.asked += 1
        self._fails("retention_s")
        return self.kept_s

    async def receipts_most(self) -> int | None:
        return self.receipts

    async def receive(self, visible_s: int) -> list[Message]:
        assert visible_s == VISIBLE_S
        self._fails("receive")
        while not (free := [m for m in self.messages if m.id not in self.given][:10]):
            self.empty.set()
            self.more.clear()
            await self.more.wait()
        self.given |= {message.id for message in free}
        return free

    async def delete(self, messages: Sequence[Message]) -> None:
        self._fails("delete")
        self.deleted += [message.id for message in messages]
        self.messages = [message for message in self.messages if message not in messages]

    async def hold(self, messages: Sequence[Message], visible_s: int) -> None:
        self._fails("hold")
        self.holds.append(([message.id for message in messages], visible_s))

    async def aclose(self) -> None:
        self.closed = True


class Broker(MemoryBroker):
    """A broker that fails as told, once for each of ``failures``, and notes what was tried."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Limits(), clock, "node")
        self.failures: list[Exception] = []
        self.tried: list[Event] = []

    async def publish(self, event: Event) -> Publication:
        self.tried.append(event)
        if self.failures:
            raise self.failures.pop(0)
        return await super().publish(event)


class Relay:
    """The door with its fakes. ``while_waiting`` runs at each of its pauses."""

    def __init__(self, *texts: str | bytes, api_key: str = KEY) -> None:
        self.clock = Clock()
        self.queue, self.broker = FakeQueue(*texts), Broker(self.clock)
        self.store = MemoryStore(MemoryOutbox(self.clock))
        self.sources = load_sources("", KEYS, max_bytes=10_000, freshness_s=3600)
        self.pauses: list[float] = []
        self.while_waiting: Callable[[], None] = lambda: None
        self.door = SqsDoor(
            Door("sqs", self.broker),
            self.queue,
            queue_reader(self.sources, api_key, WINDOW_S),
            Registry(self.store),
            self.clock,
            window_s=WINDOW_S,
            rng=Random(1),
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.while_waiting()
        await asyncio.sleep(0)

    async def until_empty(self) -> None:
        async with asyncio.timeout(5):
            await self.queue.empty.wait()

    async def run(self) -> None:
        """Read until there is nothing more to receive."""
        await self.door.start()
        await self.until_empty()
        await self.door.aclose()

    async def until_pausing(self) -> None:
        """Begin to read, and return once the door waits for something that is away."""
        waiting = asyncio.Event()
        self.while_waiting = waiting.set
        await self.door.start()
        async with asyncio.timeout(5):
            await waiting.wait()

    async def by_webhook(self, raw: bytes) -> Publication:
        accepted = self.sources["stream"].accept(signed(raw), raw, self.clock())
        assert accepted.event is not None
        return await Door("webhook", self.broker).publish(accepted.event)

    async def seen(self) -> list[Any]:
        history = await self.broker.history(CID, 0)
        return [wire.decode(entry.body).get("custom", {}).get("n") for entry in history.entries]

    async def call(self) -> Call | None:
        return await self.store.call(CID)


# -- what a message says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        body().decode(),
        " \n" + body().decode() + "\n",
        base64.b64encode(body()).decode(),
        base64.b64encode(gzip.compress(body())).decode() + "\n",
        envelope(Message=base64.b64encode(gzip.compress(body())).decode()),
    ],
)
async def test_every_form_is_the_webhooks_event_and_deleted(text: str) -> None:
    relay = Relay(text)
    first = await relay.by_webhook(body())
    before = counted("relay_events_duplicate", door="sqs")
    await relay.run()
    assert await relay.seen() == [1]
    assert relay.queue.deleted == ["1"]
    assert relay.broker.tried[-1].event_id == first.event_id
    assert counted("relay_events_duplicate", door="sqs") == before + 1


async def test_the_copy_of_another_apps_webhook_is_an_event_of_its_own() -> None:
    relay = Relay(body(), api_key="other-key")
    await relay.by_webhook(body())
    await relay.run()
    assert await relay.seen() == [1, 1]


async def test_a_key_that_no_source_of_stream_has_is_refused() -> None:
    with pytest.raises(SettingsError, match="RELAY_INGEST_SQS_API_KEY='nobody' is no key"):
        Relay(api_key="nobody")


@given(st.text() | st.binary().map(lambda raw: base64.b64encode(raw).decode()))
def test_whatever_is_in_a_message_is_an_event_or_refused(text: str) -> None:
    sources = load_sources("", {KEY: [SECRET]}, max_bytes=10_000, freshness_s=3600)
    read = queue_reader(sources, KEY, WINDOW_S)
    try:
        read(body_of(text), NOW_NS)
    except Refused:
        return


def test_half_a_character_is_refused_too() -> None:
    sources = load_sources("", {KEY: [SECRET]}, max_bytes=10_000, freshness_s=3600)
    with pytest.raises(BadInput):
        queue_reader(sources, KEY, WINDOW_S)(body_of('{"type":"\ud800"}'), NOW_NS)


async def test_age_is_judged_by_the_window_for_repeats_not_by_that_for_webhooks() -> None:
    old, older = (body(created_at=NOW_NS - age_s * 10**9) for age_s in (7200, 7201))
    before = refused("sqs", "stale")
    relay = Relay(old, older)
    await relay.run()
    assert len(await relay.seen()) == 1
    assert refused("sqs", "stale") == before + 1


async def test_what_this_relay_delivered_into_the_queue_is_a_repeat() -> None:
    relay = Relay()
    first = await relay.by_webhook(body())
    assert first.position is not None
    (entry,) = (await relay.broker.history(CID, 0)).entries
    place = {"epoch": first.position.epoch, "offset": first.position.offset}
    relay.queue.put(wire.encode(wire.decode_object(entry.body) | place))
    await relay.run()
    assert await relay.seen() == [1]
    assert relay.queue.deleted == ["1"]


async def test_a_poison_message_is_counted_logged_without_content_and_passed_by() -> None:
    before = refused("sqs", "bad_base64")
    bomb = base64.b64encode(gzip.compress(b" " * 20_000)).decode()
    torn = envelope(Message=None, Subject="a secret payload!")
    relay = Relay(body(1), "a secret payload!", bomb, '{"type":7}', torn, body(2))
    with capture_logs() as lines:
        await relay.run()
    reasons = ["bad_base64", "body_too_large", "no_type", "bad_envelope"]
    assert [line["reason"] for line in lines] == reasons
    assert {line["event"] for line in lines} == {"queue message dropped"}
    assert [line["message"] for line in lines] == ["2", "3", "4", "5"]
    assert "a secret payload" not in str(lines)
    assert await relay.seen() == [1, 2]
    assert relay.queue.deleted == ["1", "2", "3", "4", "5", "6"]
    assert refused("sqs", "bad_base64") == before + 1


async def test_an_event_about_no_call_is_ignored_and_deleted() -> None:
    before = counted("relay_events_ignored", door="sqs")
    relay = Relay(wire.encode({"type": "user.updated", "created_at": NOW_NS}))
    await relay.run()
    assert relay.queue.deleted == ["1"]
    assert relay.broker.tried == []
    assert counted("relay_events_ignored", door="sqs") == before + 1


async def test_what_the_broker_refuses_is_dropped() -> None:
    relay = Relay(body(1), body(2))
    relay.broker.failures = [BadInput("no", reason="bad")]
    with capture_logs() as lines:
        await relay.run()
    assert [(line["event"], line["reason"]) for line in lines] == [("queue message dropped", "bad")]
    assert await relay.seen() == [2]
    assert relay.queue.deleted == ["1", "2"]


# -- calls --------------------------------------------------------------------------------------


async def test_a_call_is_learnt() -> None:
    relay = Relay(called(custom={"topic": "x"}))
    await relay.run()
    call = await relay.call()
    assert call is not None
    assert call.custom == {"topic": "x"}


async def test_a_late_copy_does_not_bring_back_a_call_that_has_gone() -> None:
    relay = Relay(called())
    await relay.by_webhook(called())  # it was learnt then, and deleted since
    await relay.run()
    assert relay.queue.deleted == ["1"]
    assert await relay.call() is None


async def test_a_message_whose_reader_died_in_between_is_learnt_from() -> None:
    relay = Relay()
    await relay.by_webhook(called())  # as far as its reader came
    relay.queue.put(called(), again=True)
    await relay.run()
    assert await relay.call() is not None


async def test_a_call_that_could_not_be_learnt_at_first_is_learnt_when_redis_is_back() -> None:
    """Its event was published by then: to the door it looks like a repeat."""
    relay = Relay(called())
    create, failures = relay.store.create_call, [Unavailable("away"), Unavailable("away")]

    async def create_at_last(call: Call) -> tuple[Call, bool]:
        if failures:
            raise failures.pop()
        return await create(call)

    relay.store.create_call = create_at_last  # type: ignore[method-assign]
    await relay.run()
    assert relay.queue.deleted == ["1"]
    assert await relay.call() is not None


# -- while something is away --------------------------------------------------------------------


async def test_while_redis_is_away_nothing_is_deleted_and_nothing_more_received() -> None:
    relay = Relay(*(body(n) for n in range(15)))
    relay.broker.failures = [Unavailable("away")] * 6
    given: set[tuple[int, int]] = set()
    relay.while_waiting = lambda: given.add((len(relay.queue.given), len(relay.queue.deleted)))
    with capture_logs() as lines:
        await relay.run()
    assert given == {(10, 0)}
    assert [line["event"] for line in lines] == ["queue waits for redis"]
    assert relay.pauses[0] <= 0.1
    assert 1.0 <= relay.pauses[-1] <= 2.0
    assert await relay.seen() == list(range(15))
    assert [event.cid for event in relay.broker.tried] == [CID] * 21
    assert relay.queue.deleted == [str(n) for n in range(1, 16)]
    assert relay.queue.holds == []


async def test_a_batch_is_kept_from_other_readers_for_as_long_as_it_takes() -> None:
    relay = Relay(*(body(n) for n in range(3)))
    relay.broker.failures = [Unavailable("away")] * 70
    relay.while_waiting = lambda: relay.clock.forward(1)
    await relay.run()
    assert relay.queue.holds == [(["1", "2", "3"], VISIBLE_S)] * 2
    assert await relay.seen() == [0, 1, 2]


async def test_a_queue_that_cannot_hold_them_does_not_stop_the_door() -> None:
    relay = Relay(body())
    relay.broker.failures = [Unavailable("away")] * 40
    relay.while_waiting = lambda: relay.clock.forward(1)
    relay.queue.fail("hold", Unavailable("held for twelve hours"))
    with capture_logs() as lines:
        await relay.run()
    assert "messages may come again" in [line["event"] for line in lines]
    assert await relay.seen() == [1]


@pytest.mark.parametrize("operation", ["receive", "delete"])
async def test_a_queue_that_is_away_is_waited_for(operation: str) -> None:
    relay = Relay(body(1), body(2))
    relay.queue.fail(operation, Unavailable("no answer"), Unavailable("no answer"))
    problems: list[str | None] = []
    relay.while_waiting = lambda: problems.append(relay.door.problem)
    with capture_logs() as lines:
        await relay.run()
    assert [line["event"] for line in lines] == ["queue does not answer"]
    assert problems == ["no answer", "no answer"]
    assert relay.door.problem is None
    assert await relay.seen() == [1, 2]
    assert len(relay.broker.tried) == 2
    assert relay.queue.deleted == ["1", "2"]


async def test_a_mistake_of_the_relay_leaves_the_message_and_goes_on() -> None:
    relay = Relay(body(1), body(2))
    relay.broker.failures = [RuntimeError("bug")]
    with capture_logs() as lines:
        await relay.run()
    assert [(line["event"], line["message"]) for line in lines] == [("queue message failed", "1")]
    assert await relay.seen() == [2]
    assert relay.queue.deleted == ["2"]


async def test_a_mistake_elsewhere_does_not_end_the_reading() -> None:
    relay = Relay(body())
    relay.queue.fail("receive", RuntimeError("bug"))
    with capture_logs() as lines:
        await relay.run()
    assert [line["event"] for line in lines] == ["queue reader failed"]
    assert relay.pauses == [2.0]
    assert await relay.seen() == [1]


# -- the queue itself ---------------------------------------------------------------------------


async def test_a_queue_that_keeps_messages_for_too_long_is_not_read() -> None:
    relay = Relay(body())
    relay.queue.kept_s = WINDOW_S + 1
    with pytest.raises(SettingsError, match="keeps messages for 7201 s, over RELAY_DEDUPE_WINDOW"):
        await relay.door.start()
    await relay.door.aclose()
    assert relay.queue.given == set()
    assert relay.queue.closed


async def test_a_queue_that_did_not_answer_at_the_start_is_asked_before_it_is_read() -> None:
    relay = Relay(body())
    relay.queue.fail("retention_s", Unavailable("no answer"), SettingsError("too long"))
    problems: list[str | None] = []
    relay.while_waiting = lambda: problems.append(relay.door.problem)
    with capture_logs() as lines:
        await relay.run()
    assert [line["event"] for line in lines] == ["queue does not answer", "queue not read"]
    assert relay.pauses == [30.0]
    assert problems == ["too long"]
    assert relay.door.problem is None
    assert relay.queue.asked == 3
    assert await relay.seen() == [1]


@pytest.mark.parametrize(("receipts", "warns"), [(None, False), (10, False), (9, True), (1, True)])
async def test_a_queue_that_soon_moves_messages_away_is_warned_of(
    receipts: int | None, warns: bool
) -> None:
    queue = FakeQueue()
    queue.receipts = receipts
    warning = await redrive_warning(queue)
    assert (warning is not None) == warns
    if warning:
        assert f"received {receipts} times" in warning
        assert "maxReceiveCount to at least 10" in warning


# -- the end ------------------------------------------------------------------------------------


async def test_a_drain_finishes_what_was_received_and_asks_for_no_more() -> None:
    relay = Relay(*(body(n) for n in range(12)))
    relay.broker.failures = [Unavailable("away")] * 3
    await relay.until_pausing()
    async with asyncio.timeout(5):
        await relay.door.drain(5)
    await relay.door.aclose()
    assert await relay.seen() == list(range(10))
    assert len(relay.queue.given) == len(relay.queue.deleted) == 10
    assert relay.queue.holds == []
    assert relay.queue.closed


async def test_a_drain_waits_for_what_is_being_asked() -> None:
    relay = Relay()
    await relay.door.start()
    await relay.until_empty()
    drain = asyncio.create_task(relay.door.drain(5))
    await asyncio.sleep(0)
    relay.queue.put(body())
    async with asyncio.timeout(5):
        await drain
    assert await relay.seen() == [1]
    assert relay.queue.deleted == ["1"]
    await relay.door.aclose()


async def test_a_drain_during_an_outage_of_the_queue_ends_soon() -> None:
    relay = Relay()
    relay.queue.fail("receive", *[Unavailable("no answer")] * 1000)
    await relay.until_pausing()
    async with asyncio.timeout(5):
        await relay.door.drain(60)
    assert len(relay.queue.failures["receive"]) > 900
    await relay.door.aclose()


async def test_what_is_left_at_the_end_is_given_back() -> None:
    relay = Relay(*(body(n) for n in range(3)))
    relay.broker.failures = [Unavailable("away")] * 1_000_000
    await relay.until_pausing()
    async with asyncio.timeout(5):
        await relay.door.drain(0.01)
        await relay.door.aclose()
    assert relay.queue.holds == [(["1", "2", "3"], 0)]
    assert relay.queue.deleted == []
    assert relay.queue.closed


async def test_a_queue_that_takes_nothing_back_does_not_hold_up_the_end() -> None:
    relay = Relay(body())
    relay.broker.failures = [Unavailable("away")] * 1_000_000
    relay.queue.fail("hold", Unavailable("no answer"))
    await relay.until_pausing()
    async with asyncio.timeout(5):
        with capture_logs() as lines:
            await relay.door.aclose()
    assert [line["event"] for line in lines] == ["messages come again later"]
    assert relay.queue.closed
