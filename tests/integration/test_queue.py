"""Stream's queue beside its webhooks: real relays, a real Redis, moto's SQS over HTTP."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import anyio
import httpx
import pytest

from relay.broker.keyspace import Keyspace
from tests import ledger
from tests.cloud import Cloud
from tests.integration.doors import post_webhook, webhook
from tests.integration.stepped import SOME, STEPS, SteppedRelay
from tests.ledger import Ledger
from tests.processes import API_KEY, RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import Client, connected

pytestmark = pytest.mark.anyio

CID: Final = "default:queued"
FORMS: Final[dict[str, Callable[[bytes], str]]] = {
    "raw": bytes.decode,
    "base64": lambda body: base64.b64encode(body).decode(),
    "gzip": lambda body: base64.b64encode(gzip.compress(body)).decode(),
}
"""The three ways Stream writes a body into a queue."""


class StreamsQueue:
    """A queue that Stream fills, and what a relay needs to read it."""

    def __init__(self, cloud: Cloud, url: str) -> None:
        self.cloud = cloud
        self.url = url
        self.settings: dict[str, object] = {
            "ingest_sqs_url": url,
            "ingest_sqs_key": "AKIA",
            "ingest_sqs_secret": "secret",
        }

    async def put(self, *texts: str) -> None:
        for text in texts:
            await self.cloud.sqs.send_message(QueueUrl=self.url, MessageBody=text)

    async def counts(self) -> tuple[int, int]:
        """How many messages wait, and how many a reader has."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await self.cloud.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)
        return int(answer["Attributes"][names[0]]), int(answer["Attributes"][names[1]])

    async def until(self, waiting: int, held: int) -> None:
        """Return once so many wait and so many are with a reader."""
        with anyio.fail_after(15):
            while await self.counts() != (waiting, held):
                await anyio.sleep(0.05)


@pytest.fixture
async def queue(cloud: Cloud) -> AsyncIterator[StreamsQueue]:
    made = await cloud.sqs.create_queue(
        QueueName=f"stream-{time.time_ns()}", Attributes={"MessageRetentionPeriod": "7200"}
    )
    yield StreamsQueue(cloud, made["QueueUrl"])


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


async def until_counted(relay: RelayProcess, count: int, name: str, **labels: str) -> Ledger:
    with anyio.fail_after(15):
        while (books := await ledger.read(relay)).total(name, **labels) < count:
            await anyio.sleep(0.05)
    return books


async def in_order(relay: RelayProcess, cid: str = CID) -> list[Any]:
    """Return the numbers of what a call's history holds."""
    async with connected(relay, "reader") as reader:
        first = await reader.ask("call.watch", call_cid=cid)
        again = {"epoch": first["epoch"], "offset": 0}
        await reader.ask("call.unwatch", call_cid=cid)
        await reader.watch(cid, again)
        await reader.until_count(first["offset"])
        assert reader.offsets == list(range(1, first["offset"] + 1))
        return numbers(reader)


