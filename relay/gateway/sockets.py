"""Every open socket of this process: who they are, and what they share.

Connections come to it for everything outside themselves; the API comes to it to attach a watch to
a socket; the server comes to it to let the sockets go.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from websockets.http11 import Request

from relay import logs, metrics, permissions, tokens, wire
from relay.broker import Broker, Store
from relay.broker.seats import Seat
from relay.broker.tickets import Tickets
from relay.doors import Door
from relay.errors import (
    BadInput,
    Close,
    NotAllowed,
    NotFound,
    Refused,
    RelayError,
    Unavailable,
    UnknownConnection,
)
from relay.events import Event, Position, Publication
from relay.forwarded import Network, client_address
from relay.gateway import drain, frames
from relay.gateway.call import Batch
from relay.gateway.connection import Connection
from relay.gateway.hub import Hub, Watching
from relay.gateway.quota import Quota
from relay.gateway.remote import Remote
from relay.gateway.returns import Returns
from relay.gateway.session import Rules, Session
from relay.gateway.underway import Arriving, Beginning, noted
from relay.gateway.wheel import Wheel
from relay.pace import Pace
from relay.tasks import Tasks, together
from relay.tokens import Claims
from relay.users import Profile, User

log = logs.get(__name__)

PATHS: Final = ("/video/connect", "/api/v2/connect")
QUERY_FIELDS: Final = 20
ATTACH_AT_ONCE: Final = 64
"""Calls that one request makes a socket watch at the same time; the others wait their turn."""
CLEARED_MOST: Final = 200
"""Calls that a socket sends to without watching them, remembered as allowed."""


class SocketLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one socket; the settings of the same names say what they mean."""

    frame_max_bytes: int = 65_536
    soft_buffer_bytes: int = 262_144
    hard_buffer_bytes: int = 4_194_304
    slow_timeout_s: float = 30.0
    user_connections: int = 50
    watch_limit: int = 1000


