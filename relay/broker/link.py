"""Requests to Redis over one connection: they leave in order and are answered in order.

The requests of one event-loop turn leave in one write. When the connection is lost, or Redis says
that it cannot serve now, everything unanswered is sent again from the head and in the same order,
except what must not run twice. Each request waits a limited time and a limited number waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from relay import logs
from relay.broker.keeper import Keeper
from relay.broker.resp import Address, Command, Connection, ReplyError, pack
from relay.broker.scripts import Script
from relay.errors import Unavailable

log = logs.get(__name__)

WRITE_BYTES: Final = 65_536
"""Joined into one write; what the socket does not take then waits here, where it can expire."""

COMPLAIN_S: Final = 1.0

_NOT_NOW: Final = ("NOSCRIPT", "READONLY", "LOADING", "MASTERDOWN", "BUSY")
"""Replies by which nothing was done, and which another connection may well not get."""


class _Request:
    """A command and who waits for its reply."""

    __slots__ = ("command", "deadline", "repeatable", "reply", "sent_at")

    def __init__(
        self, command: bytes, reply: asyncio.Future[Any], deadline: float, *, repeatable: bool
    ) -> None:
        self.command = command
        self.reply = reply
        self.deadline = deadline
        self.repeatable = repeatable
        self.sent_at: float | None = None


class Link:
    """One connection for requests, with the scripts they run.

    ``timeout_s`` bounds the wait of each request, ``bound`` how many may wait at once.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        *,
        scripts: Sequence[Script],
        timeout_s: float,
        bound: int,
        changed: Callable[[], None],
    ) -> None:
        self._scripts = scripts
        self._timeout_s = timeout_s
        self._bound = bound
        self._keeper = Keeper(address, name, self, changed)
        self._queue: deque[_Request] = deque()
        self._sent: deque[_Request] = deque()
        # All that wait, and some that no longer do, in the order in which they will have waited
        # too long.
        self._waiting: deque[_Request] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._flush_is_due = False
        self._closed = False
        self._complained_at = -COMPLAIN_S
        self._server_id: tuple[str, str] | None = None

    @property
    def is_connected(self) -> bool:
        """Tell whether the connection stands."""
        return self._keeper.connection is not None

    async def start(self) -> None:
        """Connect; raises ``Unavailable``."""
        await self._keeper.start()

    async def aclose(self) -> None:
        """Disconnect; whoever still waits gets ``Unavailable``."""
        self._closed = True
        await self._keeper.aclose()
        if self._expiry is not None:
            self._expiry.cancel()
        for request in self._waiting:
            _fail(request, "the relay is stopping")

    async def request(self, *command: bytes | str | int, repeatable: bool = True) -> Any:
        """Run a command and return its reply; it takes its place before the first await.

        ``repeatable`` says that running it twice does what running it once does. Raises
        ``Unavailable``: when the outcome is unknown, or when Redis refused.
        """
        if self._closed:
            raise Unavailable("the relay is stopping")
        if len(self._queue) + len(self._sent) >= self._bound:
            raise Unavailable("too much waits for Redis already: try again later")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        request = _Request(pack(command), loop.create_future(), deadline, repeatable=repeatable)
        self._queue.append(request)
        self._await_expiry(request)
        if not self._flush_is_due:
            self._flush_is_due = True
            loop.call_soon(self._flush)
        return await request.reply

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        *arguments: bytes | str | int,
        repeatable: bool = True,
    ) -> Any:
        """Run a script, as ``request``."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
        return await self.request(*command, repeatable=repeatable)

    # -- writing --------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_is_due = False
        connection = self._keeper.connection
        now = asyncio.get_running_loop().time()
        while connection is not None and connection.is_writable and self._queue:
            commands: list[bytes] = []
            size = 0
            while self._queue and size < WRITE_BYTES:
                request = self._queue.popleft()
                if request.reply.done():
                    continue  # nobody waits any more, and it has not happened
                request.sent_at = now
                self._sent.append(request)
                commands.append(request.command)
                size += len(request.command)
            if commands:
                connection.write(b"".join(commands))

    # -- what the keeper tells ------------------------------------------------------------------

    def preamble(self) -> tuple[Sequence[Command], Sequence[Command]]:
        """Load the scripts, and end what may be left of the last connection.

        A server that was frozen may still have its commands to read: they must not run between
        those that are sent again.
        """
        load: list[Command] = [("SCRIPT", "LOAD", script.text) for script in self._scripts]
        if self._server_id is None:
            return load, []
        number, address = self._server_id
        return load, [("CLIENT", "KILL", "ID", number, "ADDR", address)]

    def on_open(self, connection: Connection) -> None:
        """Send what waits."""
        self._server_id = connection.server_id
        self._flush()

    def on_writable(self) -> None:
        """Send more of what waits."""
        self._flush()

    def on_reply(self, reply: Any) -> None:
        """Answer the request that was sent first."""
        if not self._sent:
            self._keeper.drop("a reply that nobody asked for")
            return
        request = self._sent.popleft()
        if not isinstance(reply, ReplyError):
            if not request.reply.done():
                request.reply.set_result(reply)
        elif str(reply).startswith(_NOT_NOW):
            request.sent_at = None
            self._sent.appendleft(request)
            self._keeper.drop(str(reply))
        elif not request.reply.done():
            request.reply.set_exception(self._refusal(str(reply)))

    def _refusal(self, reply: str) -> Unavailable:
        """Return the error for what Redis will not do; logged once a second, not per request."""
        now = asyncio.get_running_loop().time()
        if now - self._complained_at >= COMPLAIN_S:
            self._complained_at = now
            log.error("redis refused a command", reason=reply)
        if reply.startswith("OOM"):
            return Unavailable("Redis is out of memory", reason="redis_out_of_memory")
        return Unavailable("Redis refused the command", reason="redis_refused")

    def on_closed(self) -> None:
        """Take back what was sent and not answered, in order, to send it again."""
        while self._sent:
            request = self._sent.pop()
            if request.reply.done():
                continue
            if request.sent_at is not None and not request.repeatable:
                _fail(request, "the connection to Redis was lost, the outcome is unknown")
                continue
            request.sent_at = None
            self._queue.appendleft(request)

    # -- waiting too long -----------------------------------------------------------------------

    def _await_expiry(self, request: _Request) -> None:
        while self._waiting and self._waiting[0].reply.done():
            self._waiting.popleft()
        self._waiting.append(request)
        if self._expiry is None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_at(request.deadline, self._expire)

    def _expire(self) -> None:
        """Fail the requests that have waited too long, and look again when the next one will."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        unanswered: float | None = None
        while self._waiting:
            request = self._waiting[0]
            if not request.reply.done():
                if request.deadline > now:
                    break
                _fail(request, f"Redis did not answer within {self._timeout_s:g} s")
                unanswered = request.sent_at
            self._waiting.popleft()
        while self._queue and self._queue[0].reply.done():
            self._queue.popleft()
        self._expiry = None
        if self._waiting:
            self._expiry = loop.call_at(self._waiting[0].deadline, self._expire)
        connection = self._keeper.connection
        if connection is not None and unanswered is not None and connection.heard_at < unanswered:
            self._keeper.drop("Redis is silent")


def _fail(request: _Request, why: str) -> None:
    if not request.reply.done():
        request.reply.set_exception(Unavailable(why))
