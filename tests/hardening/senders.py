"""Senders that insist: each gives its events ids and repeats what was not accepted, as docs say.

One kind for each door that keeps events. What a sender had accepted is in ``accepted``, in the
order in which it was sent, numbered from 1 without a hole.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from random import Random
from typing import Final, TypeVar

import httpx

from relay.errors import Unavailable
from relay.publisher import AsyncPublisher
from tests.integration.doors import event_path, post_webhook, webhook
from tests.processes import API_KEY, RelayProcess
from tests.relay_client import Client, Refused, connected

PATIENCE_S: Final = 30.0
REPEAT_AFTER_S: Final = 0.05
STREAM_TIMEOUT_S: Final = 1.0

T = TypeVar("T")
Offer = Callable[[int], Awaitable[bool]]
"""Sends the event of a number; false when it was not accepted, or not surely."""


async def insisting(step: Callable[[], Awaitable[T]], fault: type[Exception]) -> T:
    """Return what a step gives. It may fail twice: Redis may stand still longer than is waited."""
    for _ in range(2):
        with suppress(fault):
            return await step()
        await asyncio.sleep(1.0)
    return await step()


async def logged_in(stack: AsyncExitStack, relay: RelayProcess, user: str) -> Client:
    """Give a socket that is logged in, until the stack is left."""

    async def log_in() -> Client:
        return await stack.enter_async_context(connected(relay, user))

    return await insisting(log_in, AssertionError)


class Sender(ABC):
    """Sends numbered events of one call, one after the other, and insists on each.

    ``door`` is the one they go through, of ``relay``.
    """

    door: str
    pause_s = (0.001, 0.02)

    def __init__(self, relay: RelayProcess, cid: str, random: Random) -> None:
        self.relay = relay
        self.cid = cid
        self.accepted: list[int] = []
        self.refused = 0
        self.longest_s = 0.0
        self._number = 0
        self._random = random
        self._stopping = False

    @abstractmethod
    def offering(self) -> AbstractAsyncContextManager[Offer]:
        """Give the way in."""

    def start(self) -> asyncio.Task[None]:
        """Send until ``stop``, or go on with it."""
        self._stopping = False
        return asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.offering() as offer:
            while not self._stopping:
                await self._send(offer)
                await asyncio.sleep(self._random.uniform(*self.pause_s))

    def stop(self) -> None:
        """End after the event that is under way."""
        self._stopping = True

    async def _send(self, offer: Offer) -> None:
        self._number += 1
        while True:
            began = time.monotonic()
            is_accepted = await offer(self._number)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if is_accepted:
                self.accepted.append(self._number)
                return
            self.refused += 1
            await asyncio.sleep(REPEAT_AFTER_S)


class ApiSender(Sender):
    """Posts as a server."""

    door = "api"

    @asynccontextmanager
    async def offering(self) -> AsyncIterator[Offer]:
        headers = {"authorization": self.relay.token(), "stream-auth-type": "jwt"}
        async with httpx.AsyncClient(
            base_url=self.relay.base_url, timeout=PATIENCE_S, headers=headers
        ) as client:

            async def offer(number: int) -> bool:
                body = {
                    "custom": {"n": number},
                    "user_id": "jane",
                    "event_id": f"{self.cid}-{number}",
                }
                path = event_path(self.cid)
                return took(await client.post(path, params={"api_key": API_KEY}, json=body), 201)

            yield offer


class WebhookSender(Sender):
    """Posts signed webhooks; the body of a repeat is the same, which makes it one."""

    door = "webhook"
    pause_s = (0.01, 0.04)

    @asynccontextmanager
    async def offering(self) -> AsyncIterator[Offer]:
        bodies: dict[int, bytes] = {}
        async with httpx.AsyncClient(base_url=self.relay.base_url, timeout=PATIENCE_S) as client:

            async def offer(number: int) -> bool:
                body = bodies.setdefault(number, webhook(self.cid, {"n": number}))
                return took(await post_webhook(self.relay, body, client), 200)

            yield offer


def took(answer: httpx.Response, status: int) -> bool:
    """Tell whether an answer is this one; the only other there may be is 503."""
    assert answer.status_code in (status, 503), answer.text
    return answer.status_code == status


class SocketSender(Sender):
    """Sends commands on a socket that stays open throughout."""

    door = "socket"
    pause_s = (0.01, 0.04)

    @asynccontextmanager
    async def offering(self) -> AsyncIterator[Offer]:
        async with AsyncExitStack() as stack:
            client = await logged_in(stack, self.relay, "jane")

            async def offer(number: int) -> bool:
                try:
                    await client.send(self.cid, {"n": number}, event_id=f"{self.cid}-{number}")
                except Refused as error:
                    assert error.status == 503, error
                    return False
                return True

            yield offer


class StreamSender(Sender):
    """Adds to the ingest stream in Redis: accepted is what Redis took, whichever relay reads it."""

    door = "ingest"
    pause_s = (0.01, 0.04)

    def __init__(
        self, relay: RelayProcess, cid: str, random: Random, redis_url: str, prefix: str
    ) -> None:
        super().__init__(relay, cid, random)
        self._redis = redis_url, prefix

    @asynccontextmanager
    async def offering(self) -> AsyncIterator[Offer]:
        url, prefix = self._redis
        async with AsyncPublisher(url, prefix=prefix) as publisher:

            async def offer(number: int) -> bool:
                event_id = f"{self.cid}-{number}"
                try:
                    async with asyncio.timeout(STREAM_TIMEOUT_S):
                        await publisher.publish(self.cid, custom={"n": number}, event_id=event_id)
                except (Unavailable, TimeoutError):
                    return False
                return True

            yield offer