class Sockets:
    """The sockets of one process. ``secret`` binds connection ids to users."""

    def __init__(
        self,
        *,
        hub: Hub,
        broker: Broker,
        store: Store,
        tickets: Tickets,
        door: Door,
        rules: Rules,
        limits: SocketLimits,
        secret: str,
        clock: Callable[[], int],
        origins: Sequence[str] = ("*",),
        trusted: Sequence[Network] = (),
        strict_calls: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self.door = door
        self.limits = limits
        self.now_ns = clock
        self.tasks = Tasks("sockets")
        self.wheel = Wheel()
        self.pace = Pace() if pace is None else pace
        # websockets reads the level once per connection; a shared logger that is off costs nothing.
        self.protocol_logger = logging.getLogger("websockets.server")
        self._hub = hub
        self.changes = hub.changes
        self._store = store
        self._rules = rules
        self._broker = broker
        self._remote = Remote(broker, self)
        self._quota = Quota(broker, limits.user_connections, self.count_here, self._remote.count)
        self.returns = Returns(tickets, broker, hub, self._remote.dismiss)
        self._secret = secret
        self._origins = frozenset(origins)
        self._trusted = trusted
        self._strict_calls = strict_calls
        self._open: set[Connection] = set()
        self._by_id: dict[str, Connection] = {}
        self._by_user: defaultdict[str, set[Connection]] = defaultdict(set)
        self._arriving: set[Arriving] = set()
        self._beginning: set[Beginning] = set()
        self._occupied: set[Seat] = set()
        self._vacated: Callable[[Seat], None] | None = None
        self._draining = False
        self._all_closed = asyncio.Event()

    @staticmethod
    def now() -> float:
        """Return loop time in seconds."""
        return asyncio.get_running_loop().time()

    def protocol(self, *_: Any, **__: Any) -> Connection:
        """Return a new connection; what uvicorn's ``ws=`` hook passes is for ASGI protocols."""
        return Connection(self)

    async def start(self) -> None:
        """Let the wheel turn, and answer other processes."""
        self._broker.receive(self._remote)
        self.tasks.keep(self.wheel.run, "visiting sockets that are due")
        self.tasks.keep(self._quota.run, "telling numbers of sockets")
        self.tasks.keep(self.returns.beat, "telling how far sockets have come")
        self.tasks.keep(self.returns.write, "writing tickets")

    async def drain(self, timeout_s: float, *, handover: bool = False) -> None:
        """Refuse new sockets, let the open ones go, and wait until they have or time is up.

        ``handover``: they are told before, since there is another process to go to.
        """
        self._draining = True
        try:
            if self._open:
                plan = drain.plan(len(self._open), timeout_s, handover=handover)
                async with asyncio.timeout(timeout_s):
                    await drain.let_go(list(self._open), plan, self._all_closed)
        except TimeoutError:
            for connection in list(self._open):
                connection.abort("drain_timeout")

    def dismiss(self) -> None:
        """Close all sockets at once, waiting for nobody."""
        self._draining = True
        for connection in list(self._open):
            connection.end(Close.GOING_AWAY, "the relay is shutting down", "shutdown")

    async def aclose(self) -> None:
        """End every task, and keep what is known of those who will come back."""
        await self.tasks.aclose()
        await self.returns.aclose()

    # -- what connections ask for -----------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """Take note of a socket, which may yet fail to upgrade."""
        self._open.add(connection)
        self._all_closed.clear()

    def closed(self, connection: Connection) -> None:
        """Forget a socket."""
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()
        self.wheel.cancel(connection)
        if (connection_id := connection.connection_id) in self._by_id:
            del self._by_id[connection_id]
            of_user = self._by_user[connection.user.id]
            of_user.discard(connection)
            if not of_user:
                del self._by_user[connection.user.id]
            self._quota.changed(connection.user.id)
            metrics.CONNECTIONS.dec()

    def refusal(self, request: Request) -> RelayError | None:
        """Return why an upgrade is refused, None when it is welcome.

        An unknown API key is not refused here: Stream's clients retry for ever after an HTTP error
        and understand only an error frame.
        """
        path = request.path.partition("?")[0]
        origins = request.headers.get_all("Origin")
        if path not in PATHS:
            shown = path[:100].encode("ascii", "replace").decode()
            return NotFound(f"there is no socket at {shown}: connect to {PATHS[0]}")
        if self._draining:
            return Unavailable("the relay is shutting down: reconnect", reason="draining")
        if "*" not in self._origins and not self._origins.issuperset(origins):
            return NotAllowed(
                "this origin may not connect: add it to RELAY_ALLOWED_ORIGINS", reason="origin"
            )
        if request.path.count("&") >= QUERY_FIELDS:
            return BadInput(f"the URL may have at most {QUERY_FIELDS} parameters")
        return None

    def session(self, request: Request) -> Session:
        """Return the session of an upgraded socket."""
        query = parse_qs(request.path.partition("?")[2])
        [api_key] = query.get("api_key", [None])[:1]
        [auth_type] = query.get("stream-auth-type", ["jwt"])[:1]
        return Session(self._rules, api_key, auth_type, self.now_ns())

    def client_address(self, request: Request, transport: asyncio.Transport) -> str:
        """Return the address of the client, as far as trusted proxies vouch for it."""
        peer = (transport.get_extra_info("peername") or ("",))[0]
        forwarded = ",".join(request.headers.get_all("X-Forwarded-For"))
        return client_address(peer, forwarded, self._trusted)

    async def log_in(
        self, connection: Connection, user_id: str, profile: Profile
    ) -> tuple[User, str]:
        """Save the user that logs in, and return it with the id of its socket.

        Raises ``TokenExpired`` when the token was revoked, ``RateLimited`` over the user's limit,
        and ``Unavailable`` when that cannot be told.
        """
        claims = connection.session.claims
        with noted(Arriving(claims), self._arriving) as arriving:
            user = await self._store.save_user(user_id, profile, self.now_ns())
            claims.check_revoked(user.revoked_before)
            await self._quota.check(user_id)
            arriving.check()
        return user, self._admit(connection, user_id)

    def _admit(self, connection: Connection, user_id: str) -> str:
        nonce = secrets.token_hex(8)
        connection_id = tokens.connection_id(self._broker.node, nonce, user_id, self._secret)
        self._by_id[connection_id] = connection
        self._by_user[user_id].add(connection)
        metrics.CONNECTIONS.inc()
        return connection_id

    async def publish(self, connection: Connection, event: Event, came: float) -> Publication:
        """Publish an event that came over a socket at ``came``; a refusal is counted already."""
        async with self.door.in_time(came):
            if not self._may_publish(connection, event.cid):
                await self._clear(connection, event.cid)
            return await self.door.publish(event)

    async def _clear(self, connection: Connection, cid: str) -> None:
        """Check that a socket may send to a call; a refusal is counted.

        That is asked once: who watches a call may, and is put out when it is blocked; the few
        others are remembered.
        """
        try:
            with noted(Beginning(connection, cid), self._beginning) as beginning:
                await self._check_call(connection, cid)
                beginning.check()
        except RelayError as error:
            self.door.refused(error)
            raise
        if len(connection.cleared) >= CLEARED_MOST:
            connection.cleared.clear()
        connection.cleared.add(cid)

    def publish_now(self, connection: Connection, event: Event) -> Publication | None:
        """Publish as ``publish`` does, without waiting; None where something has to be waited for.

        Nothing is done or counted then. See ``Broker.publish_now``.
        """
        return self.door.publish_now(event) if self._may_publish(connection, event.cid) else None

    def _may_publish(self, connection: Connection, cid: str) -> bool:
        """Tell whether it is known that the socket may send to a call."""
        return not self._strict_calls and (cid in connection.calls or cid in connection.cleared)

    async def watch(self, connection: Connection, cid: str, since: Position | None) -> Watching:
        """Make a socket watch a call by a command; see ``Hub.watch``.

        Whoever does so can name a position, and will when it comes back.
        """
        watching = await self._watch(connection, cid, since)
        self.returns.forget(connection, cid)
        return watching

    async def _watch(self, connection: Connection, cid: str, since: Position | None) -> Watching:
        if cid not in connection.calls:
            self._check_room(connection, 1)
        with noted(Beginning(connection, cid), self._beginning) as beginning:
            await self._check_call(connection, cid)
            watching = await self._hub.watch(connection, cid, since)
            self._begin(beginning)
        return watching

    def _begin(self, beginning: Beginning) -> None:
        """Note that a watch has begun, or end it at once when it may no longer be."""
        connection, cid = beginning.connection, beginning.cid
        if not connection.is_open or cid in connection.calls:
            return
        try:
            beginning.check()
            self._check_room(connection, 1)
        except Refused:
            self._hub.unwatch(connection, cid)
            raise
        connection.calls.add(cid)
        metrics.WATCHES.inc()

    def _check_room(self, connection: Connection, count: int) -> None:
        if len(connection.calls) + count > self.limits.watch_limit:
            raise BadInput(
                f"a socket watches at most {self.limits.watch_limit} calls: unwatch one first",
                reason="too_many_watches",
            )

    def unwatch(self, connection: Connection, cid: str) -> None:
        """Make a socket cease to watch a call."""
        self._hub.unwatch(connection, cid)
        self.returns.forget(connection, cid)
        if cid in connection.calls:
            connection.calls.discard(cid)
            metrics.WATCHES.dec()
            self._check_vacated(Seat(cid, connection.user.id))

    async def _check_call(self, connection: Connection, cid: str) -> None:
        """Raise ``NotFound`` or ``NotAllowed`` when a socket may not use a call."""
        call, user = await self._store.call(cid), connection.user
        if call is None and self._strict_calls:
            raise NotFound(f"the call {cid} was never created")
        if call is None:
            return
        if user.id in call.blocked:
            raise NotAllowed(f"this user is blocked in the call {cid}", reason="blocked")
        roles = [connection.session.claims.role, user.role]
        if "read-call" not in permissions.of(call, user.id, roles):
            raise NotAllowed(f"this user may not read the call {cid}", reason="no_capability")

    async def check_not_revoked(self, claims: Claims) -> None:
        """Raise ``Unauthenticated`` when the user's older tokens are worth nothing any more."""
        assert claims.user_id is not None, "a server has no socket"
        user = await self._store.user(claims.user_id)
        if user is not None:
            claims.check_revoked(user.revoked_before)

    # -- what the API asks for, wherever the sockets are -------------------------------------------

    async def attach(
        self, connection_id: str, user_id: str, cids: Sequence[str], *, returning: bool = False
    ) -> None:
        """Make the socket of that id watch calls, live from now on.

        ``returning``: first what the user's last socket missed, as far as that can be told.
        Raises ``UnknownConnection`` when it is not open, or not that user's, ``BadInput`` when it
        would watch too many, and ``Unavailable`` when the process that owns it does not answer.
        """
        owner = tokens.connection_owner(connection_id, user_id, self._secret)
        if owner is None:
            raise unknown_connection()
        gone = await self.returns.gone(user_id, cids, connection_id) if returning else None
        if owner == self._broker.node:
            await self.attach_here(connection_id, cids, gone)
        else:
            await self._remote.attach(owner, connection_id, cids, gone)

    async def expel(self, user_id: str | None, cid: str) -> None:
        """Make every socket of a user cease to watch a call; None: of everybody."""
        await self._remote.expel(user_id, cid)

    async def revoke(self, user_id: str | None, before_s: float) -> None:
        """Close every socket of a user whose token was issued before a time, in s since 1970.

        None: of everybody. A token that does not say when it was issued counts as older.
        """
        await self._remote.revoke(user_id, before_s)

    async def occupied(self, seats: Sequence[Seat]) -> set[Seat]:
        """Return the seats whose user has a socket that watches the call.

        From then on the process of that socket says when the last one has gone (see ``follow``).
        Raises ``Unavailable`` when a process that is alive does not answer.
        """
        return await self._remote.occupied(seats)

    def follow(self, vacated: Callable[[Seat], None]) -> None:
        """Call ``vacated`` when the last socket of this process has left an occupied seat."""
        self._vacated = vacated

    # -- what processes ask of each other (through ``Remote``) -------------------------------------

    async def attach_here(
        self, connection_id: str, cids: Sequence[str], gone: Collection[str] | None
    ) -> None:
        """Make a socket of this process watch calls; its id was checked.

        ``gone`` are the user's sockets whose place it may take; None when it does not return.
        """
        connection = self._by_id.get(connection_id)
        if connection is None or not connection.is_open:
            raise unknown_connection()
        news = [cid for cid in dict.fromkeys(cids) if cid not in connection.calls]
        self._check_room(connection, len(news))
        if gone is not None:
            await self.returns.claim(connection, news, gone)
        for start in range(0, len(news), ATTACH_AT_ONCE):
            batch = news[start : start + ATTACH_AT_ONCE]
            await together(self._attach(connection, cid) for cid in batch)
        await self.returns.hold(connection)
        if not connection.is_open:  # it may have closed meanwhile
            raise unknown_connection()

    async def _attach(self, connection: Connection, cid: str) -> None:
        since = self.returns.since(connection, cid)
        position, recovered = await self._watch(connection, cid, since)
        if recovered is False:
            connection.reply(frames.lost(cid, position))
        start = since if since is not None and recovered else position
        self.returns.began(connection, cid, start, replayed=start != position)

    def count_here(self, user_id: str) -> int:
        """Return how many sockets of a user are open here."""
        return len(self._by_user.get(user_id, ()))

    def tell_here(self, user_ids: Iterable[str], cid: str | None, body: bytes) -> None:
        """Write a text to the sockets of users, except those that watch ``cid`` or are slow."""
        batch = Batch([wire.text_frame(body)], [0])
        for user_id in user_ids:
            for connection in self._by_user.get(user_id, ()):
                if cid is None or cid not in connection.calls:
                    metrics.OWED.inc()
                    metrics.WRITTEN.inc(connection.deliver(batch))

    def expel_here(self, user_id: str | None, cid: str) -> None:
        """Make the sockets of a user cease to watch a call."""
        for beginning in self._beginning:
            beginning.expelled(user_id, cid)
        for connection in self._of(user_id):
            connection.cleared.discard(cid)
            self.unwatch(connection, cid)

    def revoke_here(self, user_id: str | None, before_s: float) -> None:
        """Close the sockets of a user whose token is older."""
        for arriving in self._arriving:
            arriving.revoked(user_id, before_s)
        for connection in self._of(user_id):
            if connection.session.claims.issued_before(before_s):
                self.pace.do(partial(_revoke, connection))

    def occupied_here(self, seats: Sequence[Seat]) -> list[int]:
        """Return the indices of the seats that a socket of this process occupies."""
        taken = [index for index, seat in enumerate(seats) if self._is_occupied(seat)]
        self._occupied.update(seats[index] for index in taken)
        return taken

    def _of(self, user_id: str | None) -> Collection[Connection]:
        found = self._by_id.values() if user_id is None else self._by_user.get(user_id, ())
        return list(found)

    def _is_occupied(self, seat: Seat) -> bool:
        sockets = self._by_user.get(seat.user_id, ())
        return any(seat.cid in connection.calls for connection in sockets)

    def _check_vacated(self, seat: Seat) -> None:
        if seat in self._occupied and not self._is_occupied(seat):
            self._occupied.discard(seat)
            if self._vacated is not None:
                self._vacated(seat)


def _revoke(connection: Connection) -> None:
    connection.end(Close.TOKEN_EXPIRED, "the token was revoked", "token_revoked")


def unknown_connection() -> UnknownConnection:
    """Return the error for a socket that is gone, or was never this user's."""
    return UnknownConnection("connection_id is not an open socket of this user: reconnect")
