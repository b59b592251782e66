"""The SNS sink: deliveries as notifications of the owner's topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay.egress import aws
from relay.egress.aws import BatchSink, Client, Item, fifo_fields, is_fifo
from relay.egress.sinks import Result
from relay.forwarded import Network
from relay.hooks import Hook


class SnsSink(BatchSink):
    """Publishes to topics; a FIFO topic gets the call as message group."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__("sns", networks, _publish)

    async def check(self, hook: Hook) -> dict[str, Any]:
        """Ask for a topic and return what is known of it; raises AWS's errors."""
        client = await self.clients.get(hook.aws)
        answer = await client.get_topic_attributes(TopicArn=hook.sns_topic_arn)
        return {"topic_arn": answer["Attributes"]["TopicArn"]}


async def _publish(client: Client, hook: Hook, batch: Sequence[Item]) -> Sequence[Result]:
    entries = [
        {"Id": str(place), "Message": item.text}
        | (fifo_fields(item.delivery) if is_fifo(hook) else {})
        for place, item in enumerate(batch)
    ]
    answer = await client.publish_batch(
        TopicArn=hook.sns_topic_arn, PublishBatchRequestEntries=entries
    )
    return aws.results_of(batch, answer)
