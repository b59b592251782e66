"""The queue of SQS on moto's server, and what its errors mean on a server that answers as told."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay import ingress
from relay.errors import Unavailable
from relay.ingress.sqs import SqsQueue
from relay.ingress.sqs_door import Message
from relay.settings import Settings, SettingsError
from tests.cloud import Cloud, cloud, moto
from tests.egress.receiver import Receiver, receiving, status

__all__ = ["cloud", "moto"]

pytestmark = pytest.mark.anyio


def settings(url: str, **more: str) -> Settings:
    fields: dict[str, Any] = {"ingest_sqs_key": "AKIA", "ingest_sqs_secret": "secret"} | more
    return Settings(ingest_sqs_url=url, **fields)


class Owned:
    """A queue as the relay reads it, and as its owner fills it."""

    def __init__(self, cloud: Cloud, url: str) -> None:
        self.url = url
        self.queue = SqsQueue(settings(url))
        self._sqs = cloud.sqs

    async def put(self, *texts: str) -> None:
        for text in texts:
            await self._sqs.send_message(QueueUrl=self.url, MessageBody=text)

    async def receive(self, visible_s: int = 60) -> list[Message]:
        return await self.queue.receive(visible_s)


@pytest.fixture
async def owned(cloud: Cloud) -> AsyncIterator[Owned]:
    made = await cloud.sqs.create_queue(
        QueueName=f"read-{time.time_ns()}", Attributes={"MessageRetentionPeriod": "1234"}
    )
    owned = Owned(cloud, made["QueueUrl"])
    yield owned
    await owned.queue.aclose()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


async def test_it_tells_how_long_it_keeps_messages(owned: Owned) -> None:
    assert await owned.queue.retention_s() == 1234


async def test_it_tells_how_often_a_message_may_be_received(cloud: Cloud, owned: Owned) -> None:
    assert await owned.queue.receipts_most() is None
    await cloud.redrive(owned.url, receipts=3)
    assert await owned.queue.receipts_most() == 3


async def test_at_most_ten_come_at_once_the_oldest_first_and_to_one_reader(owned: Owned) -> None:
    await owned.put(*(str(n) for n in range(12)))
    first = await owned.receive()
    assert [message.text for message in first] == [str(n) for n in range(10)]
    assert not any(message.again for message in first)
    assert [message.text for message in await owned.receive()] == ["10", "11"]
    assert await owned.receive() == []


async def test_what_was_deleted_is_gone_and_what_was_given_back_comes_again(owned: Owned) -> None:
    await owned.put("gone", "back")
    gone, back = await owned.receive()
    await owned.queue.delete([gone])
    await owned.queue.hold([back], 0)
    (again,) = await owned.receive()
    assert (again.id, again.text, again.again) == (back.id, "back", True)


async def test_what_is_held_is_kept_from_others_for_longer(owned: Owned) -> None:
    await owned.put("mine")
    (mine,) = await owned.receive(visible_s=1)
    await owned.queue.hold([mine], 60)
    assert await owned.receive() == []  # after two seconds


async def test_a_message_that_cannot_be_deleted_is_no_error(receiver: Receiver) -> None:
    failed = b'{"Failed":[{"Id":"0","Code":"InternalError","SenderFault":false}],"Successful":[]}'
    receiver.answers = [status(200, failed)]
    queue = SqsQueue(settings(receiver.url))
    with capture_logs() as lines:
        await queue.delete([Message("1", "r", "{}")])
    await queue.aclose()
    assert [(line["event"], line["count"]) for line in lines] == [("messages not deleted", 1)]


@pytest.mark.parametrize(
    ("code", "body", "is_final"),
    [
        (403, b'{"__type":"AccessDenied","message":"no"}', True),
        (400, b'{"__type":"QueueDoesNotExist","message":"no"}', True),
        (400, b'{"__type":"RequestThrottled","message":"slowly"}', False),
        (500, b'{"__type":"InternalError","message":"oh"}', False),
    ],
)
async def test_only_what_somebody_must_change_keeps_a_relay_from_starting(
    receiver: Receiver, code: int, body: bytes, is_final: bool
) -> None:
    receiver.answers = [status(code, body), status(code, body)]
    queue = SqsQueue(settings(receiver.url))
    with pytest.raises(SettingsError if is_final else Unavailable, match="SQS: An error occurred"):
        await queue.retention_s()
    with pytest.raises(Unavailable, match="SQS: An error occurred"):
        await queue.receive(60)
    await queue.aclose()


async def test_no_server_is_no_answer() -> None:
    queue = SqsQueue(settings("http://127.0.0.1:1/1/q"))
    with pytest.raises(Unavailable, match="SQS: Could not connect"):
        await queue.retention_s()
    await queue.aclose()


async def test_credentials_come_from_the_environment_where_the_settings_have_none(
    owned: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = SqsQueue(settings(owned.url, ingest_sqs_key="", ingest_sqs_secret=""))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert await queue.retention_s() == 1234
    await queue.aclose()


async def test_no_credentials_anywhere_keep_a_relay_from_starting(
    owned: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    queue = SqsQueue(settings(owned.url, ingest_sqs_key="", ingest_sqs_secret=""))
    with pytest.raises(SettingsError, match="RELAY_INGEST_SQS_URL: SQS: Unable to locate cred"):
        await queue.retention_s()
    await queue.aclose()


async def test_without_the_library_a_queue_is_refused_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec

    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == "aiobotocore" else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(SettingsError, match=r"RELAY_INGEST_SQS_URL needs .* install relay\[aws\]"):
        ingress.open_queue(settings("http://127.0.0.1:1/1/q"))
