"""SQS: deliveries as messages of the owner's queue."""

from __future__ import annotations

from collections.abc import Sequence

from relay.egress import aws
from relay.egress.aws import Client, Item
from relay.egress.sinks import Result
from relay.hooks import Hook


class Sqs:
    """Sends to queues; a FIFO queue gets the call as message group."""

    name = "sqs"

    async def send(self, client: Client, hook: Hook, batch: Sequence[Item]) -> Sequence[Result]:
        """Send a batch of at most ten and return each one's result."""
        entries = [
            {"Id": str(place), "MessageBody": item.text, **aws.fifo_fields(hook, item.delivery)}
            for place, item in enumerate(batch)
        ]
        answer = await client.send_message_batch(QueueUrl=hook.sqs_queue_url, Entries=entries)
        return aws.results_of(batch, answer)

    async def ask(self, client: Client, hook: Hook) -> dict[str, str]:
        """Ask for the queue itself and return what is known of it."""
        answer = await client.get_queue_attributes(
            QueueUrl=hook.sqs_queue_url, AttributeNames=["QueueArn"]
        )
        return {"queue_arn": answer["Attributes"]["QueueArn"]}
