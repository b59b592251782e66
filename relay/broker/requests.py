"""Requests to Redis, each waiting a limited time for its answer, a limited number at once.

``Commands`` is what the rest of the broker speaks to. What carries its requests is a ``Carrier``:
one ``link``, or in a Cluster one per shard (``cluster_links``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from relay.broker.resp import pack
from relay.broker.scripts import Script
from relay.broker.slots import first_key, key_slot
from relay.errors import Unavailable

if TYPE_CHECKING:
    from relay.broker.link import Link

_numbers = count(1)


class Request:
    """A command and who waits for its reply.

    ``slot`` is that of its first key; ``number`` says which of two was given first; ``repeatable``
    that running it twice does what running it once does; ``asking`` that a Cluster's node must be
    told that the slot is on its way to it; ``link`` and ``sent_at`` (loop time) to whom and when it
    was sent, ``sent_at`` None while it certainly has not happened; ``homeless`` that no server is
    known to which it could be sent.
    """

    __slots__ = (
        "asking", "command", "deadline", "homeless", "link", "number", "outcome", "repeatable",
        "reply", "sent_at", "slot",
    )  # fmt: skip

    def __init__(
        self,
        command: bytes,
        reply: asyncio.Future[Any],
        deadline: float,
        *,
        repeatable: bool,
        slot: int | None = None,
    ) -> None:
        self.command = command
        self.reply = reply
        self.deadline = deadline
        self.repeatable = repeatable
        self.slot = slot
        self.number = next(_numbers)
        self.asking = False
        self.homeless = False
        self.outcome: Any = None  # while replicas are waited for
        self.sent_at: float | None = None
        self.link: Link | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be learnt from it any more.

        One that whoever waited for it gave up after it was sent still shows, when its time has
        come, whether the link is dead.
        """
        return self.reply.done() and not (self.reply.cancelled() and self.sent_at is not None)

    def fail(
        self, why: str, *, reason: str | None = None, retry_after: float | None = None
    ) -> None:
        """Answer that it was not done, or that nobody knows."""
        if not self.reply.done():
            self.reply.set_exception(Unavailable(why, reason=reason, retry_after=retry_after))


class Carrier(Protocol):
    """What takes requests to Redis and answers them, those of one slot in the order given."""

    @property
    def is_connected(self) -> bool:
        """Tell whether every connection that is needed stands."""
        ...

    @property
    def load(self) -> int:
        """How many requests are with it."""
        ...

    async def start(self) -> None:
        """Connect; raises ``Unavailable``."""
        ...

    async def aclose(self) -> None:
        """Disconnect for good."""
        ...

    def put(self, request: Request) -> None:
        """Take a request; raises ``Unavailable`` when there is nobody to give it to."""
        ...


class Commands:
    """Commands and scripts in Redis, through a carrier.

    ``timeout_s`` bounds the wait of each request, ``bound`` how many may wait at once. ``routed``
    says that requests go by the slot of their first key.
    """

    def __init__(
        self, carrier: Carrier, *, timeout_s: float, bound: int, routed: bool = False
    ) -> None:
        self._carrier = carrier
        self._timeout_s = timeout_s
        self._bound = bound
        self._routed = routed
        # All that wait, and some that no longer do, in the order in which they will have waited
        # too long.
        self._waiting: deque[Request] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def is_connected(self) -> bool:
        """Tell whether every connection that is needed stands."""
        return self._carrier.is_connected

    async def start(self) -> None:
        """Connect; raises ``Unavailable``."""
        await self._carrier.start()

    async def aclose(self) -> None:
        """Disconnect; whoever still waits gets ``Unavailable``."""
        self._closed = True
        await self._carrier.aclose()
        self.hang_up()

    def hang_up(self) -> None:
        """Wait for no answer any more: ``Unavailable`` for whoever does, and whoever will."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        for request in self._waiting:
            request.fail("the relay is stopping")

    async def request(
        self, *command: bytes | str | int, repeatable: bool = True, slot: int | None = None
    ) -> Any:
        """Run a command and return its reply; it takes its place before the first await.

        ``repeatable`` says that running it twice does what running it once does; ``slot`` whose
        server a command without a key is meant for. Raises ``Unavailable``: when the outcome is
        unknown, or when Redis refused or is away.
        """
        if self._closed:
            raise Unavailable("the relay is stopping")
        if self._carrier.load >= self._bound:
            raise Unavailable("too much waits for Redis already: try again later")
        loop = asyncio.get_running_loop()
        if not self._routed:
            slot = None
        elif (key := first_key(command)) is not None:
            slot = key_slot(key)
        request = Request(
            pack(command),
            loop.create_future(),
            loop.time() + self._timeout_s,
            repeatable=repeatable,
            slot=slot,
        )
        try:
            self._carrier.put(request)
        except Unavailable:
            await asyncio.sleep(0)  # who tries again and again must not stop everything else
            raise
        self._await_expiry(request)
        return await request.reply

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        *arguments: bytes | str | int,
        repeatable: bool = True,
    ) -> Any:
        """Run a script, as ``request``; all its keys lie in one slot."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        return await self.request(*command, repeatable=repeatable)

    def _await_expiry(self, request: Request) -> None:
        while self._waiting and self._waiting[0].is_over:
            self._waiting.popleft()
        self._waiting.append(request)
        if self._expiry is None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_at(request.deadline, self._expire)

    def _too_late(self, request: Request) -> str:
        late = f"Redis did not answer within {self._timeout_s:g} s"
        if request.homeless:
            return f"{late}: no server of the Cluster serves the slot"
        why = None if request.link is None else request.link.hindrance
        return late if why is None else f"{late}: {why}"

    def _expire(self) -> None:
        """Fail the requests that have waited too long, and look again when the next one will."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        unanswered: dict[Link, float] = {}
        while self._waiting:
            request = self._waiting[0]
            if not request.is_over:
                if request.deadline > now:
                    break
                request.fail(self._too_late(request))
                if request.link is not None and request.sent_at is not None:
                    unanswered[request.link] = request.sent_at
            self._waiting.popleft()
        self._expiry = None
        if self._waiting:
            self._expiry = loop.call_at(self._waiting[0].deadline, self._expire)
        for link, sent_at in unanswered.items():
            link.unanswered_since(sent_at)
