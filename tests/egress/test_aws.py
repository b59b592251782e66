"""The SQS and SNS sinks against moto's server, which speaks AWS's API over HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest

from relay.egress import aws
from relay.egress.aws import BatchSink
from relay.egress.sinks import Delivery, Result
from relay.egress.sns import Sns
from relay.egress.sqs import Sqs
from relay.forwarded import read_networks
from relay.hooks import Hook, HookType, Timestamps
from relay.retry import Outcome
from tests.cloud import Cloud, hook
from tests.egress import receiver as receivers
from tests.egress.receiver import receiving, status

pytestmark = pytest.mark.anyio

LOOPBACK: Final = read_networks("127.0.0.0/8")
BODY: Final = (
    b'{"type":"custom","created_at":"2026-11-22T12:00:00.000000001Z","call_cid":"default:a"}'
)
LIMIT_S: Final = 6.0


@pytest.fixture
async def queues() -> AsyncIterator[BatchSink]:
    sink = BatchSink(Sqs(), LOOPBACK)
    yield sink
    await sink.aclose()


@pytest.fixture
async def topics() -> AsyncIterator[BatchSink]:
    sink = BatchSink(Sns(), LOOPBACK)
    yield sink
    await sink.aclose()


def changed(before: Hook, **fields: Any) -> Hook:
    return msgspec.structs.replace(before, **fields)


def delivery(number: int = 1, body: bytes = BODY, cid: str = "default:a") -> Delivery:
    return Delivery(
        delivery_id=f"d{number}", event_id="e", cid=cid, type="custom", body=body, attempt=1
    )


async def sent(sink: BatchSink, to: Hook, *deliveries: Delivery) -> list[Result]:
    return await asyncio.gather(*[sink.send(to, one, LIMIT_S) for one in deliveries])


# -- SQS ------------------------------------------------------------------------------------------


async def test_a_queue_gets_the_event_as_base64(cloud: Cloud, queues: BatchSink) -> None:
    queue = await cloud.queue("plain")
    [result] = await sent(queues, queue, delivery())
    assert (result.outcome, result.status) == (Outcome.DELIVERED, 200)
    assert result.answer.startswith(b"message ")
    [message] = await cloud.messages(queue, 1)
    assert base64.b64decode(message["Body"], validate=True) == BODY


async def test_it_can_be_compressed_and_have_integer_times(cloud: Cloud, queues: BatchSink) -> None:
    queue = await cloud.queue("packed")
    packed = changed(queue, gzip=True, timestamps=Timestamps.NANOSECONDS)
    await sent(queues, packed, delivery())
    [message] = await cloud.messages(queue, 1)
    event = json.loads(gzip.decompress(base64.b64decode(message["Body"])))
    assert event["created_at"] == 1_795_348_800_000_000_001


async def test_what_is_sent_together_leaves_in_batches_of_ten(
    cloud: Cloud, queues: BatchSink
) -> None:
    queue = await cloud.queue("many")
    deliveries = [delivery(number, b'{"n":%d}' % number) for number in range(25)]
    results = await sent(queues, queue, *deliveries)
    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    bodies = {base64.b64decode(m["Body"]) for m in await cloud.messages(queue, 25)}
    assert bodies == {one.body for one in deliveries}


async def test_a_fifo_queue_keeps_each_calls_order_and_knows_a_repeat(
    cloud: Cloud, queues: BatchSink
) -> None:
    queue = await cloud.queue("calls.fifo")
    deliveries = [delivery(number, b'{"n":%d}' % number) for number in range(23)]
    other = delivery(99, b'{"n":99}', cid="default:" + "b" * 128)
    results = await sent(queues, queue, *deliveries, other, deliveries[0])
    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    found = await cloud.messages(queue, 24)
    numbers = [json.loads(base64.b64decode(message["Body"]))["n"] for message in found]
    assert numbers == [*range(23), 99]
    groups = {message["Attributes"]["MessageGroupId"] for message in found}
    assert "default:a" in groups
    assert all(len(group) <= 128 for group in groups)
    assert found[0]["Attributes"]["MessageDeduplicationId"] == "d0"


async def test_two_senders_who_chose_the_same_event_id_lose_nothing(
    cloud: Cloud, queues: BatchSink
) -> None:
    queue = await cloud.queue("ids.fifo")
    await sent(queues, queue, delivery(1), delivery(2))  # both events are called "e"
    assert len(await cloud.messages(queue, 2)) == 2


async def test_what_is_too_long_is_refused_and_says_what_helps(queues: BatchSink) -> None:
    queue = hook(HookType.SQS, "http://127.0.0.1:1", sqs_queue_url="http://127.0.0.1:1/1/q")
    [result] = await sent(queues, queue, delivery(body=b"x" * 200_000))
    assert result.outcome is Outcome.REFUSED
    assert b"266668 bytes, 262144 are possible" in result.answer


async def test_long_messages_leave_in_smaller_batches(cloud: Cloud, queues: BatchSink) -> None:
    queue = await cloud.queue("long")
    results = await sent(queues, queue, *[delivery(n, b"x" * 90_000) for n in range(6)])
    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    assert len(await cloud.messages(queue, 6)) == 6


async def test_a_queue_that_does_not_exist_is_refused(cloud: Cloud, queues: BatchSink) -> None:
    queue = await cloud.queue("gone")
    missing = changed(queue, sqs_queue_url=queue.sqs_queue_url + "-not")
    [result] = await sent(queues, missing, delivery())
    assert result.outcome is Outcome.REFUSED
    assert b"NonExistentQueue" in result.answer


# -- SNS ------------------------------------------------------------------------------------------


async def test_a_topic_gets_the_same_text(cloud: Cloud, topics: BatchSink) -> None:
    queue = await cloud.queue("of-a-topic")
    topic = await cloud.topic("calls", queue)
    results = await sent(topics, topic, *[delivery(number) for number in range(12)])
    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    envelopes = [json.loads(m["Body"]) for m in await cloud.messages(queue, 12)]
    assert len(envelopes) == 12
    assert {envelope["Type"] for envelope in envelopes} == {"Notification"}
    assert {base64.b64decode(envelope["Message"]) for envelope in envelopes} == {BODY}


async def test_a_fifo_topic_gets_groups_too(cloud: Cloud, topics: BatchSink) -> None:
    queue = await cloud.queue("of-a-topic.fifo")
    topic = await cloud.topic("calls.fifo", queue)
    [result] = await sent(topics, topic, delivery())
    assert result.outcome is Outcome.DELIVERED
    [message] = await cloud.messages(queue, 1)
    assert message["Attributes"]["MessageGroupId"] == "default:a"


async def test_a_topic_that_does_not_exist_is_refused(cloud: Cloud, topics: BatchSink) -> None:
    topic = hook(HookType.SNS, cloud.url, sns_topic_arn="arn:aws:sns:us-east-1:123456789012:no")
    [result] = await sent(topics, topic, delivery())
    assert result.outcome is Outcome.REFUSED
    assert b"NotFound" in result.answer


# -- credentials, checks --------------------------------------------------------------------------


async def test_a_role_is_assumed_with_the_hooks_own_keys(cloud: Cloud, queues: BatchSink) -> None:
    queue = await cloud.queue("role")
    assumed = changed(queue, sqs_role_arn="arn:aws:iam::123456789012:role/relay")
    [result] = await sent(queues, assumed, delivery())
    assert result.outcome is Outcome.DELIVERED
    client = await queues.clients.get(assumed.aws)
    credentials = client._request_signer._credentials
    assert credentials.access_key.startswith("ASIA")
    assert credentials.token


async def test_the_environment_has_the_credentials_where_the_hook_has_none(
    cloud: Cloud, queues: BatchSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    queue = changed(await cloud.queue("environment"), sqs_key="", sqs_secret="")
    [result] = await sent(queues, queue, delivery())
    assert result.outcome is Outcome.DELIVERED
    client = await queues.clients.get(queue.aws)
    assert client._request_signer._credentials.access_key == "from-the-environment"


async def test_queues_of_one_account_share_a_client(cloud: Cloud, queues: BatchSink) -> None:
    first, second = await cloud.queue("one"), await cloud.queue("two")
    clients = await asyncio.gather(*[queues.clients.get(h.aws) for h in (first, second, first)])
    assert clients[0] is clients[1] is clients[2]
    other = changed(first, sqs_key="AKIB")
    assert await queues.clients.get(other.aws) is not clients[0]


async def test_a_check_asks_the_queue_and_the_topic(
    cloud: Cloud, queues: BatchSink, topics: BatchSink
) -> None:
    queue = await cloud.queue("checked")
    topic = await cloud.topic("checked", queue)
    asked = await queues.check(queue)
    assert asked.error is None
    assert asked.data["queue_arn"].endswith(":checked")
    assert await topics.check(topic) == (None, {"topic_arn": topic.sns_topic_arn})
    missing = await queues.check(changed(queue, sqs_queue_url=queue.sqs_queue_url + "-not"))
    assert "NonExistentQueue" in (missing.error or "")


# -- what goes wrong on the way -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "http", "outcome"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", 400, Outcome.REFUSED),
        ("AccessDenied", 403, Outcome.REFUSED),
        ("InvalidClientTokenId", 403, Outcome.REFUSED),
        ("RequestThrottled", 403, Outcome.RETRYABLE),
        ("ThrottlingException", 400, Outcome.RETRYABLE),
        ("ServiceUnavailable", 503, Outcome.RETRYABLE),
        ("SomethingNew", 500, Outcome.RETRYABLE),
    ],
)
async def test_an_error_of_aws_means_an_outcome(
    queues: BatchSink, code: str, http: int, outcome: Outcome
) -> None:
    body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": "because"}).encode()
    async with receiving() as server:
        server.answers = [status(http, body, content_type="application/x-amz-json-1.0")]
        [result] = await sent(queues, at(server), delivery())
        assert len(server.requests) == 1  # the table decides about another attempt
    assert (result.outcome, result.status) == (outcome, http)
    assert code.encode() in result.answer


def at(server: receivers.Receiver) -> Hook:
    url = server.url.removesuffix("/hook")
    return hook(HookType.SQS, url, sqs_queue_url=f"{url}/1/q")


async def test_each_message_of_a_batch_has_its_own_outcome(queues: BatchSink) -> None:
    answer = {
        "Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "x"}],
        "Failed": [
            {"Id": "1", "SenderFault": True, "Code": "InvalidMessageContents", "Message": "bad"},
            {"Id": "2", "SenderFault": False, "Code": "InternalError", "Message": "sorry"},
        ],
    }
    async with receiving() as server:
        body = json.dumps(answer).encode()
        server.answers = [status(200, body, content_type="application/x-amz-json-1.0")]
        results = await sent(queues, at(server), *[delivery(number) for number in range(4)])
    assert [result.outcome for result in results] == [
        Outcome.DELIVERED,
        Outcome.REFUSED,
        Outcome.RETRYABLE,
        Outcome.RETRYABLE,  # not mentioned
    ]


async def test_an_endpoint_that_says_nothing_is_a_timeout(queues: BatchSink) -> None:
    async with receiving() as server:
        server.answers = [receivers.stall]
        result = await queues.send(at(server), delivery(), 0.3)
    assert result.outcome is Outcome.TIMEOUT
    assert result.latency_s < 2.0


async def test_a_broken_connection_is_a_network_error(queues: BatchSink) -> None:
    async with receiving() as server:
        server.answers = [receivers.reset]
        [result] = await sent(queues, at(server), delivery())
    assert result.outcome is Outcome.NETWORK


async def test_a_connection_that_nobody_takes_is_a_network_error(queues: BatchSink) -> None:
    queue = hook(HookType.SQS, "http://127.0.0.1:1", sqs_queue_url="http://127.0.0.1:1/1/q")
    result = await queues.send(queue, delivery(), 5.0)
    assert result.outcome is Outcome.NETWORK
    assert b"Could not connect" in result.answer


async def test_a_closed_address_is_not_connected_to() -> None:
    sink = BatchSink(Sqs(), ())
    async with receiving() as server:
        [result] = await sent(sink, at(server), delivery())
        assert (result.outcome, server.connections) == (Outcome.REFUSED, 0)
    assert b"RELAY_HOOK_ALLOW" in result.answer
    await sink.aclose()


async def test_a_role_is_renewed_before_its_session_ends(
    cloud: Cloud, queues: BatchSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "ROLE_SPARE_S", aws.ROLE_LIFE_S + 1)
    queue = changed(await cloud.queue("renewed"), sqs_role_arn="arn:aws:iam::123456789012:role/r")
    first, second = await queues.clients.get(queue.aws), await queues.clients.get(queue.aws)
    assert first is not second
    [result] = await sent(queues, queue, delivery())
    assert result.outcome is Outcome.DELIVERED


async def test_a_client_is_opened_once_however_many_want_it_and_the_oldest_goes(
    cloud: Cloud, queues: BatchSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "MOST_CLIENTS", 2)
    accounts = [hook(HookType.SQS, cloud.url, sqs_queue_url="q", sqs_key=f"K{n}") for n in range(3)]
    first = await asyncio.gather(*[queues.clients.get(accounts[0].aws) for _ in range(5)])
    assert len(set(map(id, first))) == 1
    kept = [await queues.clients.get(account.aws) for account in accounts[1:]]
    assert [await queues.clients.get(account.aws) for account in accounts[1:]] == kept
    assert await queues.clients.get(accounts[0].aws) is not first[0]


async def test_a_role_is_assumed_once_however_many_deliveries_wait_for_it(
    cloud: Cloud, queues: BatchSink
) -> None:
    queue = changed(await cloud.queue("shared"), sqs_role_arn="arn:aws:iam::123456789012:role/r")
    clients = await asyncio.gather(*[queues.clients.get(queue.aws) for _ in range(5)])
    assert len(set(map(id, clients))) == 1


async def test_what_its_library_does_wrong_is_an_outcome_too(cloud: Cloud) -> None:
    class Broken(Sqs):
        async def send(self, *_: object) -> list[Result]:
            raise KeyError("no such key")

    sink = BatchSink(Broken(), LOOPBACK)
    [result] = await sent(sink, await cloud.queue("broken"), delivery())
    await sink.aclose()
    assert (result.outcome, result.answer) == (Outcome.NETWORK, b"the relay failed: KeyError")


async def test_without_any_credentials_it_is_refused(
    cloud: Cloud, queues: BatchSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    queue = changed(await cloud.queue("nobody"), sqs_key="", sqs_secret="")
    [result] = await sent(queues, queue, delivery())
    assert result.outcome is Outcome.REFUSED
    assert b"credentials" in result.answer


async def test_a_limit_that_aws_does_not_keep_is_a_timeout(
    queues: BatchSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "REQUEST_LIMIT_S", 0.2)
    async with receiving() as server:
        server.answers = [receivers.stall]
        [result] = await sent(queues, at(server), delivery())
    assert result.outcome is Outcome.TIMEOUT


async def test_a_message_that_cannot_be_made_is_an_outcome_too(
    cloud: Cloud, queues: BatchSink
) -> None:
    integers = changed(await cloud.queue("unmade"), timestamps=Timestamps.NANOSECONDS)
    [bad, good] = await sent(queues, integers, delivery(1, b"\xff"), delivery(2))
    assert (bad.outcome, bad.answer) == (Outcome.NETWORK, b"the relay failed: DecodeError")
    assert good.outcome is Outcome.DELIVERED
