"""Requests to a Redis Cluster: one link per primary, and the requests of a slot stay in order.

A slot's requests go to one server at a time. When that server sends them on (``MOVED``, ``ASK``),
cannot run them now (``TRYAGAIN``, ``CLUSTERDOWN``) or is replaced, the slot takes a *detour*: what
was not run is gathered in order, and what comes later joins behind; once nothing of the slot is on
its way any more, its first request tries the way alone, and when it was run the others follow.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from random import Random
from typing import Final

from relay import logs, metrics
from relay.broker.cluster_map import ClusterMap
from relay.broker.link import Elsewhere, Link
from relay.broker.requests import Request
from relay.broker.resp import Address
from relay.errors import Unavailable
from relay.retry import backoff
from relay.tasks import Tasks

log = logs.get(__name__)

FIRST_PAUSE_S: Final = 0.01
LONGEST_PAUSE_S: Final = 0.25

MakeLink = Callable[[Address, Elsewhere], Link]


class Detour:
    """A slot whose requests wait until one of them has found the way.

    ``said`` is what a server last said instead of running one, ``by`` is that server.
    """

    def __init__(self, said: str, by: Address) -> None:
        self.said = said
        self.by = by
        self.waiting: list[Request] = []
        self._bounced: asyncio.Future[None] | None = None

    def add(self, requests: Iterable[Request]) -> None:
        """Take requests back into their order."""
        for request in requests:
            if not request.reply.done():
                insort(self.waiting, request, key=attrgetter("number"))

    def bounce(self, said: str, by: Address) -> None:
        """Learn that a server did not run one."""
        self.said, self.by = said, by
        if self._bounced is not None and not self._bounced.done():
            self._bounced.set_result(None)

    async def ran(self, request: Request, link: Link, *, asking: bool) -> bool:
        """Send one request alone; tell whether it was answered, False when it has come back."""
        bounced = self._bounced = asyncio.get_running_loop().create_future()
        request.asking = asking
        link.take_over([request])
        await asyncio.wait({request.reply, bounced}, return_when=asyncio.FIRST_COMPLETED)
        self._bounced = None
        if not bounced.done():
            await link.landed(request.slot or 0)  # nobody waits any more, but it may still run
        return not bounced.done()


class ClusterLinks:
    """Carries requests to the primary that serves the slot of each."""

    def __init__(self, cluster: ClusterMap, make_link: MakeLink) -> None:
        self._map = cluster
        self._make_link = make_link
        self._links: dict[Address, Link] = {}
        self._addresses: dict[Link, Address] = {}
        self._leaving: set[Link] = set()
        self._detours: dict[int, Detour] = {}
        self._random = Random()  # noqa: S311 - jitter, not secrets
        self._tasks = Tasks("cluster links")

    @property
    def is_connected(self) -> bool:
        """Tell whether every link that was needed so far stands."""
        return all(link.is_connected for link in self._links.values())

    @property
    def load(self) -> int:
        """How many requests are with the links or on a detour."""
        waiting = sum(len(detour.waiting) for detour in self._detours.values())
        return waiting + sum(link.load for link in self._links.values())

    async def start(self) -> None:
        """Follow the map; the links connect when they are needed."""
        self._map.follow(self)

    async def aclose(self) -> None:
        """Disconnect for good."""
        self._map.unfollow(self)
        await self._tasks.aclose()
        for link in (*self._links.values(), *self._leaving):
            await link.aclose()

    def put(self, request: Request) -> None:
        """Take a request; raises ``Unavailable`` when the map is empty."""
        slot = request.slot
        if slot is None:
            self._link(self._any()).put(request)
        elif (detour := self._detours.get(slot)) is not None:
            detour.waiting.append(request)
        elif (owner := self._map.owner(slot)) is not None:
            self._link(owner).put(request)
        else:
            self._begin(slot, "CLUSTERDOWN", self._link(self._any())).add([request])

    def _any(self) -> Address:
        for address in self._map.primaries:
            if (link := self._links.get(address)) is not None and link.is_connected:
                return address
        if not self._map.primaries:
            self._map.refresh()
            raise Unavailable("no node of the cluster serves anything")
        return self._map.primaries[0]

    def _link(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = self._make_link(address, self._elsewhere)
            self._addresses[link] = address
            link.start_soon()
        return link

    # -- what follows the map ---------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Tell whether the map is good enough: every server on it answers."""
        return self.is_connected and not self._detours

    def on_map(self) -> None:
        """Send slots that are served elsewhere now on a detour, and leave servers that are gone."""
        for address, link in list(self._links.items()):
            for slot in link.slots():
                if self._map.owner(slot) != address:
                    self._take_away(slot, link)
            if address not in self._map.primaries:
                del self._links[address]
                self._leaving.add(link)
                self._tasks.spawn(self._leave(link))

    def _take_away(self, slot: int, link: Link) -> None:
        detour = self._detours.get(slot)
        if detour is None:
            self._begin(slot, "MOVED", link)
        elif unsent := link.withdraw(slot):
            detour.add(unsent)
            detour.bounce("MOVED", self._addresses[link])

    async def _leave(self, link: Link) -> None:
        """Close a link once nothing that was sent on it awaits an answer."""
        await asyncio.gather(*map(link.landed, link.slots()))
        await link.aclose()
        self._leaving.discard(link)
        del self._addresses[link]

    # -- detours ----------------------------------------------------------------------------------

    def _elsewhere(self, link: Link, request: Request, said: str) -> None:
        """Take a request that ``link`` did not run."""
        if request.slot is None:
            request.fail("Redis refused the command", reason="redis_refused")
            return
        detour = self._detours.get(request.slot) or self._begin(request.slot, said, link)
        detour.add([request])
        detour.bounce(said, self._addresses[link])

    def _begin(self, slot: int, said: str, link: Link) -> Detour:
        log.info("detour", slot=slot, said=said)
        metrics.REDIS_DETOURS.labels(said.partition(" ")[0].lower()).inc()
        detour = self._detours[slot] = Detour(said, self._addresses[link])
        detour.add(link.withdraw(slot))
        self._tasks.keep(partial(self._lead, slot, detour, link), "leading a detour")
        return detour

    async def _lead(self, slot: int, detour: Detour, source: Link) -> None:
        """Let one request after the other try the way, until the slot's owner has run one."""
        await source.landed(slot)
        detour.add(source.withdraw(slot))  # what was on its way when the connection was lost
        failures, target = 0, None
        while detour.waiting:
            target, asking = self._way(slot, detour)
            for request in detour.waiting:
                request.homeless = target is None
            if target is None or failures:
                self._map.refresh()
                await asyncio.sleep(self._pause(failures))
            failures += 1
            detour.waiting = [request for request in detour.waiting if not request.reply.done()]
            if target is None or not detour.waiting:
                continue
            way = self._link(target)
            if await detour.ran(detour.waiting.pop(0), way, asking=asking):
                failures = 0
                if not asking and self._map.owner(slot) == target:
                    break
        del self._detours[slot]
        if detour.waiting and target is not None:
            self._link(target).take_over(detour.waiting)

    def _way(self, slot: int, detour: Detour) -> tuple[Address | None, bool]:
        """Return where the next request is to go, and whether it has to ask there."""
        said, detour.said = detour.said, ""
        if said.startswith(("MOVED ", "ASK ")):
            named = self._map.moved(said, detour.by)
            if said.startswith("ASK "):
                return named, True
        return self._map.owner(slot), False

    def _pause(self, failures: int) -> float:
        return backoff(
            max(1, failures), self._random, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S
        )
