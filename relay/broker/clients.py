"""redis-py's clients for what RELAY_REDIS_URL says, for whoever is not the relay itself.

``relay.Publisher`` and ``relay check`` use them; the relay speaks to Redis through ``deployments``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import RedisClusterException
from redis.retry import Retry

from relay.broker.redis_url import Place, Shape
from relay.errors import Unavailable

__all__ = ["aclose", "afollow", "asking", "asynchronous", "blocking", "close", "follow"]

LOOK_S: Final = 1.0
"""How long one sentinel may take to connect, and to answer, before the next one is asked."""


@contextmanager
def asking() -> Iterator[None]:
    """Raise ``Unavailable`` for whatever redis-py raises inside, which is then its cause.

    Of a Cluster none of whose nodes can be reached it raises what is no ``redis.RedisError``.
    """
    try:
        yield
    except (redis.RedisError, RedisClusterException) as error:
        raise Unavailable(f"Redis: {error}") from error


def blocking(url: str, **options: Any) -> redis.Redis:
    """Return a client that blocks; for a Cluster it has the same commands.

    Raises ``SettingsError`` for a URL that is none. A Cluster is asked for its map: see ``asking``.
    """
    place = Place.parse(url)
    if place.shape is Shape.CLUSTER:
        return cast(redis.Redis, redis.RedisCluster(**_cluster(place), **options))
    if place.shape is Shape.SENTINEL:
        sentinels = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            _hosts(place),
            sentinel_kwargs=_sentinel_login(place) | {"retry": Retry(NoBackoff(), 0)} | options,
        )
        found: redis.Redis = sentinels.master_for(place.primary, **_login(place), **options)  # type: ignore[no-untyped-call]
        return found
    return redis.Redis.from_url(place.url, **options)


def asynchronous(url: str) -> redis.asyncio.Redis:
    """Return a client for asyncio, as ``blocking``; it connects when it is first used."""
    place = Place.parse(url)
    if place.shape is Shape.CLUSTER:
        return cast(redis.asyncio.Redis, redis.asyncio.RedisCluster(**_cluster(place, True)))
    if place.shape is Shape.SENTINEL:
        sentinels = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            _hosts(place),
            sentinel_kwargs=_sentinel_login(place) | {"retry": AsyncRetry(NoBackoff(), 0)},
        )
        found: redis.asyncio.Redis = sentinels.master_for(place.primary, **_login(place))
        return found
    return redis.asyncio.Redis.from_url(place.url)


def follow(client: redis.Redis) -> None:
    """Ask the sentinels where the primary is, and leave connections to another one.

    A primary that was replaced while it lives goes on taking what is written to it for seconds,
    until it is made a replica and forgets it. Does nothing where no sentinel is asked.
    """
    if _sentinels_of(client):
        with suppress(redis.RedisError):  # whoever publishes learns whether the primary answers
            cast(Any, client.connection_pool).get_master_address()


async def afollow(client: redis.asyncio.Redis) -> None:
    """Do as ``follow``."""
    if _sentinels_of(client):
        with suppress(redis.RedisError):
            await cast(Any, client.connection_pool).get_master_address()


def close(client: redis.Redis) -> None:
    """Close a client's connections, those to sentinels included."""
    client.close()
    for sentinel in _sentinels_of(client):
        sentinel.close()


async def aclose(client: redis.asyncio.Redis) -> None:
    """Close a client's connections, those to sentinels included."""
    await client.aclose()
    for sentinel in _sentinels_of(client):
        await sentinel.aclose()


def _sentinels_of(client: Any) -> list[Any]:
    pool = getattr(client, "connection_pool", None)
    manager = getattr(pool, "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _hosts(place: Place) -> list[tuple[str, int]]:
    return [(address.host, address.port) for address in place.addresses]


def _login(place: Place) -> dict[str, Any]:
    """Return how to log in, as arguments of redis-py, whatever the host."""
    parts: dict[str, Any] = dict(parse_url(place.url))  # type: ignore[no-untyped-call]
    is_tls = place.login.tls is not None
    for name in ("host", "port", "connection_class"):
        parts.pop(name, None)
    return parts | ({"ssl": True} if is_tls else {})


def _sentinel_login(place: Place) -> dict[str, Any]:
    login = {"socket_timeout": LOOK_S, "socket_connect_timeout": LOOK_S} | _login(place)
    own = {
        "username": place.addresses[0].username,
        "password": place.addresses[0].password,
        "db": 0,
    }
    return login | own


def _cluster(place: Place, is_async: bool = False) -> dict[str, Any]:
    node = redis.asyncio.cluster.ClusterNode if is_async else redis.cluster.ClusterNode
    login = _login(place)
    login.pop("db", None)
    return {"startup_nodes": [node(host, port) for host, port in _hosts(place)], **login}
