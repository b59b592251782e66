"""What SQS and SNS share: clients of AWS, batches of ten, and what AWS's errors mean.

Each queue or topic has a lane of its own. Deliveries that are sent at the same time leave as one
batch; a FIFO lane has one batch under way at a time, so that it keeps the order.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions as aws_errors

from relay import logs, wire
from relay.egress import guard
from relay.egress.sinks import ANSWER_BYTES, Checked, Delivery, Result
from relay.forwarded import Network
from relay.hooks import Aws, Hook, Timestamps
from relay.retry import REQUEST_LIMIT_S, Outcome
from relay.tasks import Tasks

log = logs.get(__name__)

MESSAGE_BYTES: Final = 262_144
"""The longest message, and the longest batch, that every queue and topic takes."""
BATCH: Final = 10
LANE_BATCHES: Final = 4
"""Batches of one lane under way at once, unless it keeps the order."""
MOST_CLIENTS: Final = 200
ROLE_LIFE_S: Final = 3600
ROLE_SPARE_S: Final = 300
"""How long before its end a role's session is replaced."""
GROUP_CHARACTERS: Final = 128

Client = Any
"""aiobotocore makes its clients' methods while it runs, so there is no type for them."""

_TEMPORARY: Final = (
    "Throttl", "TooManyRequests", "RequestLimitExceeded", "BandwidthLimit", "SlowDown", "OverLimit",
    "ServiceUnavailable", "InternalFailure", "InternalError", "RequestTimeout", "ExpiredToken",
)  # fmt: skip
"""Parts of the codes of errors that go away by themselves."""


# -- messages -------------------------------------------------------------------------------------


def message(hook: Hook, delivery: Delivery) -> str:
    """Return the text that Stream's helpers read: base64 of the JSON, or of its gzip."""
    body = delivery.body
    if hook.timestamps is Timestamps.NANOSECONDS:
        body = wire.nanosecond_times(body)
    if hook.gzip:
        body = gzip.compress(body, mtime=0)
    return base64.b64encode(body).decode()


def fifo_fields(hook: Hook, delivery: Delivery) -> dict[str, str]:
    """Return where a delivery stands in a FIFO queue, in its call's order and once; else nothing.

    The id is the delivery's: an event's id is its sender's choice, and two senders who choose alike
    must not lose an event of theirs.
    """
    if not hook.is_fifo:
        return {}
    group = delivery.cid
    if len(group) > GROUP_CHARACTERS:
        group = sha256(group.encode()).hexdigest()
    return {"MessageGroupId": group, "MessageDeduplicationId": delivery.delivery_id}


# -- errors ---------------------------------------------------------------------------------------


def failure(error: Exception) -> Result:
    """Return what an error of AWS's client means."""
    if guard.is_closed(error):
        return _failed(Outcome.REFUSED, str(guard.ClosedAddress()))
    match error:
        case aws_errors.ClientError():
            told = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return refused(str(told.get("Code", "")), str(told.get("Message", "")), status)
        case aws_errors.ConnectTimeoutError() | aws_errors.ReadTimeoutError() | TimeoutError():
            return _failed(Outcome.TIMEOUT, str(error) or "no answer in time")
        case aws_errors.HTTPClientError() | aws_errors.ConnectionError() | OSError():
            return _failed(Outcome.NETWORK, str(error))
    return _failed(Outcome.REFUSED, str(error))


def refused(code: str, text: str, status: int | None, *, ours: bool = True) -> Result:
    """Return what an error code of AWS means; ``ours``: AWS says that the sender is at fault."""
    temporary = not ours or any(part in code for part in _TEMPORARY) or (status or 0) >= 500
    outcome = Outcome.RETRYABLE if temporary else Outcome.REFUSED
    return _failed(outcome, f"{code}: {text}", status)


def _failed(outcome: Outcome, why: str, status: int | None = None) -> Result:
    return Result(outcome=outcome, latency_s=0.0, status=status, answer=why.encode()[:ANSWER_BYTES])


def _fault(error: Exception) -> Result:
    """Return what a fault of ours means: a failed attempt."""
    return _failed(Outcome.NETWORK, f"the relay failed: {type(error).__name__}")


# -- clients --------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    client: Client
    stack: AsyncExitStack
    until: float
    """When its credentials end, on the monotonic clock."""


