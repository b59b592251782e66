"""AWS as moto's server speaks it over HTTP, and the owner of queues and topics there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from aiobotocore.session import get_session
from moto.server import ThreadedMotoServer

from relay.hooks import AuthType, Hook, HookType

REGION: Final = "us-east-1"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


class Cloud:
    """The owner's side: queues, topics, and what is in them."""

    def __init__(self, url: str, sqs: Any, sns: Any) -> None:
        self.url = url
        self.sqs = sqs
        self.sns = sns

    async def queue(self, name: str) -> Hook:
        fifo = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        made = await self.sqs.create_queue(QueueName=name, Attributes=fifo)
        return hook(HookType.SQS, self.url, sqs_queue_url=made["QueueUrl"])

    async def topic(self, name: str, to: Hook) -> Hook:
        fifo = {"FifoTopic": "true"} if name.endswith(".fifo") else {}
        made = await self.sns.create_topic(Name=name, Attributes=fifo)
        await self.subscribe(to.sqs_queue_url, made["TopicArn"])
        return hook(HookType.SNS, self.url, sns_topic_arn=made["TopicArn"])

    async def redrive(self, queue_url: str, receipts: int) -> None:
        """Have a queue move away what was received so often and not deleted."""
        made = await self.sqs.create_queue(QueueName="undeliverable")
        arn = await self.sqs.get_queue_attributes(
            QueueUrl=made["QueueUrl"], AttributeNames=["QueueArn"]
        )
        policy = {
            "deadLetterTargetArn": arn["Attributes"]["QueueArn"], "maxReceiveCount": receipts,
        }  # fmt: skip
        await self.sqs.set_queue_attributes(
            QueueUrl=queue_url, Attributes={"RedrivePolicy": json.dumps(policy)}
        )

    async def subscribe(self, queue_url: str, topic_arn: str, **attributes: str) -> None:
        """Let a queue have what is published to a topic."""
        arn = await self.sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
        endpoint = arn["Attributes"]["QueueArn"]
        await self.sns.subscribe(
            TopicArn=topic_arn, Protocol="sqs", Endpoint=endpoint, Attributes=attributes
        )

    async def messages(self, queue: Hook, count: int, tries: int = 10) -> list[dict[str, Any]]:
        """Take out what is in a queue, once there is so much; waits a second at each try."""
        found: list[dict[str, Any]] = []
        for _ in range(tries):
            answer = await self.sqs.receive_message(
                QueueUrl=queue.sqs_queue_url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=1 if tries > 10 else 0,
                MessageSystemAttributeNames=["All"],
            )
            for message in answer.get("Messages", []):
                found.append(message)
                await self.sqs.delete_message(
                    QueueUrl=queue.sqs_queue_url, ReceiptHandle=message["ReceiptHandle"]
                )
            if len(found) >= count:
                break
        return found


@pytest.fixture
async def cloud(moto: str) -> AsyncIterator[Cloud]:
    made = {"region_name": REGION, "endpoint_url": moto, "aws_access_key_id": "owner",
            "aws_secret_access_key": "owner"}  # fmt: skip
    async with (
        get_session().create_client("sqs", **made) as sqs,
        get_session().create_client("sns", **made) as sns,
    ):
        yield Cloud(moto, sqs, sns)


def hook(kind: HookType, url: str, **fields: Any) -> Hook:
    name = kind.value
    auth = {f"{name}_region": REGION, f"{name}_auth_type": AuthType.KEYS, f"{name}_key": "AKIA",
            f"{name}_secret": "secret"}  # fmt: skip
    return Hook(id="h", hook_type=kind, endpoint_url=url, **auth | fields)
