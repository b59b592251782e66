"""Every open socket of this process: who they are, and what they share.

Connections come to it for everything outside themselves; the API comes to it to attach a watch to
a socket; the server comes to it to let the sockets go.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
from websockets.http11 import Request

from relay import logs, metrics, tokens
from relay.broker import Store
from relay.doors import Door
from relay.errors import (
    BadInput,
    Close,
    NotAllowed,
    NotFound,
    RateLimited,
    RelayError,
    Unavailable,
    UnknownConnection,
)
from relay.events import Event, Position, Publication
from relay.forwarded import Network, client_address
from relay.gateway import drain
from relay.gateway.connection import Connection
from relay.gateway.hub import Hub, Watching
from relay.gateway.session import Rules, Session
from relay.gateway.wheel import Wheel
from relay.tasks import Tasks
from relay.users import Profile, User

log = logs.get(__name__)

PATHS: Final = ("/video/connect", "/api/v2/connect")
QUERY_FIELDS: Final = 20


class SocketLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one socket; the settings of the same names say what they mean."""

    frame_max_bytes: int = 65_536
    soft_buffer_bytes: int = 262_144
    hard_buffer_bytes: int = 4_194_304
    slow_timeout_s: float = 30.0
    user_connections: int = 50
    watch_limit: int = 200


class Sockets:
    """The sockets of one process. ``secret`` binds connection ids to users, ``node`` names us."""

    def __init__(
        self,
        *,
        hub: Hub,
        store: Store,
        door: Door,
        rules: Rules,
        limits: SocketLimits,
        node: str,
        secret: str,
        clock: Callable[[], int],
        origins: Sequence[str] = ("*",),
        trusted: Sequence[Network] = (),
        strict_calls: bool = False,
    ) -> None:
        self.door = door
        self.limits = limits
        self.now_ns = clock
        self.tasks = Tasks("sockets")
        self.wheel = Wheel()
        # websockets reads the level once per connection; a shared logger that is off costs nothing.
        self.protocol_logger = logging.getLogger("websockets.server")
        self._hub = hub
        self._store = store
        self._rules = rules
        self._node = node
        self._secret = secret
        self._origins = frozenset(origins)
        self._trusted = trusted
        self._strict_calls = strict_calls
        self._open: set[Connection] = set()
        self._by_id: dict[str, Connection] = {}
        self._by_user: Counter[str] = Counter()
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
        """Let the wheel turn."""
        self.tasks.spawn(self.wheel.run())

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
        """End every task."""
        await self.tasks.aclose()

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
            self._by_user[connection.user.id] -= 1
            if not self._by_user[connection.user.id]:
                del self._by_user[connection.user.id]
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

    async def save_user(self, user_id: str, profile: Profile) -> User:
        """Create or change the user that logs in."""
        return await self._store.save_user(user_id, profile, self.now_ns())

    def admit(self, connection: Connection, user_id: str) -> str:
        """Return the id of a socket that has logged in; raises ``RateLimited`` over the limit."""
        limit = self.limits.user_connections
        if limit and self._by_user[user_id] >= limit:
            raise RateLimited(
                f"this user has {limit} open sockets: close one first", reason="too_many_sockets"
            )
        nonce = secrets.token_hex(8)
        connection_id = tokens.connection_id(self._node, nonce, user_id, self._secret)
        self._by_id[connection_id] = connection
        self._by_user[user_id] += 1
        metrics.CONNECTIONS.inc()
        return connection_id

    async def publish(self, event: Event) -> Publication:
        """Publish an event that came over a socket; a refusal is counted already."""
        try:
            await self._check_exists(event.cid)
        except RelayError as error:
            self.door.refused(error)
            raise
        return await self.door.publish(event)

    async def watch(self, connection: Connection, cid: str, since: Position | None) -> Watching:
        """Make a socket watch a call; see ``Hub.watch``."""
        if len(connection.calls) >= self.limits.watch_limit and cid not in connection.calls:
            raise BadInput(
                f"a socket watches at most {self.limits.watch_limit} calls: unwatch one first",
                reason="too_many_watches",
            )
        await self._check_exists(cid)
        watching = await self._hub.watch(connection, cid, since)
        if connection.is_open and cid not in connection.calls:
            connection.calls.add(cid)
            metrics.WATCHES.inc()
        return watching

    def unwatch(self, connection: Connection, cid: str) -> None:
        """Make a socket cease to watch a call."""
        self._hub.unwatch(connection, cid)
        if cid in connection.calls:
            connection.calls.discard(cid)
            metrics.WATCHES.dec()

    async def _check_exists(self, cid: str) -> None:
        if self._strict_calls and await self._store.call(cid) is None:
            raise NotFound(f"the call {cid} was never created")

    # -- what the API asks for --------------------------------------------------------------------

    async def attach(self, connection_id: str, user_id: str, cid: str) -> None:
        """Make the socket of that id watch a call, live from now on.

        Raises ``UnknownConnection`` when it is not open, or not that user's.
        """
        owner = tokens.connection_owner(connection_id, user_id, self._secret)
        connection = self._by_id.get(connection_id)
        if owner is not None and connection is not None and connection.is_open:
            if cid not in connection.calls:
                await self.watch(connection, cid, None)
            if connection.is_open:  # it may have closed meanwhile
                return
        raise UnknownConnection("connection_id is not an open socket of this user: reconnect")