class Clients:
    """The clients of one service, by what they are made of; each is opened once and kept."""

    def __init__(self, service: str, networks: Sequence[Network]) -> None:
        self._service = service
        self._config = AioConfig(
            connect_timeout=REQUEST_LIMIT_S,
            read_timeout=REQUEST_LIMIT_S,
            retries={"total_max_attempts": 1},  # the table of docs/delivery.md decides
            proxies={},
            max_pool_connections=50,
            connector_args={"socket_factory": guard.sockets(networks)},
        )
        self._opened: dict[Aws, _Opened] = {}
        self._locks: dict[Aws, asyncio.Lock] = {}
        self._retired: deque[tuple[float, AsyncExitStack]] = deque()

    async def get(self, aws: Aws) -> Client:
        """Return a client for a queue or topic; those of one account share theirs."""
        key = aws._replace(target="")
        if (client := self._usable(key)) is not None:
            return client
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (client := self._usable(key)) is not None:
                return client
            self._retire(key)
            opened = self._opened[key] = await self._open(key)
            if len(self._opened) > MOST_CLIENTS:
                oldest = next(iter(self._opened))
                self._retire(oldest)
                self._locks.pop(oldest, None)
        await self._close_retired(time.monotonic())
        return opened.client

    async def aclose(self) -> None:
        """Let go of every connection."""
        for key in list(self._opened):
            self._retire(key)
        await self._close_retired(float("inf"))

    def _usable(self, key: Aws) -> Client | None:
        found = self._opened.get(key)
        return None if found is None or found.until <= time.monotonic() else found.client

    def _retire(self, key: Aws) -> None:
        """Forget a client; it is closed once nothing can be under way with it."""
        if (found := self._opened.pop(key, None)) is not None:
            self._retired.append((time.monotonic() + 2 * REQUEST_LIMIT_S, found.stack))

    async def _close_retired(self, now_s: float) -> None:
        while self._retired and self._retired[0][0] <= now_s:
            await self._retired.popleft()[1].aclose()

    async def _open(self, aws: Aws) -> _Opened:
        async with AsyncExitStack() as stack:
            until, token = float("inf"), None
            key, secret = aws.key or None, aws.secret or None
            if aws.role_arn:
                until = time.monotonic() + ROLE_LIFE_S - ROLE_SPARE_S
                key, secret, token = await self._assume(aws)
            client = await stack.enter_async_context(
                self._create(self._service, aws, key, secret, token)
            )
            return _Opened(client, stack.pop_all(), until)

    async def _assume(self, aws: Aws) -> tuple[str, str, str]:
        """Return the credentials of a session in the hook's role."""
        base = self._create("sts", aws, aws.key or None, aws.secret or None, None)
        async with base as sts:
            answer = await sts.assume_role(
                RoleArn=aws.role_arn, RoleSessionName="relay", DurationSeconds=ROLE_LIFE_S
            )
        given = answer["Credentials"]
        return given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"]

    def _create(
        self, service: str, aws: Aws, key: str | None, secret: str | None, token: str | None
    ) -> Any:
        return get_session().create_client(
            service,
            region_name=aws.region,
            endpoint_url=aws.endpoint_url or None,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=self._config,
        )


# -- lanes ----------------------------------------------------------------------------------------


class Item(NamedTuple):
    """One delivery's message on its way, and who waits for its result."""

    text: str
    delivery: Delivery
    result: asyncio.Future[Result]


class Service(Protocol):
    """What differs between SQS and SNS."""

    name: str

    async def send(self, client: Client, hook: Hook, batch: Sequence[Item]) -> Sequence[Result]:
        """Send a batch of at most ten and return each one's result."""
        ...

    async def ask(self, client: Client, hook: Hook) -> dict[str, str]:
        """Ask for the queue or topic itself and return what is known of it."""
        ...


class _Lane:
    """What waits for one queue or topic. Whoever calls ``send`` bounds how many wait."""

    def __init__(self, batches: int) -> None:
        self.waiting: deque[Item] = deque()
        self.free = batches

    def take(self) -> list[Item]:
        """Return the next batch: at most ten messages that together are not too long."""
        batch: list[Item] = []
        size = 0
        while self.waiting and len(batch) < BATCH:
            item = self.waiting[0]
            if not item.result.done():
                size += len(item.text)
                if batch and size > MESSAGE_BYTES:
                    break
                batch.append(item)
            self.waiting.popleft()
        return batch


