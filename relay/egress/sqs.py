"""The SQS sink: deliveries as messages of the owner's queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay.egress import aws
from relay.egress.aws import BatchSink, Client, Item, fifo_fields, is_fifo
from relay.egress.sinks import Result
from relay.forwarded import Network
from relay.hooks import Hook


class SqsSink(BatchSink):
    """Sends to queues; a FIFO queue gets the call as message group."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__("sqs", networks, _send)

    async def check(self, hook: Hook) -> dict[str, Any]:
        """Ask for a queue and return what is known of it; raises AWS's errors."""
        client = await self.clients.get(hook.aws)
        answer = await client.get_queue_attributes(
            QueueUrl=hook.sqs_queue_url, AttributeNames=["QueueArn"]
        )
        return {"queue_arn": answer["Attributes"]["QueueArn"]}


async def _send(client: Client, hook: Hook, batch: Sequence[Item]) -> Sequence[Result]:
    entries = [
        {"Id": str(place), "MessageBody": item.text}
        | (fifo_fields(item.delivery) if is_fifo(hook) else {})
        for place, item in enumerate(batch)
    ]
    answer = await client.send_message_batch(QueueUrl=hook.sqs_queue_url, Entries=entries)
    return aws.results_of(batch, answer)
