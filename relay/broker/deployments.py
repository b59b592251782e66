"""What the broker speaks through, made to fit how Redis is set up.

A ``Single`` has one way to one server: an address, or sentinels that know the primary. A
``Cluster`` has a connection of each kind to every primary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from relay.broker import Listener
from relay.broker.cluster_links import ClusterLinks
from relay.broker.cluster_map import ClusterMap
from relay.broker.cluster_subscriber import ClusterSubscriber
from relay.broker.keyspace import Keyspace
from relay.broker.link import Elsewhere, Link, Replicas
from relay.broker.redis_url import Place, Shape
from relay.broker.requests import Commands
from relay.broker.resp import Address, Route
from relay.broker.scripts import Script
from relay.broker.sentinels import Sentinels
from relay.broker.subscriber import Elsewhere as SubscriptionElsewhere
from relay.broker.subscriber import Subscriber

__all__ = ["Deployment", "Subscriptions", "Wanted", "of"]

Changed = Callable[[], None]
"""Called whenever a connection came or went."""


class Subscriptions(Protocol):
    """Subscriptions to calls, wherever they are served."""

    @property
    def is_connected(self) -> bool:
        """Tell whether every connection stands."""
        ...

    @property
    def cids(self) -> list[str]:
        """Return the calls that are subscribed to."""
        ...

    def listen(
        self,
        listener: Listener,
        plain: Mapping[str, Callable[[bytes], None]],
        canary: Callable[[str, bytes], None],
    ) -> None:
        """Say who is told what arrives; before anything else.

        ``plain`` are channels that are not of calls, and who takes their messages.
        """

    async def start(self) -> None:
        """Connect; raises ``Unavailable``."""

    async def aclose(self) -> None:
        """Disconnect."""

    async def subscribe(self, cid: str) -> None:
        """Subscribe to a call and wait for the confirmation; raises ``Unavailable``."""

    def unsubscribe(self, cid: str) -> None:
        """Unsubscribe from a call."""

    def stands(self, cid: str) -> bool:
        """Tell whether the connection that a call is subscribed on stands."""
        ...

    def drop(self, cid: str, why: str) -> None:
        """Replace the connection that a call is subscribed on."""


class Wanted(NamedTuple):
    """What commands are wanted: their connections are called ``what`` and know ``scripts``.

    ``bound`` is how many may wait, ``timeout_s`` how long each; ``replicas`` must have each write.
    """

    what: str
    scripts: Sequence[Script]
    timeout_s: float
    bound: int
    replicas: Replicas | None = None


class Deployment(Protocol):
    """Makes commands and subscriptions for one Redis."""

    async def start(self) -> None:
        """Find out what has to be known first; raises ``Unavailable``."""

    async def aclose(self) -> None:
        """End what ``start`` began; what was made is its user's to close."""

    def commands(self, wanted: Wanted) -> Commands:
        """Return commands for what is wanted."""
        ...

    def subscriptions(self, what: str, *, channels: Keyspace, timeout_s: float) -> Subscriptions:
        """Return subscriptions to ``channels`` whose connections are called ``what``."""
        ...

    def partitions(self) -> list[int]:
        """Return one partition of each server, for a canary, and one that no server has."""
        ...


def of(place: Place, keyspace: Keyspace, node: str, changed: Changed) -> Deployment:
    """Return the deployment at a place; ``changed`` is called when a connection came or went."""
    if place.shape is Shape.CLUSTER:
        return Cluster(place, keyspace, node, changed)
    return Single(place, node, changed)


class Connections:
    """Makes the connections of one process; ``changed`` is called when one came or went."""

    def __init__(self, node: str, changed: Changed) -> None:
        self._node = node
        self._changed = changed

    def link(self, wanted: Wanted, route: Route, elsewhere: Elsewhere | None = None) -> Link:
        """Return a connection for commands."""
        return Link(
            route,
            connection_name(self._node, wanted.what),
            scripts=wanted.scripts,
            away_after_s=wanted.timeout_s,
            changed=self._changed,
            replicas=wanted.replicas,
            elsewhere=elsewhere,
        )

    def subscriber(
        self,
        what: str,
        channels: Keyspace,
        timeout_s: float,
        route: Route,
        elsewhere: SubscriptionElsewhere | None = None,
    ) -> Subscriber:
        """Return a connection for subscriptions."""
        return Subscriber(
            route,
            connection_name(self._node, what),
            keyspace=channels,
            node=self._node,
            timeout_s=timeout_s,
            changed=self._changed,
            elsewhere=elsewhere,
        )


class Single:
    """One server at a time."""

    def __init__(self, place: Place, node: str, changed: Changed) -> None:
        self._sentinels = None
        self._route: Route = place.login
        if place.shape is Shape.SENTINEL:
            self._route = self._sentinels = Sentinels(place.addresses, place.primary, place.login)
        self._connections = Connections(node, changed)

    async def start(self) -> None:
        """Follow the sentinels, where there are any."""
        if self._sentinels is not None:
            self._sentinels.start()

    async def aclose(self) -> None:
        """Follow them no more."""
        if self._sentinels is not None:
            await self._sentinels.aclose()

    def commands(self, wanted: Wanted) -> Commands:
        """Return commands over one connection."""
        link = self._connections.link(wanted, self._route)
        return Commands(link, timeout_s=wanted.timeout_s, bound=wanted.bound)

    def subscriptions(self, what: str, *, channels: Keyspace, timeout_s: float) -> Subscriber:
        """Return subscriptions over one connection."""
        return self._connections.subscriber(what, channels, timeout_s, self._route)

    def partitions(self) -> list[int]:
        """Return any partition: all lie on one server."""
        return [0]


class Cluster:
    """All primaries of a Cluster."""

    def __init__(self, place: Place, keyspace: Keyspace, node: str, changed: Changed) -> None:
        self._map = ClusterMap(place.addresses)
        self._keyspace = keyspace
        self._outer_changed = changed
        self._connections = Connections(node, self._changed)

    async def start(self) -> None:
        """Read the map; raises ``Unavailable``."""
        await self._map.start()

    async def aclose(self) -> None:
        """Read it no more."""
        await self._map.aclose()

    def _changed(self) -> None:
        self._map.refresh()  # perhaps a replica is taking over
        self._outer_changed()

    def commands(self, wanted: Wanted) -> Commands:
        """Return commands that go to the server of their first key's slot."""
        carrier = ClusterLinks(self._map, partial(self._connections.link, wanted))
        return Commands(carrier, timeout_s=wanted.timeout_s, bound=wanted.bound, routed=True)

    def subscriptions(
        self, what: str, *, channels: Keyspace, timeout_s: float
    ) -> ClusterSubscriber:
        """Return subscriptions at the server of each call's slot."""
        subscriber = partial(self._connections.subscriber, what, channels, timeout_s)
        return ClusterSubscriber(self._map, channels, subscriber)

    def partitions(self) -> list[int]:
        """Return the first partition of each primary, and the first that none serves.

        The canary of that one cannot fly: so it is told that some calls are served by nobody.
        """
        found: dict[Address | None, int] = {}
        for partition in range(self._keyspace.partitions):
            found.setdefault(self._map.owner(self._keyspace.slot(partition)), partition)
        return list(found.values())


def connection_name(node: str, what: str) -> str:
    """Return what ``CLIENT LIST`` shows of a connection of this process."""
    return f"relay:{node}:{what}"
