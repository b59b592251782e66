"""Those who come back without saying from where: how far their sockets had come, and what is due.

Only sockets count that watch over HTTP. Each is pinged every ``PING_S`` (``trail`` says what its
pongs mean); what is known of it is kept as a ticket (``broker.tickets``), and claimed by the
request with which Stream's SDKs watch again after a reconnect.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from websockets import frames

from relay import logs, metrics
from relay.broker import Broker
from relay.broker.tickets import BEAT_S, HELD_LIFE_S, LOST, Ticket, Tickets
from relay.errors import Unavailable
from relay.events import Position
from relay.gateway.hub import Hub
from relay.gateway.trail import SETTLED, Marks, Trail
from relay.retry import backoff
from relay.tasks import together

if TYPE_CHECKING:
    from relay.gateway.connection import Connection

log = logs.get(__name__)

PING_S: Final = 5.0
PROBE_S: Final = 1.0
"""How long a socket may take to answer a ping when its user seems to be back on another one."""

AT_ONCE: Final = 100
NOTED_AT_ONCE: Final = 2000
"""Calls whose positions are noted in one loop turn."""

WAITING_MOST: Final = 10_000
"""Sockets that ended and whose tickets wait for Redis; beyond that the first ones go."""

_STALE_TICKS: Final = int(HELD_LIFE_S / BEAT_S / 4)


def is_goodbye(said: frames.Close | None) -> bool:
    """Tell whether a peer that sent this close frame will not come back for what it misses.

    Stream's clients close with 1000 or, with the page, 1001; a line that they take for dead they
    close without a code. (Where the relay closes first, it leaves before they answer.)
    """
    leaving = (frames.CloseCode.NORMAL_CLOSURE, frames.CloseCode.GOING_AWAY)
    return said is not None and said.code in leaving


class _Ended(NamedTuple):
    """What is to be kept of a socket that ended: its ticket, or nothing."""

    user_id: str
    ticket: Ticket | None


class Returns:
    """What a process knows of its sockets for the time after them.

    ``dismiss`` asks a process which of a user's sockets there are alive, and ends the others.
    """

    def __init__(
        self,
        tickets: Tickets,
        broker: Broker,
        hub: Hub,
        dismiss: Callable[[str, Sequence[str]], Awaitable[Collection[str]]],
    ) -> None:
        self._tickets = tickets
        self._broker = broker
        self._hub = hub
        self._dismiss = dismiss
        self._marks = Marks()
        self._marked: dict[str, Position] = {}
        self._trailing: dict[str, Connection] = {}
        self._probed: dict[str, asyncio.Event] = {}
        self._waiting: dict[str, _Ended] = {}
        self._news = asyncio.Event()
        self._random = random.Random()  # noqa: S311 - jitter, not secrets

    # -- one socket -------------------------------------------------------------------------------

    def ping(self, connection: Connection, trail: Trail) -> bytes:
        """Return a ping for a socket: its answer tells up to where everything has arrived."""
        trail.pinging(self._marks.tick, lambda cid: self._hub.is_live(connection, cid))
        return b"\x89\x04" + trail.pinged.to_bytes(4)

    def ponged(self, connection: Connection, payload: bytes) -> None:
        """Take the answer to a ping."""
        if connection.trail is not None and len(payload) == 4:
            connection.trail.ponged(int.from_bytes(payload))
            if (probe := self._probed.get(connection.connection_id)) is not None:
                probe.set()

    def since(self, connection: Connection, cid: str) -> Position | None:
        """Return where a watch has to go on that was claimed and has not begun."""
        return None if connection.trail is None else connection.trail.starts.get(cid)

    def began(self, connection: Connection, cid: str, start: Position, *, replayed: bool) -> None:
        """Note that a call is attached to a socket, which has everything up to ``start``."""
        if (trail := self._trail(connection)) is not None:
            self._follow(trail, cid)
            trail.begin(cid, start, replayed=replayed)

    def forget(self, connection: Connection, cid: str) -> None:
        """Note that a socket watches a call no more, or by commands, with positions of its own."""
        if connection.trail is not None and connection.trail.forget(cid):
            self._marks.unfollow(cid)

    async def hold(self, connection: Connection) -> None:
        """Return when what the socket watches outlives this process; raises ``Unavailable``."""
        trail = connection.trail
        if trail is not None and trail.held_at is None:
            await self._hold(connection, trail)

    def ended(self, connection: Connection, *, is_clean: bool) -> None:
        """Note that a socket has ended: a clean end leaves no ticket. Twice does what once does."""
        if (trail := connection.trail) is None:
            return
        connection.trail = None
        name = connection.connection_id
        del self._trailing[name]
        if (probe := self._probed.get(name)) is not None:
            probe.set()
        ticket = None
        if trail.starts and not is_clean:
            ticket = trail.ticket(self._broker.node, self._marks)
            metrics.TICKETS.labels("left").inc()
        for cid in trail.starts:
            self._marks.unfollow(cid)
        self._keep(name, _Ended(connection.user.id, ticket))

    def _trail(self, connection: Connection) -> Trail | None:
        """Return the trail of a socket, which begins now if it has none; None when it is closed."""
        if connection.trail is None and connection.is_open:
            connection.trail = Trail(self._marks.tick)
            self._trailing[connection.connection_id] = connection
            connection.hang()  # it is pinged from now on
        return connection.trail

    def _follow(self, trail: Trail, cid: str) -> None:
        if cid not in trail.starts:
            self._marks.follow(cid)

    # -- coming back ------------------------------------------------------------------------------

    async def gone(self, user_id: str, cids: Collection[str], heir: str) -> list[str]:
        """Return the user's sockets that watched any of the calls and are no more, by their names.

        The others are asked for a sign of life: a phone that changes its network is back before
        anybody has noticed that it was gone.
        """
        held = await self._tickets.held(user_id, cids)
        held.pop(heir, None)
        if not held:
            return []
        by_node = defaultdict(list)
        for name, node in held.items():
            by_node[node].append(name)
        nodes = by_node.keys() & await self._broker.nodes()
        answers = await together(self._dismiss(node, by_node[node]) for node in nodes)
        alive = {name for answer in answers for name in answer}
        return [name for name in held if name not in alive]

    async def dismiss_here(self, names: Sequence[str]) -> list[str]:
        """Return which sockets of this process are alive; those that do not answer are cut off."""
        alive = await together(self._is_alive(name) for name in names)
        return [name for name, lives in zip(names, alive, strict=True) if lives]

    async def _is_alive(self, name: str) -> bool:
        connection = self._trailing.get(name)
        if connection is not None and await self._answers(connection):
            return True
        if connection is not None:
            connection.abort("silent")
            self.ended(connection, is_clean=False)
        await self._write(name)  # before it is claimed
        return False

    async def _answers(self, connection: Connection) -> bool:
        """Tell whether a socket answers a ping at once."""
        if not connection.is_heard:
            return True  # it says so much that it is not listened to
        name = connection.connection_id
        heard = self._probed.setdefault(name, asyncio.Event())
        connection.ping()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    await heard.wait()
        finally:
            self._probed.pop(name, None)
        return heard.is_set() and name in self._trailing

    async def claim(
        self, connection: Connection, cids: Collection[str], gone: Collection[str]
    ) -> None:
        """Find out where the watches of these calls have to go on: ``since`` says it then."""
        name, user_id, node = connection.connection_id, connection.user.id, self._broker.node
        positions = await self._tickets.claim(user_id, cids, gone, name, node)
        if not positions:
            return
        lost = sum(position == LOST for position in positions.values())
        metrics.TICKETS.labels("claimed").inc()
        metrics.TICKETS.labels("lost").inc(lost)
        log.info("ticket claimed", calls=len(positions), lost=lost, peer=connection.peer)
        trail = self._trail(connection)
        if trail is None:  # it has closed meanwhile, so the next one may claim it
            self._keep(name, _Ended(user_id, Ticket(node, positions)))
            return
        for cid, position in positions.items():
            self._follow(trail, cid)
            trail.promise(cid, position)

    # -- what outlives the process ----------------------------------------------------------------

    def _keep(self, name: str, ended: _Ended) -> None:
        self._waiting[name] = ended
        if len(self._waiting) > WAITING_MOST:
            del self._waiting[next(iter(self._waiting))]
        self._news.set()

    async def write(self) -> None:
        """Write what is to be kept of sockets that ended, until cancelled."""
        failures = 0
        while True:
            while self._waiting:
                try:
                    await self._write_some()
                    failures = 0
                except Unavailable as error:
                    failures += 1
                    log.info("tickets wait", reason=error.message)
                    await asyncio.sleep(backoff(failures, self._random))
            await self._news.wait()
            self._news.clear()

    async def _write_some(self) -> None:
        await together(map(self._write, list(islice(self._waiting, AT_ONCE))))

    async def _write(self, name: str) -> None:
        if (ended := self._waiting.pop(name, None)) is None:
            return
        try:
            if ended.ticket is None:
                await self._tickets.drop(ended.user_id, name)
            else:
                await self._tickets.leave(ended.user_id, name, ended.ticket)
        except BaseException:  # of which one is that the relay stops
            self._waiting.setdefault(name, ended)
            raise

    async def aclose(self) -> None:
        """Write what still waits, unless Redis is away."""
        with suppress(Unavailable):
            while self._waiting:
                await self._write_some()

    async def beat(self) -> None:
        """Say every few seconds how far the sockets have come, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            following = loop.time() + BEAT_S
            try:
                await self._beat()
            except Unavailable as error:
                log.info("marks wait", reason=error.message)
            await asyncio.sleep(max(0.0, following - loop.time()))

    async def _beat(self) -> None:
        """End a tick; say where the calls stood at one that the sockets had time to acknowledge.

        Those that did not get tickets of their own first.
        """
        await self._note()
        settled = self._marks.tick - SETTLED
        outdated = self._outdated(settled)
        while batch := list(islice(outdated, AT_ONCE)):
            await together(self._hold(connection, trail) for connection, trail in batch)
        at = {cid: self._marks.at(cid, settled) for cid in self._marks}
        news = {c: p for c, p in at.items() if p is not None and self._marked.get(c) != p}
        ended = [cid for cid in self._marked if cid not in self._marks]
        await self._tickets.mark(news, ended)
        self._marked.update(news)
        for cid in ended:
            del self._marked[cid]

    async def _note(self) -> None:
        cids = iter(list(self._marks))
        while batch := list(islice(cids, NOTED_AT_ONCE)):
            for cid in batch:
                if (position := self._hub.place(cid)) is not None:
                    self._marks.note(cid, position)
            await asyncio.sleep(0)
        self._marks.complete()

    def _outdated(self, settled: int) -> Iterable[tuple[Connection, Trail]]:
        """Yield the sockets whose tickets, as they are kept, are no longer right."""
        for connection in list(self._trailing.values()):
            trail = connection.trail
            if trail is not None and (
                trail.held_at is None
                or trail.held_at < self._marks.tick - _STALE_TICKS
                or trail.is_exact != trail.is_behind(settled)
            ):
                yield connection, trail

    async def _hold(self, connection: Connection, trail: Trail) -> None:
        trail.is_exact = trail.is_behind(self._marks.tick - SETTLED)
        trail.held_at = self._marks.tick
        ticket = trail.ticket(self._broker.node, self._marks)
        try:
            await self._tickets.hold(connection.user.id, connection.connection_id, ticket)
        except BaseException:
            trail.held_at = None
            raise
