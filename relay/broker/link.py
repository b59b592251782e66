"""One connection to a Redis server for requests: they leave in order and are answered in order.

The requests of one event-loop turn leave in one write. When the connection is lost, or Redis says
that it cannot serve now, everything unanswered is sent again from the head and in the same order,
except what must not run twice. Who waits, and for how long, is for ``requests``.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from relay import logs, metrics
from relay.broker.keeper import Keeper
from relay.broker.requests import Request
from relay.broker.resp import Command, Connection, ReplyError, Route, pack
from relay.broker.scripts import Script
from relay.errors import Unavailable

log = logs.get(__name__)

WRITE_BYTES: Final = 65_536
"""Joined into one write; what the socket does not take then waits here, where it can expire."""

COMPLAIN_S: Final = 1.0
REPLICAS_SHARE: Final = 0.5

_NOT_NOW: Final = ("NOSCRIPT", "READONLY", "LOADING", "MASTERDOWN", "BUSY ", "UNBLOCKED")
"""Replies by which nothing was done, and which another connection may well not get."""
_ELSEWHERE: Final = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN")
"""Replies of a Cluster by which nothing was done, and which concern one slot."""

_MEANINGS: Final = {
    "OOM": "Redis is out of memory",
    "READONLY": "Redis is read-only",
    "NOREPLICAS": "Redis has too few replicas",
    "MISCONF": "Redis cannot write to its disk",
    "LOADING": "Redis is still loading",
    "MASTERDOWN": "Redis is a replica that has lost its primary",
    "CLUSTERDOWN": "the Cluster is down, or no server of it serves the slot",
    "NOPERM": "Redis does not give the relay's user the right to it",
}
"""What a reply means, by its first word, to whoever reads an answer or /readyz."""

_ASKING: Final = pack(("ASKING",))

Elsewhere = Callable[["Link", Request, str], None]
"""Takes a request that this server did not run, with what the server said."""


class Replicas(NamedTuple):
    """How many replicas must have a write, and how long the write waits for them."""

    wanted: int
    timeout_s: float

    @classmethod
    def of_each(cls, wanted: int, sender_s: float) -> Replicas | None:
        """Return what each write waits for; less long than its sender does."""
        return cls(wanted, sender_s * REPLICAS_SHARE) if wanted else None


class Marker(Enum):
    """A command of the link's own, among the requests that were sent."""

    ASKING = "asking"
    WAIT = "wait"