class BatchSink:
    """A sink that sends in batches over AWS's API."""

    def __init__(self, service: Service, networks: Sequence[Network]) -> None:
        self.clients = Clients(service.name, networks)
        self._service = service
        self._lanes: dict[Hook, _Lane] = {}
        self._tasks = Tasks(service.name)

    async def send(self, hook: Hook, delivery: Delivery, limit_s: float) -> Result:
        """Try once. Never raises but ``CancelledError``; ends within ``limit_s`` seconds."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                result = await self._send(hook, delivery)
        except TimeoutError:
            result = _failed(Outcome.TIMEOUT, f"no answer within {limit_s:.3g} s")
        except Exception as error:
            log.error("delivery failed unexpectedly", hook=hook.id, exc_info=error)
            result = _fault(error)
        return msgspec.structs.replace(result, latency_s=time.perf_counter() - began)

    async def _send(self, hook: Hook, delivery: Delivery) -> Result:
        text = message(hook, delivery)
        if len(text) > MESSAGE_BYTES:
            return _failed(
                Outcome.REFUSED,
                f"the message has {len(text)} bytes, {MESSAGE_BYTES} are possible: compression "
                "makes it shorter",
            )
        item = Item(text, delivery, asyncio.get_running_loop().create_future())
        self._queue(hook, item)
        return await item.result

    async def check(self, hook: Hook) -> Checked:
        """Ask whether a hook's queue or topic is there, with the hook's credentials."""
        try:
            async with asyncio.timeout(REQUEST_LIMIT_S):
                client = await self.clients.get(hook.aws)
                return Checked(None, await self._service.ask(client, hook))
        except (aws_errors.BotoCoreError, aws_errors.ClientError, OSError) as error:
            return Checked(failure(error).answer.decode("utf-8", "replace"), {})

    async def aclose(self) -> None:
        """Let go of every connection."""
        await self._tasks.aclose()
        await self.clients.aclose()

    def _queue(self, hook: Hook, item: Item) -> None:
        lane = self._lanes.get(hook)
        if lane is None:
            lane = self._lanes[hook] = _Lane(1 if hook.is_fifo else LANE_BATCHES)
        lane.waiting.append(item)
        if lane.free:
            lane.free -= 1
            self._tasks.spawn(self._work_off(hook, lane))

    async def _work_off(self, hook: Hook, lane: _Lane) -> None:
        """Send what waits in a lane until nothing does; a lane that is at rest is forgotten."""
        await asyncio.sleep(0)  # what is sent in the same turn of the loop leaves together
        try:
            while batch := lane.take():
                results = await self._try(hook, batch)
                for item, result in zip(batch, results, strict=True):
                    if not item.result.done():
                        item.result.set_result(result)
        finally:
            lane.free += 1
            if lane.free == (1 if hook.is_fifo else LANE_BATCHES):
                self._lanes.pop(hook, None)

    async def _try(self, hook: Hook, batch: Sequence[Item]) -> Sequence[Result]:
        try:
            async with asyncio.timeout(REQUEST_LIMIT_S):
                client = await self.clients.get(hook.aws)
                return await self._service.send(client, hook, batch)
        except (aws_errors.BotoCoreError, aws_errors.ClientError, OSError) as error:
            return [failure(error)] * len(batch)
        except Exception as error:
            log.error("delivery failed unexpectedly", hook=hook.id, exc_info=error)
            return [_fault(error)] * len(batch)


def results_of(batch: Sequence[Item], answer: dict[str, Any]) -> list[Result]:
    """Return each message's result from the answer to a batch, whose ids are the places in it."""
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    lost = refused("InternalError", "the answer does not mention this message", status)
    results = [lost] * len(batch)
    for done in answer.get("Successful", ()):
        text = f"message {done.get('MessageId', '')}".encode()
        results[int(done["Id"])] = Result(
            outcome=Outcome.DELIVERED, latency_s=0.0, status=status, answer=text[:ANSWER_BYTES]
        )
    for bad in answer.get("Failed", ()):
        results[int(bad["Id"])] = refused(
            bad.get("Code", ""), bad.get("Message", ""), status, ours=bad.get("SenderFault", False)
        )
    return results
