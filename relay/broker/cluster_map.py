"""Which primary of a Redis Cluster serves which slot, as its nodes tell.

Asked anew when somebody noticed that it may have changed, again and again while it has holes or
somebody is not content with it, and now and then anyway. Those who follow it are told of every
change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from random import Random
from typing import Any, Final, Protocol

import msgspec

from relay import logs
from relay.broker.resp import Address
from relay.broker.slots import SLOTS
from relay.errors import Unavailable
from relay.tasks import Tasks

log = logs.get(__name__)

ASK_TIMEOUT_S: Final = 1.0
UNSETTLED_S: Final = 0.25
"""Between two questions while something is not where it should be."""
SETTLED_S: Final = 30.0


class Follower(Protocol):
    """Who acts on the map."""

    def on_map(self) -> None:
        """Act on a map that has been read, be it another one or the same."""

    @property
    def is_settled(self) -> bool:
        """Tell whether the map does; False has it read again soon."""
        ...


class ClusterMap:
    """The map of a Cluster that the nodes at ``seeds`` belong to."""

    def __init__(self, seeds: Sequence[Address]) -> None:
        self.primaries: tuple[Address, ...] = ()
        self.reads = 0
        self._seeds = tuple(_hasty(seed) for seed in seeds)
        self._owners: list[Address | None] = [None] * SLOTS
        self._known: list[Address] = list(self._seeds)
        # The last one that was said to own a slot: others may hear of it a second later.
        self._guide: Address | None = None
        self._followers: dict[Follower, None] = {}
        self._is_wanted = asyncio.Event()
        self._random = Random()  # noqa: S311 - which node is asked first is no secret
        self._tasks = Tasks("cluster map")

    def owner(self, slot: int) -> Address | None:
        """Return the primary that serves a slot, None while there is none."""
        return self._owners[slot]

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` of every reading from now on."""
        self._followers[follower] = None

    def unfollow(self, follower: Follower) -> None:
        """Tell it no more."""
        self._followers.pop(follower, None)

    async def start(self) -> None:
        """Read the map, and keep it true from now on; raises ``Unavailable``."""
        await self._read()
        self._tasks.keep(self._keep, "reading the map of the cluster")

    async def aclose(self) -> None:
        """Stop reading."""
        await self._tasks.aclose()

    def refresh(self) -> None:
        """Read it soon."""
        self._is_wanted.set()

    def moved(self, reply: str, said_by: Address) -> Address:
        """Note what ``MOVED slot host:port`` or ``ASK …`` says; return the address it names."""
        kind, slot, place = reply.split()[:3]
        host, _, port = place.rpartition(":")
        address = self._address(host, int(port), said_by)
        if kind == "MOVED":
            self._owners[int(slot)] = self._guide = address
            self.refresh()
        return address

    # -- reading ----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            is_settled = self._is_whole() and all(each.is_settled for each in self._followers)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLED_S if is_settled else UNSETTLED_S):
                    await self._is_wanted.wait()
            self._is_wanted.clear()
            try:
                await self._read()
            except Unavailable as error:
                log.warning("no node of the cluster answers", reason=error.message)
            await asyncio.sleep(UNSETTLED_S / 4)

    def _is_whole(self) -> bool:
        return None not in self._owners

    async def _read(self) -> None:
        """Ask one node after the other until one answers."""
        guides = [] if self._guide is None else [self._guide]
        known = self._random.sample(self._known, len(self._known))
        reasons = []
        for node in dict.fromkeys([*guides, *known, *self._seeds]):
            try:
                connection = await node.open("relay:map", [("CLUSTER", "SLOTS")])
            except Unavailable as error:
                reasons.append(error.message)
                continue
            connection.abort("answered")
            self._take(connection.answers[0], node)
            return
        raise Unavailable("; ".join(reasons))

    def _take(self, ranges: list[list[Any]], node: Address) -> None:
        owners: list[Address | None] = [None] * SLOTS
        known: set[Address] = set()
        for first, last, *nodes in ranges:
            # A node without a host is at the one where the answer came from.
            hosts = [((each[0] or b"").decode().strip("?"), int(each[1])) for each in nodes]
            primary, *replicas = [self._address(host, port, node) for host, port in hosts]
            owners[first : last + 1] = [primary] * (last + 1 - first)
            known |= {primary, *replicas}
        self._owners = owners
        self.primaries = tuple(dict.fromkeys(owner for owner in owners if owner is not None))
        self._known = sorted(known, key=str)
        self.reads += 1
        for follower in list(self._followers):
            follower.on_map()

    def _address(self, host: str, port: int, said_by: Address) -> Address:
        return self._seeds[0].at(host or said_by.host, port)


def _hasty(address: Address) -> Address:
    return msgspec.structs.replace(address, timeout_s=ASK_TIMEOUT_S)