class Link:
    """A FIFO of requests to one server, with the scripts they run.

    ``replicas`` makes the requests of a write wait for replicas before they are answered;
    ``away_after_s`` is how long a lost connection is waited for before a failed attempt to connect
    fails what waits; ``elsewhere`` takes what a Cluster's node sends on to another.
    """

    def __init__(
        self,
        route: Route,
        name: str,
        *,
        scripts: Sequence[Script],
        away_after_s: float,
        changed: Callable[[], None],
        replicas: Replicas | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._scripts = scripts
        self._away_after_s = away_after_s
        self._keeper = Keeper(route, name, self, changed)
        self._replicas = replicas
        self._elsewhere = elsewhere
        self._queue: deque[Request] = deque()
        self._sent: deque[Request | Marker] = deque()
        # Done by the server, and waiting for its replicas.
        self._unsafe: deque[Request] = deque()
        self._in_flight: Counter[int] = Counter()
        self._landings: defaultdict[int, list[asyncio.Future[None]]] = defaultdict(list)
        self._flush_is_due = False
        self._complained_at = -COMPLAIN_S
        self._server_id: tuple[str, str] | None = None
        self._said = ""
        self._away_since: float | None = None

    @property
    def is_connected(self) -> bool:
        """Tell whether the connection stands."""
        return self._keeper.connection is not None

    @property
    def load(self) -> int:
        """How many requests are here, also those that nobody waits for any more."""
        return len(self._queue) + len(self._sent) + len(self._unsafe)

    @property
    def hindrance(self) -> str | None:
        """Return why the server runs nothing, None while it does, or does not say why."""
        return _meaning(self._said)

    async def start(self) -> None:
        """Connect; raises ``Unavailable``."""
        await self._keeper.start()

    def start_soon(self) -> None:
        """Connect as soon as the server can be reached."""
        self._keeper.start_soon()

    async def aclose(self) -> None:
        """Disconnect. What is still here stays unanswered."""
        await self._keeper.aclose()

    def put(self, request: Request) -> None:
        """Take a request. While Redis is away it waits for the next attempt to connect."""
        self._queue.append(request)
        if self.is_connected:
            self._flush_soon()
        elif self._is_long_away():
            self._keeper.hurry()

    def _is_long_away(self) -> bool:
        if self._away_since is None:
            return False
        return asyncio.get_running_loop().time() - self._away_since > self._away_after_s

    def take_over(self, requests: Iterable[Request]) -> None:
        """Take requests that another server did not run, in their order."""
        self._queue.extend(requests)
        self._flush_soon()

    def unanswered_since(self, sent_at: float) -> None:
        """Give the connection up if the server has said nothing since ``sent_at``."""
        connection = self._keeper.connection
        if connection is not None and connection.heard_at < sent_at:
            self._keeper.drop("Redis is silent")

    # -- for a Cluster, where a slot may leave ----------------------------------------------------

    def slots(self) -> set[int]:
        """Return the slots of the requests that are here."""
        waiting = {request.slot for request in self._queue if request.slot is not None}
        return waiting | self._in_flight.keys()

    def withdraw(self, slot: int) -> list[Request]:
        """Give up the requests of a slot that have not been sent."""
        withdrawn = [request for request in self._queue if request.slot == slot]
        if withdrawn:
            self._queue = deque(request for request in self._queue if request.slot != slot)
        return withdrawn

    async def landed(self, slot: int) -> None:
        """Return when every request of a slot that was sent is answered, or will be sent again."""
        if slot in self._in_flight:
            landing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._landings[slot].append(landing)
            await landing

    def _land(self, slot: int | None) -> None:
        if slot is None:
            return
        self._in_flight[slot] -= 1
        if not self._in_flight[slot]:
            del self._in_flight[slot]
            self._tell_landed(slot)

    def _tell_landed(self, slot: int) -> None:
        for landing in self._landings.pop(slot, ()):
            if not landing.done():
                landing.set_result(None)

    # -- writing --------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

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
                self._send(request, commands, now)
                size += len(request.command)
            if commands and self._replicas is not None:
                self._sent.append(Marker.WAIT)
                timeout_ms = max(1, int(self._replicas.timeout_s * 1000))
                commands.append(pack(("WAIT", self._replicas.wanted, timeout_ms)))
            if commands:
                connection.write(b"".join(commands))

    def _send(self, request: Request, commands: list[bytes], now: float) -> None:
        if request.asking:
            commands.append(_ASKING)
            self._sent.append(Marker.ASKING)
        commands.append(request.command)
        self._sent.append(request)
        request.sent_at = now
        request.link = self
        request.homeless = False
        if request.slot is not None:
            self._in_flight[request.slot] += 1

    # -- what the keeper tells ------------------------------------------------------------------

    def preamble(self) -> tuple[Sequence[Command], Sequence[Command]]:
        """End what may be left of the last connection, then load the scripts.

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
        self._said = ""
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
        if isinstance(request, Marker):
            if request is Marker.WAIT:
                self._on_replicated(reply)
        elif isinstance(reply, ReplyError):
            self._on_error(request, str(reply))
        else:
            self._away_since = None
            self._said = ""
            self._land(request.slot)
            if self._replicas is not None:
                request.outcome = reply
                self._unsafe.append(request)
            elif not request.reply.done():
                request.reply.set_result(reply)

    def _on_error(self, request: Request, error: str) -> None:
        self._said = error
        if error.startswith(_NOT_NOW):
            request.sent_at = None
            self._sent.appendleft(request)
            self._keeper.drop(error)
            return
        self._land(request.slot)
        if self._elsewhere is not None and error.startswith(_ELSEWHERE):
            request.sent_at = None
            request.asking = False
            self._elsewhere(self, request, error)
        elif not request.reply.done():
            request.reply.set_exception(self._refusal(error))

    def _on_replicated(self, reply: Any) -> None:
        """Answer what the server had done, now that its replicas have it, or have it not."""
        assert self._replicas is not None
        unsafe, self._unsafe = self._unsafe, deque()
        is_safe = isinstance(reply, int) and reply >= self._replicas.wanted
        if unsafe and not is_safe:
            metrics.REPLICAS_SHORT.inc(len(unsafe))
        for request in unsafe:
            if is_safe and not request.reply.done():
                request.reply.set_result(request.outcome)
            elif not is_safe:
                request.fail(
                    f"only {reply} of {self._replicas.wanted} replicas have it: repeat it under "
                    "the same id",
                    reason="replicas_short",
                )

    def _refusal(self, reply: str) -> Unavailable:
        """Return the error for what Redis will not do; logged once a second, not per request."""
        now = asyncio.get_running_loop().time()
        if now - self._complained_at >= COMPLAIN_S:
            self._complained_at = now
            log.error("redis refused a command", reason=reply)
        if reply.startswith("OOM"):
            return Unavailable(_MEANINGS["OOM"], reason="redis_out_of_memory")
        return Unavailable(_meaning(reply) or "Redis refused the command", reason="redis_refused")

    def on_unreachable(self) -> None:
        """Fail what waits, once that has lasted: Redis is known to be away."""
        if self._is_long_away():
            while self._queue:
                self._queue.popleft().fail("Redis is away: try again later", retry_after=1)

    def on_closed(self) -> None:
        """Take back what was sent and not answered, in order, to send it again."""
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()
        lost = "the connection to Redis was lost, the outcome is unknown"
        if self.hindrance is not None:
            lost = f"{lost}: {self.hindrance}"
        unanswered = [each for each in self._sent if not isinstance(each, Marker)]
        unanswered[:0] = self._unsafe
        self._sent.clear()
        self._unsafe.clear()
        for request in reversed(unanswered):
            if request.reply.done():
                continue
            if request.sent_at is not None and not request.repeatable:
                request.fail(lost)
                continue
            request.sent_at = None
            self._queue.appendleft(request)
        self._in_flight.clear()
        for slot in list(self._landings):
            self._tell_landed(slot)


def _meaning(reply: str) -> str | None:
    """Return what an error reply means, None for one that only says that something is wrong."""
    return _MEANINGS.get(reply.partition(" ")[0])
