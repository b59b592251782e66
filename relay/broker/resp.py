"""A connection to Redis: RESP2 over an asyncio protocol, parsed by hiredis.

It writes commands and hands every reply to one callback, in order and as soon as it is there; what
a reply belongs to is for its user to know (``link``, ``subscriber``). No retries, no pool, no
decoding: on the way of a publication each layer costs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import hiredis
import msgspec
from redis.connection import SSLConnection, parse_url

from relay.errors import Unavailable
from relay.settings import SettingsError

__all__ = ["Address", "Command", "Connection", "ReplyError", "Route", "ask", "pack"]

Command = tuple[bytes | str | int | float, ...]

# Its stub knows tuples of one part only.
pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]
ReplyError = hiredis.ReplyError

CONNECT_TIMEOUT_S: Final = 5.0


class Connection(asyncio.Protocol):
    """One socket to Redis. The callbacks are set once it is open, and called on the event loop.

    ``answers`` are the replies to the commands that it was opened with.
    """

    def __init__(self) -> None:
        self.on_reply: Callable[[Any], None] = _ignore
        self.on_closed: Callable[[str], None] = _ignore
        self.on_writable: Callable[[], None] = _nothing
        self.is_writable = True
        self.is_closed = False
        self.heard_at = 0.0
        self.server_id = ("", "")
        self.answers: list[Any] = []
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._now = asyncio.get_running_loop().time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport that asyncio made."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.heard_at = self._now()

    def data_received(self, data: bytes) -> None:
        """Hand over every reply that is complete."""
        self.heard_at = self._now()
        reader = self._reader
        reader.feed(data)
        try:
            while not self.is_closed and (reply := reader.gets()) is not False:
                self.on_reply(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"not Redis' protocol: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """Tell that the connection ended."""
        self._closed(str(error) if error else "Redis closed the connection")

    def pause_writing(self) -> None:
        """Note that what is written only piles up here."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """Note that it has gone out."""
        self.is_writable = True
        self.on_writable()

    def write(self, data: bytes) -> None:
        """Send packed commands; after the end they go nowhere."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(data)

    def abort(self, why: str) -> None:
        """Close at once, whatever was still to be sent."""
        if self._transport is not None:
            self._transport.abort()
        self._closed(why)

    def _closed(self, why: str) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.on_closed(why)


def _ignore(_: Any, /) -> None:
    """Stand in until the connection has a user."""


def _nothing() -> None:
    """Stand in until the connection has a user."""


class Route(Protocol):
    """A way to a server. An ``Address`` is one that always leads to the same."""

    async def open(
        self, name: str, commands: Sequence[Command] = (), optional: Sequence[Command] = ()
    ) -> Connection:
        """Connect, log in, run ``optional`` commands, which may be refused, then ``commands``.

        ``name`` is what ``CLIENT LIST`` shows. Raises ``Unavailable``.
        """
        ...


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a Redis is and how to log in: a route that is fixed."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: Any = None
    timeout_s: float = CONNECT_TIMEOUT_S

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``redis://``, ``rediss://`` (TLS) or ``unix://``; raises ``SettingsError``."""
        try:
            parts = parse_url(url)  # type: ignore[no-untyped-call]
            tls = _tls(parts) if parts.get("connection_class") is SSLConnection else None
        except OSError as error:
            raise SettingsError(
                f"RELAY_REDIS_URL names a TLS file that is unusable: {error}"
            ) from None
        except ValueError:  # its text may hold a part of the password
            raise SettingsError(
                "RELAY_REDIS_URL must be redis://[user:password@]host:port/db, rediss://… or "
                "unix:///path; special characters in a password are written as %40 and so on"
            ) from None
        known = {name: parts[name] for name in cls.__struct_fields__ if name in parts}
        return cls(**known, tls=tls)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    async def open(
        self, name: str, commands: Sequence[Command] = (), optional: Sequence[Command] = ()
    ) -> Connection:
        """Connect and log in, as ``Route.open``."""
        login = self._login(name)
        sent = [*login, *optional, *commands]
        try:
            async with asyncio.timeout(self.timeout_s):
                connection = await self._connect()
                replies = await ask(connection, sent)
        except TimeoutError:
            raise Unavailable(f"Redis at {self} does not answer") from None
        except OSError as error:
            raise Unavailable(f"Redis at {self} cannot be reached: {error}") from None
        for reply in [*replies[: len(login)], *replies[len(login) + len(optional) :]]:
            if isinstance(reply, ReplyError):
                connection.abort("refused")
                raise Unavailable(f"Redis at {self} refused: {reply}")
        connection.server_id = _server_id(replies[len(login) - 1])
        connection.answers = replies[len(sent) - len(commands) :]
        return connection

    def at(self, host: str, port: int) -> Address:
        """Return the address of another server that is logged in to in the same way."""
        return msgspec.structs.replace(self, host=host or self.host, port=port)

    def _login(self, name: str) -> list[Command]:
        login: list[Command] = []
        if self.password is not None:
            user = [] if self.username is None else [self.username]
            login.append(("AUTH", *user, self.password))
        if self.db:
            login.append(("SELECT", self.db))
        return [*login, ("CLIENT", "SETNAME", name), ("CLIENT", "INFO")]

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self.path is not None:
            return (await loop.create_unix_connection(Connection, self.path))[1]
        return (await loop.create_connection(Connection, self.host, self.port, ssl=self.tls))[1]


async def ask(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Return the replies to commands; raises ``Unavailable`` when the connection ends."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    replies: list[Any] = []

    def on_reply(reply: Any) -> None:
        replies.append(reply)
        if len(replies) == len(commands) and not done.done():
            done.set_result(None)

    def on_closed(why: str) -> None:
        if not done.done():
            done.set_exception(Unavailable(f"Redis closed the new connection: {why}"))

    connection.on_reply, connection.on_closed = on_reply, on_closed
    connection.write(b"".join(pack(command) for command in commands))
    try:
        await done
    except BaseException:
        connection.abort("given up")
        raise
    return replies


def _server_id(client_info: object) -> tuple[str, str]:
    """Return the id and the address under which the server knows the connection."""
    if not isinstance(client_info, bytes):
        raise Unavailable("what answers there is no Redis")
    facts = dict(part.partition("=")[::2] for part in client_info.decode().split())
    return facts.get("id", ""), facts.get("addr", "")


def _tls(parts: dict[str, Any]) -> ssl.SSLContext:
    """Return the TLS settings of a URL's ``ssl_…`` arguments; they mean what redis-py says."""
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    required = parts.get("ssl_cert_reqs", "required")
    if required != "required":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE if required == "none" else ssl.CERT_OPTIONAL
    context.check_hostname = parts.get("ssl_check_hostname", context.check_hostname)
    if "ssl_certfile" in parts:
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    return context
