"""A rig that breaks things on purpose: relays on a Redis, senders that insist, watchers that count.

Senders give every event an id and repeat what was answered 503 under the same id, as docs tell them
to. Watchers write down what they are told. In the end ``check`` holds it against the promise: every
accepted event came to every watcher, once and in order, or the watcher was told that it did not.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Final

import anyio
import httpx

from tests import ledger
from tests.integration.doors import event_path
from tests.processes import API_KEY, RelayProcess
from tests.relay_client import Client, Frame, connected

SOAK: Final = int(os.environ.get("SOAK", "0"))
ROUNDS: Final = max(1, SOAK // 10)
"""How often a scenario is gone through: once in ``make test``, more often in ``make soak``."""

CALLS: Final = ("default:one", "default:two", "livestream:three")
TIMEOUT_S: Final = 1.0
"""RELAY_PUBLISH_TIMEOUT of the relays, where nothing else is said."""
DRAIN_S: Final = 1.0
"""RELAY_DRAIN_TIMEOUT of the relays: what is looked at here is over when they stop."""
BUSY_S: Final = 9.0
"""An answer takes no longer than the stated bound and this, which a very busy machine may add."""
PATIENCE_S: Final = 30.0


class Sender:
    """Sends numbered events of one call, one after the other, and insists on each."""

    def __init__(self, relay: RelayProcess, cid: str, random: Random) -> None:
        self.cid = cid
        self.accepted: list[int] = []
        self.refused = 0
        self.longest_s = 0.0
        self._number = 0
        self._relay = relay
        self._random = random
        self._stopping = False

    def start(self) -> asyncio.Task[None]:
        """Send until ``stop``."""
        self._stopping = False
        return asyncio.create_task(self._run())

    async def _run(self) -> None:
        headers = {"authorization": self._relay.token(), "stream-auth-type": "jwt"}
        async with httpx.AsyncClient(
            base_url=self._relay.base_url, timeout=PATIENCE_S, headers=headers
        ) as client:
            while not self._stopping:
                await self._send(client)
                await asyncio.sleep(self._random.uniform(0.001, 0.02))

    def stop(self) -> None:
        """End after the event that is under way."""
        self._stopping = True

    async def _send(self, client: httpx.AsyncClient) -> None:
        self._number += 1
        body = {
            "custom": {"n": self._number},
            "user_id": "jane",
            "event_id": f"{self.cid}-{self._number}",
        }
        while True:
            began = time.monotonic()
            answer = await client.post(event_path(self.cid), params={"api_key": API_KEY}, json=body)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if answer.status_code == 201:
                self.accepted.append(self._number)
                return
            assert answer.status_code == 503, answer.text
            self.refused += 1
            await asyncio.sleep(0.05)


class Storm:
    """Relays, senders and watchers at work."""

    def __init__(self, relays: list[RelayProcess], seed: int, timeout_s: float) -> None:
        self.relays = relays
        self.timeout_s = timeout_s
        self.random = Random(seed)
        self.watchers: list[Client] = []
        self.senders = [
            Sender(relays[number % len(relays)], cid, Random(seed + number))
            for number, cid in enumerate(CALLS)
        ]
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to send, or go on."""
        self._running = [sender.start() for sender in self.senders]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until ``condition`` is true; fails when a sender has, or after a while."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for task in self._running:
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, f"in vain: {what}"
            await asyncio.sleep(0.01)

    async def accept(self, count: int, cids: Collection[str] = CALLS) -> None:
        """Wait until every sender of these calls had so many more events accepted."""
        goals = [(each, len(each.accepted) + count) for each in self._of(cids)]
        await self.until(
            lambda: all(len(sender.accepted) >= goal for sender, goal in goals),
            "events are accepted",
        )

    async def refuse(self, count: int, cids: Collection[str] = CALLS) -> None:
        """Wait until every sender of these calls was refused so many times more."""
        goals = [(sender, sender.refused + count) for sender in self._of(cids)]
        await self.until(
            lambda: all(sender.refused >= goal for sender, goal in goals), "events are refused"
        )

    def refusals(self, cids: Collection[str]) -> int:
        """Return how often the senders of these calls were refused so far."""
        return sum(sender.refused for sender in self._of(cids))

    def _of(self, cids: Collection[str]) -> list[Sender]:
        return [sender for sender in self.senders if sender.cid in cids]

    async def until_ready(self, status: int) -> Frame:
        """Wait until every relay's /readyz answers so; return the last answer."""
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(timeout=PATIENCE_S) as client,
        ):
            while True:
                answers = await asyncio.gather(
                    *[client.get(f"{relay.base_url}/readyz") for relay in self.relays]
                )
                if all(answer.status_code == status for answer in answers):
                    return dict(answers[-1].json())
                await asyncio.sleep(0.05)

    async def fall_silent(self) -> None:
        """Stop sending, and return once the last event of every sender is accepted."""
        for sender in self.senders:
            sender.stop()
        await asyncio.gather(*self._running)

    async def finish(self) -> None:
        """Stop sending, and return once every watcher has each call's last event."""
        await self.fall_silent()
        assert {watcher.close_code for watcher in self.watchers} == {None}, "sockets stay"
        for watcher in self.watchers:
            for sender in self.senders:
                await self.until(
                    lambda w=watcher, s=sender: numbers(w, s.cid)[-1:] == s.accepted[-1:],  # type: ignore[misc]
                    f"the last event of {sender.cid} arrives",
                )

    def check(self, *, losses: bool = False) -> None:
        """Hold everything against the promise; ``losses`` says that some may have been told."""
        for sender in self.senders:
            latest_s = self.timeout_s + BUSY_S
            assert sender.longest_s < latest_s, "publishing waits at most for a stated time"
            for watcher in self.watchers:
                seen = numbers(watcher, sender.cid)
                told = follow(watcher, sender.cid)
                assert seen == sorted(set(seen)), "once, and in the sender's order"
                assert losses or told == 0, "nothing was lost"
                missing = set(sender.accepted) - set(seen)
                assert told or not missing, f"lost without a word: {sorted(missing)}"


