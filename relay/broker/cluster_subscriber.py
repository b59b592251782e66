"""Subscriptions in a Redis Cluster: a connection per primary, a call on that of its slot.

When a slot moves its old server ends the subscriptions; they are made anew where the map says the
slot is now, and then it is told that something may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from relay import logs
from relay.broker import Listener
from relay.broker.cluster_map import ClusterMap
from relay.broker.keyspace import Keyspace
from relay.broker.resp import Address
from relay.broker.slots import key_slot
from relay.broker.subscriber import Elsewhere, Subscriber
from relay.errors import Unavailable
from relay.tasks import Tasks

log = logs.get(__name__)

MakeSubscriber = Callable[[Address, Elsewhere], Subscriber]

NOWHERE: Final = "no server of the cluster serves the call now"


class ClusterSubscriber:
    """Does what a ``Subscriber`` does, on all primaries of a Cluster."""

    def __init__(
        self, cluster: ClusterMap, keyspace: Keyspace, make_subscriber: MakeSubscriber
    ) -> None:
        self._map = cluster
        self._keyspace = keyspace
        self._make_subscriber = make_subscriber
        self._nodes: dict[Address, Subscriber] = {}
        self._homes: dict[bytes, Subscriber] = {}
        self._homeless: set[bytes] = set()
        self._tasks = Tasks("cluster subscriber")
        self._listener: Listener
        self._plain: Mapping[str, Callable[[bytes], None]] = {}
        self._canary: Callable[[str, bytes], None]

    @property
    def is_connected(self) -> bool:
        """Tell whether the connection to every primary stands."""
        return all(node.is_connected for node in self._nodes.values())

    @property
    def cids(self) -> list[str]:
        """Return the calls that are subscribed to."""
        return [cid for node in self._nodes.values() for cid in node.cids]

    def listen(
        self,
        listener: Listener,
        plain: Mapping[str, Callable[[bytes], None]],
        canary: Callable[[str, bytes], None],
    ) -> None:
        """Say who is told what arrives; before anything else."""
        self._listener, self._plain, self._canary = listener, plain, canary

    async def start(self) -> None:
        """Connect to every primary, now and when another one appears."""
        self._map.follow(self)
        self.on_map()

    async def aclose(self) -> None:
        """Disconnect."""
        self._map.unfollow(self)
        await self._tasks.aclose()
        for node in self._nodes.values():
            await node.aclose()

    async def subscribe(self, cid: str) -> None:
        """Subscribe to a call and wait for the confirmation; raises ``Unavailable``."""
        channel = self._keyspace.channel(cid).encode()
        home = self._homes.get(channel)
        if home is None:
            owner = self._map.owner(key_slot(channel))
            if owner is None:
                self._map.refresh()
                raise Unavailable(NOWHERE)
            home = self._homes[channel] = self._node(owner)
        try:
            await home.subscribe(cid)
        except Unavailable:
            # It may have moved meanwhile, and then it is another node that has to give it up.
            self.unsubscribe(cid)
            raise

    def unsubscribe(self, cid: str) -> None:
        """Unsubscribe from a call; nothing of it is handed over any more."""
        channel = self._keyspace.channel(cid).encode()
        if (home := self._homes.pop(channel, None)) is not None:
            self._homeless.discard(channel)
            home.unsubscribe(cid)

    def stands(self, cid: str) -> bool:
        """Tell whether the connection that a call is subscribed on, or would be, stands."""
        home = self._home(cid)
        return home is not None and home.is_connected

    def drop(self, cid: str, why: str) -> None:
        """Give up the connection that a call is subscribed on, or would be, and make another."""
        if (home := self._home(cid)) is not None:
            home.drop(cid, why)

    def _home(self, cid: str) -> Subscriber | None:
        """Return the node that has a call; between two tries to subscribe, the one that would."""
        channel = self._keyspace.channel(cid).encode()
        if (home := self._homes.get(channel)) is not None:
            return home
        owner = self._map.owner(key_slot(channel))
        return None if owner is None else self._nodes.get(owner)

    # -- what follows the map ---------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Tell whether every call is subscribed to where it is served."""
        return self.is_connected and not self._homeless

    def on_map(self) -> None:
        """Move calls to where they are served now; join servers that are new, leave old ones."""
        for address in self._map.primaries:
            self._node(address)
        for channel, home in list(self._homes.items()):
            owner = self._map.owner(key_slot(channel))
            if owner is not None and (
                home is not self._nodes.get(owner) or channel in self._homeless
            ):
                self._move(channel, home, self._node(owner))
        for address in self._nodes.keys() - set(self._map.primaries):
            if self._nodes[address] not in self._homes.values():
                self._tasks.spawn(self._nodes.pop(address).aclose())

    def _move(self, channel: bytes, home: Subscriber, to: Subscriber) -> None:
        log.info("subscription moves", channel=channel.decode())
        cid, waiting = home.release(channel, is_ended=channel in self._homeless)
        self._homeless.discard(channel)
        self._homes[channel] = to
        to.adopt(channel, cid, waiting)

    def _elsewhere(self, node: Subscriber, channel: bytes) -> None:
        """Take a channel that ``node`` no longer serves: the next reading of the map places it."""
        if self._homes.get(channel) is node:
            self._homeless.add(channel)
            self._map.refresh()

    def _node(self, address: Address) -> Subscriber:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = self._make_subscriber(address, self._elsewhere)
            plain = {
                name: partial(self._on_plain, node, take) for name, take in self._plain.items()
            }
            node.listen(self._listener, plain, self._canary)
            node.start_soon()
        return node

    def _on_plain(self, node: Subscriber, take: Callable[[bytes], None], message: bytes) -> None:
        """Pass on what came on a plain channel: every server has it, one is listened to."""
        standing = (each for each in self._nodes.values() if each.is_connected)
        if next(standing, None) is node:
            take(message)