def numbers(client: Client) -> list[Any]:
    return [event["custom"]["n"] for event in client.events if event["type"] == "custom"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", ["webhook", "queue"])
async def test_one_event_by_both_ways_is_published_once(
    first: str, form: str, queue: StreamsQueue
) -> None:
    body = webhook(CID, {"n": 1})
    with RelayProcess(**queue.settings) as relay:
        async with connected(relay, "john") as john:
            await john.watch(CID)
            if first == "queue":
                await queue.put(FORMS[form](body))
                await john.until_count(1)
            answer = await post_webhook(relay, body)
            expected = "duplicate" if first == "queue" else "published"
            assert answer.json()["status"] == expected
            if first == "webhook":
                await queue.put(FORMS[form](body))
                await until_counted(relay, 1, "relay_events_duplicate_total", door="sqs")
            await queue.put(FORMS[form](webhook(CID, {"n": 2})))
            await john.until(lambda frame: frame.get("custom") == {"n": 2})
            assert numbers(john) == [1, 2]
            await queue.until(0, 0)
        (await ledger.read(relay)).check()


async def test_what_the_queue_took_while_the_relay_was_down_comes_after_the_start(
    queue: StreamsQueue, redis: RedisServer
) -> None:
    settings = {"redis_url": redis.url, **queue.settings}
    bodies = [webhook(CID, {"n": n}) for n in range(35)]
    with RelayProcess(**settings) as before:
        assert (await post_webhook(before, bodies[0])).status_code == 200
        await queue.put(FORMS["raw"](bodies[0]))
        await queue.until(0, 0)
    await queue.put(*(FORMS["gzip"](body) for body in bodies))
    with RelayProcess(**settings) as one, RelayProcess(**settings) as two:
        await queue.until(0, 0)
        assert sorted(await in_order(one)) == list(range(35))
        for relay in (one, two):
            (await ledger.read(relay)).check()


@pytest.mark.parametrize("first", ["webhook", "queue"])
async def test_the_second_copy_is_known_after_a_restart_of_the_relay_and_of_redis(
    first: str, queue: StreamsQueue, redis: RedisServer
) -> None:
    settings = {"redis_url": redis.url, **queue.settings}
    body = webhook(CID, {"n": 1})
    with RelayProcess(**settings) as before:
        if first == "webhook":
            assert (await post_webhook(before, body)).json()["status"] == "published"
        else:
            await queue.put(FORMS["raw"](body))
            await queue.until(0, 0)
    redis.kill()
    redis.start()
    with RelayProcess(**settings) as after:
        if first == "webhook":
            await queue.put(FORMS["raw"](body))
            await until_counted(after, 1, "relay_events_duplicate_total", door="sqs")
        else:
            assert (await post_webhook(after, body)).json()["status"] == "duplicate"
        await queue.until(0, 0)
        assert await in_order(after) == [1]
        (await ledger.read(after)).check()


def let_hours_pass(redis: RedisServer, window_s: float) -> None:
    """Do to a call that is idle what its age does within the window for repeats."""
    meta, history = Keyspace("relay:").of_order(CID)
    with redis.client() as client:
        assert client.delete(history) == 1
        assert client.pttl(meta) > window_s * 1000


async def test_after_an_outage_of_hours_watchers_go_on_from_their_position(
    queue: StreamsQueue, redis: RedisServer
) -> None:
    settings = {"redis_url": redis.url, "history_age": 60, **queue.settings}
    with RelayProcess(**settings) as before:
        async with connected(before, "john") as john:
            await john.watch(CID)
            assert (await post_webhook(before, webhook(CID, {"n": 0}))).status_code == 200
            (seen,) = await john.until_count(1)
    redis.kill()
    redis.start()
    await queue.put(*(FORMS["gzip"](webhook(CID, {"n": n})) for n in range(1, 25)))
    let_hours_pass(redis, window_s=7200)
    with RelayProcess(**settings) as after:
        async with connected(after, "john") as john, connected(after, "jane") as jane:
            assert (await john.watch(CID, seen))["recovered"] is True
            await queue.until(0, 0)
            assert (await jane.watch(CID, seen))["recovered"] is True
            for watcher in (john, jane):
                await watcher.until_count(24)
                assert numbers(watcher) == list(range(1, 25))
                assert watcher.offsets == list(range(2, 26))
        (await ledger.read(after)).check()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("raw_delivery", ["false", "true"])
async def test_a_topic_of_sns_that_the_queue_is_subscribed_to_does_as_well(
    raw_delivery: str, form: str, queue: StreamsQueue
) -> None:
    sns = queue.cloud.sns
    topic = (await sns.create_topic(Name=f"stream-{time.time_ns()}"))["TopicArn"]
    await queue.cloud.subscribe(queue.url, topic, RawMessageDelivery=raw_delivery)
    bodies = [webhook(CID, {"n": n}) for n in range(3)]
    with RelayProcess(**queue.settings) as relay:
        assert (await post_webhook(relay, bodies[0])).json()["status"] == "published"
        for body in bodies:
            await sns.publish(TopicArn=topic, Message=FORMS[form](body))
        await until_counted(relay, 3, "relay_events_accepted_total", door="sqs")
        await queue.until(0, 0)
        assert sorted(await in_order(relay)) == [0, 1, 2]
        books = await ledger.read(relay)
        assert books.total("relay_events_duplicate_total", door="sqs") == 1
        books.check()


async def test_one_reader_keeps_the_order_of_the_queue(queue: StreamsQueue) -> None:
    await queue.put(*(FORMS["raw"](webhook(CID, {"n": n})) for n in range(25)))
    with RelayProcess(**queue.settings) as relay:
        await queue.until(0, 0)
        assert await in_order(relay) == list(range(25))


async def test_while_redis_is_away_nothing_is_deleted_and_nothing_lost(
    queue: StreamsQueue, redis: RedisServer
) -> None:
    with RelayProcess(redis_url=redis.url, publish_timeout=2.5, **queue.settings) as relay:
        await queue.put(FORMS["base64"](webhook(CID, {"n": 0})))
        await queue.until(0, 0)
        redis.kill()
        await queue.put(*(FORMS["base64"](webhook(CID, {"n": n})) for n in range(1, 25)))
        await anyio.to_thread.run_sync(relay.wait_for_line, "queue waits for redis")
        waiting, held = await queue.counts()
        assert waiting + held == 24
        assert 1 <= held <= 10
        redis.start()
        await queue.until(0, 0)
        assert await in_order(relay) == list(range(25))
        (await ledger.read(relay)).check()


async def test_a_relay_that_stops_while_redis_is_away_gives_back_what_it_holds(
    queue: StreamsQueue, redis: RedisServer
) -> None:
    settings = {"redis_url": redis.url, "publish_timeout": 2.5, "drain_timeout": 1}
    with RelayProcess(**settings, **queue.settings) as relay:
        redis.kill()
        await queue.put(*(FORMS["base64"](webhook(CID, {"n": n})) for n in range(5)))
        await anyio.to_thread.run_sync(relay.wait_for_line, "queue waits for redis")
        await anyio.to_thread.run_sync(relay.stop)
    await queue.until(5, 0)
    redis.start()
    with RelayProcess(**settings, **queue.settings) as heir:
        await queue.until(0, 0)
        assert await in_order(heir) == list(range(5))


PUBLISHED: Final = dict(zip(STEPS, (0, SOME, 10, 10), strict=True))
"""What a process has published of its batch of ten when it dies at a step."""


@pytest.mark.parametrize("step", STEPS)
async def test_what_a_process_had_that_was_killed_at_any_step_another_publishes_once(
    step: str, queue: StreamsQueue, redis: RedisServer
) -> None:
    await queue.put(*(FORMS["raw"](webhook(CID, {"n": n})) for n in range(13)))
    deleted = SOME if step == "some deleted" else 0
    settings = {"redis_url": redis.url, **queue.settings}
    with RelayProcess(redis_url=redis.url) as door:
        async with connected(door, "john") as john:
            await john.watch(CID)
            with SteppedRelay(step, **settings) as victim:
                await anyio.to_thread.run_sync(victim.wait_for_step)
                await john.until_count(PUBLISHED[step])
                assert sum(await queue.counts()) == 13 - deleted
                with RelayProcess(**settings) as heir:
                    await anyio.to_thread.run_sync(victim.kill)
                    await queue.until(0, 0)
                    books = await ledger.read(heir)
            assert books.doors("sqs") == {
                "accepted": 13 - deleted,
                "published": 13 - PUBLISHED[step],
                "duplicate": PUBLISHED[step] - deleted,
                "failed": 0,
            }
            books.check()
            await john.until_count(13)
            assert sorted(numbers(john)) == list(range(13))
            assert john.offsets == list(range(1, 14))
        assert sorted(await in_order(door)) == list(range(13))
        (await ledger.read(door)).check()


async def test_what_is_no_event_does_not_stop_the_rest(queue: StreamsQueue) -> None:
    long_ago_ns = time.time_ns() - 7201 * 10**9
    await queue.put(
        "a secret payload",
        base64.b64encode(b"\x1f\x8bbroken").decode(),
        json.dumps({"type": "custom", "created_at": long_ago_ns, "call_cid": CID, "custom": {}}),
        json.dumps({"type": "user.updated", "created_at": time.time_ns()}),
        FORMS["raw"](webhook(CID, {"n": 1})),
    )
    with RelayProcess(**queue.settings) as relay:
        await queue.until(0, 0)
        assert await in_order(relay) == [1]
        books = await ledger.read(relay)
        for reason in ("bad_base64", "bad_gzip", "stale"):
            assert books.total("relay_refused_total", door="sqs", reason=reason) == 1, reason
        assert books.total("relay_events_ignored_total", door="sqs") == 1
        assert "a secret payload" not in relay.log
        books.check()


async def test_a_call_is_learnt_from_the_queue(queue: StreamsQueue) -> None:
    now_ns = time.time_ns()
    call = {"id": "queued", "type": "default", "cid": CID, "created_by": {"id": "jane"},
            "created_at": now_ns, "updated_at": now_ns, "custom": {"topic": "x"}}  # fmt: skip
    event = {"type": "call.created", "created_at": now_ns, "call_cid": CID, "call": call}
    await queue.put(json.dumps(event))
    with RelayProcess(**queue.settings) as relay:
        await queue.until(0, 0)
        async with httpx.AsyncClient(base_url=relay.base_url) as client:
            answer = await client.get(
                f"/api/v2/video/call/{CID.replace(':', '/')}",
                params={"api_key": API_KEY},
                headers={"authorization": relay.token(), "stream-auth-type": "jwt"},
            )
        assert answer.status_code == 200, answer.text
        assert answer.json()["call"]["custom"] == {"topic": "x"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_queue_that_keeps_messages_for_longer_than_repeats_are_known_is_refused(
    queue: StreamsQueue, redis_server: RedisServer, workers: int
) -> None:
    settings = {"dedupe_window": 7199, "redis_url": redis_server.url, "port": 0}
    if workers > 1:
        settings |= {"workers": workers}
    relay = RelayProcess(**settings, **queue.settings)
    relay.spawn()
    assert await anyio.to_thread.run_sync(relay.wait) != 0
    assert "keeps messages for 7200 s, over RELAY_DEDUPE_WINDOW=7199" in relay.log
    assert "Traceback" not in relay.log


async def test_a_queue_that_is_not_there_is_refused(queue: StreamsQueue) -> None:
    relay = RelayProcess(**queue.settings | {"ingest_sqs_url": queue.url + "-not"})
    relay.spawn()
    assert await anyio.to_thread.run_sync(relay.wait) != 0
    assert "relay: RELAY_INGEST_SQS_URL: SQS:" in relay.log
    assert "NonExistentQueue" in relay.log
    assert "Traceback" not in relay.log


async def test_a_queue_that_does_not_answer_keeps_no_relay_from_starting() -> None:
    nowhere = {"ingest_sqs_url": "http://127.0.0.1:1/1/q", "ingest_sqs_key": "AKIA"}
    with RelayProcess(**nowhere, ingest_sqs_secret="secret") as relay:
        async with httpx.AsyncClient(base_url=relay.base_url) as client:
            ready = await client.get("/readyz")
        assert ready.status_code == 200, ready.text
        (warning,) = ready.json()["warnings"]
        assert warning.startswith("queue: SQS: Could not connect")
