"""What RELAY_REDIS_URL says: one server, the sentinels that know it, or the nodes of a Cluster.

    redis://[user:password@]host:port/db                  one server; unix:///path too
    redis+sentinel://[user:password@]h1:p1,h2:p2/name/db  the primary that sentinels call ``name``
    redis+cluster://[user:password@]h1:p1,h2:p2           a Cluster, by some of its nodes

``rediss`` for ``redis``, or ``+tls`` at the end of the scheme, is TLS; ``valkey`` is the same as
``redis``. What follows ``?`` is what redis-py takes: ``ssl_ca_certs=…`` and its like.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import msgspec

from relay.broker.resp import Address
from relay.settings import SettingsError

__all__ = ["Place", "Shape"]

MALFORMED: Final = (
    "RELAY_REDIS_URL must be redis://[user:password@]host:port/db, rediss://… (TLS), "
    "redis+sentinel://host:port,host:port/name/db, redis+cluster://host:port,host:port or "
    "unix:///path; special characters in a password are written as %40 and so on"
)
_NAMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
_SENTINEL_ARGUMENTS: Final = ("sentinel_username", "sentinel_password")
_SENTINEL_PORT: Final = 26379


class Shape(Enum):
    """How Redis is set up."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is: ``addresses`` are the server, the sentinels, or some nodes of the Cluster.

    ``login`` carries what a connection to a server needs, whatever host it turns out to be, and
    ``url`` is the same as a plain URL, its host without a meaning unless the shape is ``SINGLE``.
    """

    shape: Shape
    addresses: tuple[Address, ...]
    login: Address
    url: str
    primary: str = ""

    @classmethod
    def parse(cls, url: str) -> Place:
        """Read a URL; raises ``SettingsError``, whose text holds no piece of a password."""
        try:
            return _parse(url)
        except ValueError:
            raise SettingsError(MALFORMED) from None

    def __str__(self) -> str:
        hosts = ",".join(map(str, self.addresses))
        return f"{self.primary} of {hosts}" if self.primary else hosts


def _parse(url: str) -> Place:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        address = Address.parse(url)
        return Place(shape=Shape.SINGLE, addresses=(address,), login=address, url=url)
    scheme, shape = _scheme(parts.scheme)
    credentials, _, hosts = parts.netloc.rpartition("@")
    login = f"{credentials}@" if credentials else ""
    path, primary = parts.path, ""
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel_login = [unquote(query.pop(name, "")) for name in _SENTINEL_ARGUMENTS]

    def plain(host: str, path: str = path) -> str:
        return urlunsplit((scheme, f"{login}{host}", path, urlencode(query), parts.fragment))

    if shape is Shape.SENTINEL:
        primary, _, database = path.strip("/").partition("/")
        path = f"/{database}" if database else ""
        if not primary:
            raise ValueError("no primary's name")
    names = hosts.split(",")
    if len(names) > 1 and (shape is Shape.SINGLE or not all(names)):
        raise ValueError("several hosts")
    addresses = tuple(Address.parse(plain(name, path)) for name in names)
    general = addresses[0]
    if shape is Shape.CLUSTER and general.db:
        raise SettingsError("RELAY_REDIS_URL names a database: a Redis Cluster has only 0")
    if shape is Shape.SENTINEL:
        username, password = sentinel_login
        own = {"username": username or None, "password": password or None, "db": 0}
        addresses = tuple(
            _with(address, own, name) for address, name in zip(addresses, names, strict=True)
        )
    return Place(
        shape=shape, addresses=addresses, login=general, url=plain(names[0], path), primary=primary
    )


def _scheme(text: str) -> tuple[str, Shape]:
    """Return redis-py's scheme and the shape that a URL's scheme means."""
    base, *more = text.split("+")
    shapes = [shape for shape in (Shape.SENTINEL, Shape.CLUSTER) if shape.value in more]
    rest = [word for word in more if word not in ("sentinel", "cluster")]
    if base not in _NAMES or len(shapes) > 1 or rest not in ([], ["tls"]):
        raise ValueError("no scheme of Redis")
    scheme = "rediss" if rest else _NAMES[base]
    return scheme, shapes[0] if shapes else Shape.SINGLE


def _with(address: Address, changes: dict[str, Any], name: str) -> Address:
    """Return a sentinel's address: its own login, and its own default port."""
    if not _has_port(name):
        changes = {**changes, "port": _SENTINEL_PORT}
    return msgspec.structs.replace(address, **changes)


def _has_port(name: str) -> bool:
    return ":" in name.rpartition("]")[2]
