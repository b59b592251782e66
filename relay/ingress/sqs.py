"""A queue of SQS, as ``SqsDoor`` reads it. Loaded only where one is configured."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions as aws_errors

from relay import hook_fields, logs, wire
from relay.errors import Unavailable
from relay.ingress.sqs_door import Message
from relay.settings import Settings, SettingsError

log = logs.get(__name__)

BATCH: Final = 10
WAIT_S: Final = 2
"""How long SQS waits for a message before it answers that there is none. It could wait for 20 s,
but a process that stops has to wait as well."""
ANSWER_S: Final = 10.0

_UNSET: Final = (
    aws_errors.NoCredentialsError, aws_errors.PartialCredentialsError, aws_errors.ProfileNotFound,
)  # fmt: skip


class SqsQueue:
    """The queue of the settings. Credentials are theirs, or those of the environment."""

    def __init__(self, settings: Settings) -> None:
        self._url = url = settings.ingest_sqs_url
        self._made: dict[str, Any] = {
            "region_name": settings.ingest_sqs_region or hook_fields.region_of_queue(url),
            "endpoint_url": hook_fields.endpoint_of_queue(url) or None,
            "aws_access_key_id": settings.ingest_sqs_key or None,
            "aws_secret_access_key": settings.ingest_sqs_secret or None,
            "config": AioConfig(
                connect_timeout=ANSWER_S,
                read_timeout=WAIT_S + ANSWER_S,
                retries={"total_max_attempts": 1},  # whoever asks has the patience
            ),
        }
        self._client: Any = None
        self._stack = AsyncExitStack()

    async def retention_s(self) -> float:
        """Return how long the queue keeps a message, in seconds."""
        name = "MessageRetentionPeriod"
        return float((await self._attributes(name))[name])

    async def receipts_most(self) -> int | None:
        """Return the redrive policy's ``maxReceiveCount``, None without one."""
        name = "RedrivePolicy"
        policy = (await self._attributes(name)).get(name)
        return int(wire.decode_object(policy)["maxReceiveCount"]) if policy else None

    async def _attributes(self, name: str) -> dict[str, str]:
        """Return the attribute of that name, where the queue has it."""
        try:
            answer = await self._ask("get_queue_attributes", AttributeNames=[name])
        except Unavailable as error:
            if error.__cause__ is not None and _is_final(error.__cause__):
                raise SettingsError(f"RELAY_INGEST_SQS_URL: {error.message}") from None
            raise
        found: dict[str, str] = answer.get("Attributes", {})
        return found

    async def receive(self, visible_s: int) -> list[Message]:
        """Wait up to ``WAIT_S`` for messages and return at most ten, the oldest first."""
        answer = await self._ask(
            "receive_message",
            limit_s=WAIT_S + ANSWER_S,
            MaxNumberOfMessages=BATCH,
            WaitTimeSeconds=WAIT_S,
            VisibilityTimeout=visible_s,
            MessageSystemAttributeNames=["SentTimestamp", "ApproximateReceiveCount"],
        )
        found = sorted(answer.get("Messages", ()), key=lambda one: _number(one, "SentTimestamp"))
        return [
            Message(
                one["MessageId"],
                one["ReceiptHandle"],
                one["Body"],
                _number(one, "ApproximateReceiveCount") > 1,
            )
            for one in found
        ]

    async def delete(self, messages: Sequence[Message]) -> None:
        """Delete messages; one that cannot be comes again."""
        answer = await self._ask("delete_message_batch", Entries=_entries(messages))
        if failed := answer.get("Failed"):
            log.info("messages not deleted", count=len(failed), code=failed[0].get("Code"))

    async def hold(self, messages: Sequence[Message], visible_s: int) -> None:
        """Let nobody else have messages for so long; one that cannot be held comes again."""
        entries = [entry | {"VisibilityTimeout": visible_s} for entry in _entries(messages)]
        await self._ask("change_message_visibility_batch", Entries=entries)

    async def aclose(self) -> None:
        """Let go of every connection."""
        self._client = None
        await self._stack.aclose()

    async def _ask(
        self, operation: str, limit_s: float = ANSWER_S, **fields: object
    ) -> dict[str, Any]:
        """Return SQS's answer; raises ``Unavailable`` caused by AWS's error."""
        try:
            async with asyncio.timeout(limit_s):
                if self._client is None:
                    made = get_session().create_client("sqs", **self._made)
                    self._client = await self._stack.enter_async_context(made)
                call = getattr(self._client, operation)
                answer: dict[str, Any] = await call(QueueUrl=self._url, **fields)
        except (aws_errors.BotoCoreError, aws_errors.ClientError, OSError) as error:
            why = str(error) or f"no answer within {limit_s:g} s"
            raise Unavailable(f"SQS: {why}", reason="queue_unavailable") from error
        return answer


def _is_final(error: BaseException) -> bool:
    """Tell whether asking again is of no use before somebody changes something."""
    if isinstance(error, aws_errors.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        code = str(error.response.get("Error", {}).get("Code", ""))
        return status < 500 and "Throttl" not in code
    return isinstance(error, _UNSET)


def _number(message: dict[str, Any], attribute: str) -> int:
    return int(message.get("Attributes", {}).get(attribute, 0))


def _entries(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"Id": str(place), "ReceiptHandle": message.receipt}
        for place, message in enumerate(messages)
    ]