def numbers(watcher: Client, cid: str) -> list[int]:
    """Return the numbers of a call's events, as they came."""
    return [event["custom"]["n"] for event in watcher.events if event["call_cid"] == cid]


def follow(watcher: Client, cid: str) -> int:
    """Check that offsets follow one another but for losses that were told; count those."""
    told, offset = 0, 0
    for frame in watcher.frames:
        if frame.get("call_cid") != cid:
            continue
        if frame["type"] == "call.watching":
            offset = frame["offset"]
        elif frame["type"] == "call.position":
            assert frame["recovered"] is False
            told, offset = told + 1, frame["offset"]
        elif "event_id" in frame:
            offset += 1
            assert frame["offset"] == offset, "a gap without a word"
    return told


async def _balanced(relay: RelayProcess) -> None:
    """Return once a relay's books add up; what is under way is not in them yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        books = await ledger.read(relay)
        try:
            books.check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            return


@asynccontextmanager
async def storm(
    redis_url: str, seed: int, relays: int = 2, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Storm]:
    """Run relays with watchers of every call, and senders that have already begun."""
    print("seed", seed)
    async with AsyncExitStack() as stack:
        started = [
            RelayProcess(
                redis_url=redis_url,
                redis_prefix="storm:",
                publish_timeout=timeout_s,
                drain_timeout=DRAIN_S,
            )
            for _ in range(relays)
        ]
        for relay in started:
            await anyio.to_thread.run_sync(relay.start)  # a proxy may run on this loop
            stack.push(relay)
        made = Storm(started, seed, timeout_s)
        for relay in started:
            for user in ("ann", "bob"):
                client = await stack.enter_async_context(connected(relay, user))
                for cid in CALLS:
                    await client.watch(cid)
                made.watchers.append(client)
        made.start()
        await made.accept(5)
        yield made
        await made.finish()
        for relay in started:
            await _balanced(relay)
        # A relay logs what went wrong: that is no failure here, a traceback would be.
        for relay in started:
            relay.terminate()
        for relay in started:
            assert await anyio.to_thread.run_sync(relay.wait) == 0
            assert "Traceback" not in relay.log, relay.log
