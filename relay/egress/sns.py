"""SNS: deliveries as notifications of the owner's topic."""

from __future__ import annotations

from collections.abc import Sequence

from relay.egress import aws
from relay.egress.aws import Client, Item
from relay.egress.sinks import Result
from relay.hooks import Hook


class Sns:
    """Publishes to topics; a FIFO topic gets the call as message group."""

    name = "sns"

    async def send(self, client: Client, hook: Hook, batch: Sequence[Item]) -> Sequence[Result]:
        """Send a batch of at most ten and return each one's result."""
        entries = [
            {"Id": str(place), "Message": item.text, **aws.fifo_fields(hook, item.delivery)}
            for place, item in enumerate(batch)
        ]
        answer = await client.publish_batch(
            TopicArn=hook.sns_topic_arn, PublishBatchRequestEntries=entries
        )
        return aws.results_of(batch, answer)

    async def ask(self, client: Client, hook: Hook) -> dict[str, str]:
        """Ask for the topic itself and return what is known of it."""
        answer = await client.get_topic_attributes(TopicArn=hook.sns_topic_arn)
        return {"topic_arn": answer["Attributes"]["TopicArn"]}
