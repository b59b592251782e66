"""Prove that events flow: a canary through publish → Redis → this process's own subscription.

One for each connection that publications arrive on, every second. One that is late says which hop
does not work; one that Redis took and that did not come back has its connection replaced, whereupon
the primary is looked for anew and all positions are compared. Beside it goes a question to the same
server on the connection for commands, by which gaps are repaired: no canary flies there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Protocol

from relay import logs, metrics
from relay.errors import Unavailable
from relay.tasks import Tasks

log = logs.get(__name__)

EVERY_S: Final = 1.0
LATE_S: Final = 3.5
"""Without a canary for that long events do not flow; with ``EVERY_S`` it is told within 5 s."""
HEAL_EVERY_S: Final = 5.0

BROKER: Final = "broker"
PUBLISH: Final = "publish"
SUBSCRIPTION: Final = "subscription"
HOPS: Final = (BROKER, PUBLISH, SUBSCRIPTION)


class Canary:
    """What is known of one canary and its server; times are the loop's, in seconds. Pure."""

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.taken_at = now
        self.missing_since: float | None = None
        self.failure = self.silence = "it does not answer"
        self._answered_at = now
        self._healed_at = now

    def taken(self, now: float) -> None:
        """Note that Redis has taken one: from now on it is missing until it is heard."""
        self.taken_at = now
        if self.missing_since is None:
            self.missing_since = now

    def heard(self, now: float) -> None:
        """Note that one has come back."""
        self.heard_at = now
        self.missing_since = None

    def problem(self, now: float) -> tuple[str, str] | None:
        """Return the hop that does not work and why, None while events flow."""
        late_s = now - self.heard_at
        if self.missing_since is not None:
            if now - self.missing_since <= LATE_S - EVERY_S:
                return None
            if now - self.taken_at <= 2 * EVERY_S:
                return SUBSCRIPTION, (
                    f"Redis takes events, but none has come back to this process for {late_s:.0f} s"
                )
        if late_s <= LATE_S:
            return None
        return PUBLISH, f"Redis has taken no event for {late_s:.0f} s: {self.failure}"

    def answered(self, now: float) -> None:
        """Note that the server has answered a question."""
        self._answered_at = now

    def silent(self, now: float) -> str | None:
        """Return why the server cannot be asked anything, None while it can."""
        silent_s = now - self._answered_at
        if silent_s <= LATE_S:
            return None
        return f"Redis has answered no command for {silent_s:.0f} s: {self.silence}"

    def reconnecting(self, now: float) -> None:
        """Note that the connection is being made anew: that is all that healing would do."""
        self._healed_at = now

    def is_to_heal(self, now: float) -> bool:
        """Tell, once in a while, that the connection should be replaced."""
        problem = self.problem(now)
        if problem is None or problem[0] != SUBSCRIPTION:
            return False
        if now - self._healed_at < HEAL_EVERY_S:
            return False
        self._healed_at = now
        return True


class Subscriptions(Protocol):
    """What canaries need of a subscriber."""

    def stands(self, cid: str) -> bool:
        """Tell whether the connection that ``cid`` is subscribed on stands."""
        ...

    async def subscribe(self, cid: str) -> None:
        """Subscribe to what is published under ``cid``."""

    def unsubscribe(self, cid: str) -> None:
        """Unsubscribe."""

    def drop(self, cid: str, why: str) -> None:
        """Replace the connection that ``cid`` is subscribed on."""


class Canaries:
    """The canaries of a process. ``cids`` names those there should be now, one a connection.

    ``ask`` asks the server that serves a cid for a sign of life.
    """

    def __init__(
        self,
        publish: Callable[[str, bytes], Awaitable[object]],
        ask: Callable[[str], Awaitable[object]],
        subscriptions: Subscriptions,
        cids: Callable[[], Collection[str]],
    ) -> None:
        self._publish = publish
        self._ask = ask
        self._subscriptions = subscriptions
        self._cids = cids
        self._canaries: dict[str, Canary] = {}
        self._flying: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks = Tasks("canaries")

    def start(self) -> None:
        """Send canaries from now on."""
        self._tasks.keep(self._run, "sending canaries")

    async def aclose(self) -> None:
        """Send no more."""
        await self._tasks.aclose()

    def problems(self) -> Mapping[str, str | None]:
        """Return what is wrong with each hop, None where nothing is."""
        now = asyncio.get_running_loop().time()
        problems: dict[str, str | None] = dict.fromkeys(HOPS)
        for canary in self._canaries.values():
            if (problem := canary.problem(now)) is not None:
                problems[problem[0]] = problem[1]
            problems[BROKER] = problems[BROKER] or canary.silent(now)
        return problems

    def on_canary(self, cid: str, token: bytes) -> None:
        """Learn that one has come back; its token is when it was sent, in loop time."""
        if (canary := self._canaries.get(cid)) is not None:
            now = asyncio.get_running_loop().time()
            canary.heard(now)
            metrics.CANARY_SECONDS.observe(now - float(token))

    async def _run(self) -> None:
        while True:
            now = asyncio.get_running_loop().time()
            self._choose(now)
            for cid, canary in self._canaries.items():
                if not self._subscriptions.stands(cid):
                    canary.reconnecting(now)
                elif canary.is_to_heal(now):
                    metrics.CANARIES_MISSED.inc()
                    log.error("events do not come back from redis", canary=cid)
                    self._subscriptions.drop(cid, "a canary did not come back")
                self._send(cid, canary, now)
            metrics.REDIS_UP.set(not any(self.problems().values()))
            await asyncio.sleep(EVERY_S)

    def _choose(self, now: float) -> None:
        """Begin and end canaries, so that there is one for each connection."""
        wanted = set(self._cids())
        for cid in wanted - self._canaries.keys():
            self._canaries[cid] = Canary(now)
            self._tasks.keep(partial(self._subscribe, cid), "subscribing to a canary")
        for cid in self._canaries.keys() - wanted:
            del self._canaries[cid]
            self._subscriptions.unsubscribe(cid)

    async def _subscribe(self, cid: str) -> None:
        while cid in self._canaries:
            try:
                await self._subscriptions.subscribe(cid)
                return
            except Unavailable:
                await asyncio.sleep(EVERY_S)

    def _send(self, cid: str, canary: Canary, now: float) -> None:
        """Publish and ask; neither again before Redis has answered what went before."""
        if (PUBLISH, cid) not in self._flying:
            self._fly(PUBLISH, cid, self._sent(cid, canary, now))
        if (BROKER, cid) not in self._flying:
            self._fly(BROKER, cid, self._asked(cid, canary))

    def _fly(self, hop: str, cid: str, way: Coroutine[Any, Any, None]) -> None:
        task = self._flying[hop, cid] = self._tasks.spawn(way)
        task.add_done_callback(lambda _: self._flying.pop((hop, cid), None))

    async def _sent(self, cid: str, canary: Canary, now: float) -> None:
        try:
            await self._publish(cid, str(now).encode())
        except Unavailable as error:
            canary.failure = error.message
        else:
            canary.taken(asyncio.get_running_loop().time())

    async def _asked(self, cid: str, canary: Canary) -> None:
        try:
            await self._ask(cid)
        except Unavailable as error:
            canary.silence = error.message
        else:
            canary.answered(asyncio.get_running_loop().time())
