"""A rig that breaks things on purpose: relays on a Redis, senders that insist, watchers that count.

There is a sender for each door that keeps events, and one that insists. Watchers, and the receiver
of a hook, write down what they are told. In the end ``check`` holds it against the promise: every
accepted event came to every watcher, once and in order, or the watcher was told that it did not; it
came to the hook at least once; and the relays' own books say the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random
from typing import Final

import anyio
import httpx

from tests import ledger
from tests.egress.receiver import Peer, Receiver, receiving, status
from tests.hardening.senders import (
    ApiSender,
    Sender,
    SocketSender,
    StreamSender,
    WebhookSender,
    insisting,
    logged_in,
)
from tests.processes import RelayProcess
from tests.relay_client import Client, Frame, Refused

SOAK: Final = int(os.environ.get("SOAK", "0"))
ROUNDS: Final = max(1, SOAK // 10)
"""How often a scenario is gone through: once in ``make test``, more often in ``make soak``."""

CALLS: Final = ("default:one", "default:two", "livestream:three")
"""Get their events by the API."""
STREAMED: Final = "default:ingest"
OTHERS: Final = ("default:webhook", "livestream:socket", STREAMED)
"""Get their events by another door each."""
ALL_CALLS: Final = (*CALLS, *OTHERS)
PREFIX: Final = "storm:"
TIMEOUT_S: Final = 1.0
"""RELAY_PUBLISH_TIMEOUT of the relays, where nothing else is said."""
DRAIN_S: Final = 1.0
"""RELAY_DRAIN_TIMEOUT of the relays: what is looked at here is over when they stop."""
BUSY_S: Final = 2.0
"""An answer takes no longer than the stated bound and this, which a very busy machine may add.

That it is kept to the letter is shown where the clock is a test's own (tests/test_in_time.py).
"""
PATIENCE_S: Final = 30.0
HOOK_LEASE_S: Final = 2.0
BUSY_ONE_IN: Final = 50


class Storm:
    """Relays, senders, watchers and a hook at work; each of ``watchers`` has its relay beside it.


    Where no calls are named, those are meant that get their events by the API.
    """

    def __init__(
        self, relays: list[RelayProcess], seed: int, settings: dict[str, object], hook: Flaky
    ) -> None:
        self.relays = relays
        self.settings = settings
        self.hook = hook
        self.random = Random(seed)
        self.watchers: list[Client] = []
        self.senders = list(_senders(relays, seed, str(settings["redis_url"])))
        self._owed_from = dict.fromkeys(ALL_CALLS, 1)
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to send, or go on."""
        self._running = [sender.start() for sender in self.senders]

    async def until(
        self, condition: Callable[[], bool], what: str, facts: Callable[[], object] = str
    ) -> None:
        """Wait until ``condition`` is true; fails when a sender has, or in vain, with ``facts``."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            for task in self._running:
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, f"in vain: {what} {facts()}".rstrip()
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

    def owe_from_now(self) -> None:
        """Let the hook be owed what is accepted from now on: Redis has lost what it was owed."""
        self._owed_from = {cid: last + 2 for cid, last in self.accepted().items()}

    def accepted(self) -> dict[str, int]:
        """Return the number of each call's event that was accepted last."""
        return {sender.cid: sender.accepted[-1] for sender in self.senders}

    async def until_ready(self, status: int, red: str = "") -> Frame:
        """Wait until every relay's /readyz answers so, and names a hop; return the last answer."""
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(timeout=PATIENCE_S) as client,
        ):
            while True:
                answers = await asyncio.gather(
                    *[client.get(f"{relay.base_url}/readyz") for relay in self.relays]
                )
                said = [(answer.status_code, dict(answer.json())) for answer in answers]
                if all(code == status and _is_red(red, answer) for code, answer in said):
                    return said[-1][1]
                await asyncio.sleep(0.05)

    async def fall_silent(self) -> None:
        """Stop sending, and return once the last event of every sender is accepted."""
        for sender in self.senders:
            sender.stop()
        await asyncio.gather(*self._running)

    async def finish(self) -> None:
        """Stop sending, and return once every watcher and the hook have each call's last event."""
        await self.fall_silent()
        assert {watcher.close_code for watcher in self.watchers} == {None}, "sockets stay"
        for sender in self.senders:
            for watcher in self.watchers:
                await self.until(
                    lambda w=watcher, s=sender: numbers(w, s.cid)[-1:] == s.accepted[-1:],  # type: ignore[misc]
                    f"the last event of {sender.cid} arrives",
                )
            await self.until(
                lambda s=sender: self.owed(s) <= set(self.delivered(s.cid)),  # type: ignore[misc]
                f"the hook gets what it is owed of {sender.cid}",
                lambda s=sender: (  # type: ignore[misc]
                    sorted(self.owed(s) - set(self.delivered(s.cid))),
                    [rows(watcher, s.cid) for watcher in self.watchers],
                ),
            )

    def delivered(self, cid: str) -> list[int]:
        """Return the numbers of a call's events that the hook took, each once, as they came."""
        events = map(json.loads, self.hook.taken)
        return list(dict.fromkeys(e["custom"]["n"] for e in events if e["call_cid"] == cid))

    def owed(self, sender: Sender) -> set[int]:
        """Return what the hook must get: what came since a loss was told, if one was."""
        first = self._owed_from[sender.cid]
        for watcher in self.watchers:
            if last := rows(watcher, sender.cid)[-1]:
                first = max(first, last[0])
        return {number for number in sender.accepted if number >= first}

    def check(self, *, losses: bool = False) -> None:
        """Hold everything against the promise; ``losses`` says that some may have been told."""
        for sender in self.senders:
            latest_s = float(str(self.settings["publish_timeout"])) + BUSY_S
            assert sender.longest_s < latest_s, "publishing waits at most for a stated time"
            assert sender.accepted == list(range(1, len(sender.accepted) + 1)), "by its sender"
            for watcher in self.watchers:
                seen = rows(watcher, sender.cid)
                assert losses or seen == [sender.accepted], "nothing was lost"
                check_rows(seen, streamed=sender.cid == STREAMED)
            delivered = self.delivered(sender.cid)
            assert delivered == sorted(delivered), "in order at the hook"
            assert self.owed(sender) <= set(delivered), "the hook gets all it is owed"

    async def balance(self) -> None:
        """Return once the relays' books add up, and say what senders and watchers say."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            books = [await ledger.read(relay) for relay in self.relays]
            try:
                self._check_books(books)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)  # what is under way is not in them yet
            else:
                return

    def _check_books(self, books: list[ledger.Ledger]) -> None:
        each = len(self.watchers) // len(self.relays)
        for number, (relay, book) in enumerate(zip(self.relays, books, strict=True)):
            book.check()
            written = book.total("relay_deliveries_written_total")
            written += book.total("relay_deliveries_recovered_total")
            watchers = self.watchers[number * each : (number + 1) * each]
            assert written == sum(map(count_delivered, watchers)), "as the watchers have counted"
            for door in {sender.door for sender in self.senders} - {"ingest"}:
                senders = [s for s in self.senders if (s.relay, s.door) == (relay, door)]
                accepted = sum(len(sender.accepted) for sender in senders)
                assert let_in(book, door) == accepted, f"as senders to {door} have counted"
        # What Redis took for the stream and then lost, no relay has ever seen.
        seen = {n for watcher in self.watchers for n in numbers(watcher, STREAMED)}
        assert sum(let_in(book, "ingest") for book in books) >= len(seen)


def _senders(relays: list[RelayProcess], seed: int, redis_url: str) -> Iterable[Sender]:
    for number, cid in enumerate(CALLS):
        yield ApiSender(relays[number % len(relays)], cid, Random(seed + number))
    webhook, socket, ingest = OTHERS
    yield WebhookSender(relays[-1], webhook, Random(seed + 3))
    yield SocketSender(relays[0], socket, Random(seed + 4))
    yield StreamSender(relays[0], ingest, Random(seed + 5), redis_url, PREFIX)


def let_in(book: ledger.Ledger, door: str) -> float:
    """Return how often a door said that an event is published, be it that it had been before."""
    published = book.total("relay_events_published_total", door=door)
    return published + book.total("relay_events_duplicate_total", door=door)


def count_delivered(watcher: Client) -> int:
    """Return how many frames came that were no answer and no heartbeat."""
    own = ("connection.ok", "health.check")
    return sum("id" not in frame and frame["type"] not in own for frame in watcher.frames)


def _is_red(hop: str, answer: Frame) -> bool:
    return not hop or answer["checks"][hop] != "ok"


def numbers(watcher: Client, cid: str) -> list[int]:
    """Return the numbers of a call's events, as they came."""
    return [event["custom"]["n"] for event in watcher.events if event["call_cid"] == cid]


def rows(watcher: Client, cid: str) -> list[list[int]]:
    """Return the numbers of a call's events, as they came, parted where a loss was told.

    Offsets that do not follow one another in between are a gap without a word.
    """
    found: list[list[int]] = [[]]
    offset = 0
    for frame in watcher.frames:
        if frame.get("call_cid") != cid:
            continue
        if frame["type"] == "call.watching":
            offset = frame["offset"]
        elif frame["type"] == "call.position":
            assert frame["recovered"] is False
            found.append([])
            offset = frame["offset"]
        elif "event_id" in frame:
            offset += 1
            assert frame["offset"] == offset, "a gap without a word"
            found[-1].append(frame["custom"]["n"])
    return found if cid != STREAMED else [_since_followed(row) for row in found]


def _since_followed(row: list[int]) -> list[int]:
    """Return what came since the stream's sender has followed the relays to a new primary.

    The one that was replaced takes entries until then, and nobody else ever sees them. Before them
    comes what the new one had in the stream already, though its events may be old ones. No loss is
    told where these entries are all that was lost: no event came of them yet.
    """
    jumps = [at for at in range(1, len(row)) if row[at] != row[at - 1] + 1]
    assert len(jumps) <= ROUNDS, "missing entries that the primary had"
    assert all(row[at] > row[at - 1] for at in jumps), "in the sender's order"
    return row[jumps[-1] :] if jumps else row


def check_rows(found: list[list[int]], *, streamed: bool) -> None:
    """Every number once and in order, missing only where a loss was told, or a stream's was lost.

    What the loss took may come again after it, when its sender was never told that it had come.
    """
    latest = 0
    for index, row in enumerate(found):
        if not row:
            continue
        assert row == list(range(row[0], row[0] + len(row))), "each once, in the sender's order"
        assert streamed or index or row[0] == 1, f"lost without a word: {list(range(1, row[0]))}"
        assert row[-1] > latest, "nothing old alone"
        latest = row[-1]


class Flaky:
    """What a hook leads to: too busy for one request of ``BUSY_ONE_IN``, never twice for the same.

    ``taken`` has the bodies of the others, in the order in which they came.
    """

    def __init__(self, receiver: Receiver, rng: Random) -> None:
        self.taken: list[bytes] = []
        self._refused: set[bytes] = set()
        self._receiver = receiver
        self._rng = rng
        receiver.answers = [self._answer]

    async def _answer(self, peer: Peer) -> bool:
        request = self._receiver.requests[-1]
        if request.body not in self._refused and self._rng.randrange(BUSY_ONE_IN) == 0:
            self._refused.add(request.body)
            return await status(503)(peer)
        self.taken.append(request.body)
        return await status(200)(peer)


@asynccontextmanager
async def hooked(rng: Random) -> AsyncIterator[tuple[Flaky, str]]:
    """Give what a hook leads to, and the file that names it for a relay."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        async with receiving() as receiver:
            file.write(
                '[[hook]]\nid = "storm"\nhook_type = "webhook"\nordered = true\n'
                f'webhook_url = "{receiver.url}"\nevent_types = ["custom"]\n'
            )
            file.flush()
            yield Flaky(receiver, rng), file.name


async def started(settings: dict[str, object]) -> RelayProcess:
    """Start a relay; again when Redis did not answer, for then it ends."""

    async def start() -> RelayProcess:
        relay = RelayProcess(**settings)
        try:
            await anyio.to_thread.run_sync(relay.start)  # a proxy may run on this loop
        except AssertionError as error:
            relay.kill()
            if "not answer" in relay.log:
                raise RedisStoodStill from error
            raise
        return relay

    return await insisting(start, RedisStoodStill)


class RedisStoodStill(Exception):
    """A relay could not start for that."""


@asynccontextmanager
async def storm(
    redis_url: str, seed: int, relays: int = 2, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[Storm]:
    """Run relays with watchers of every call, and senders that have already begun."""
    print("seed", seed)
    async with AsyncExitStack() as stack:
        hook, hooks = await stack.enter_async_context(hooked(Random(seed + 9)))
        settings: dict[str, object] = {
            "redis_url": redis_url, "redis_prefix": PREFIX, "publish_timeout": timeout_s,
            "command_rate": 0, "drain_timeout": DRAIN_S, "hooks": hooks,
            "hook_allow": "127.0.0.0/8", "hook_lease": HOOK_LEASE_S,
        }  # fmt: skip
        running = [stack.push(await started(settings)) for _ in range(relays)]
        made = Storm(running, seed, settings, hook)
        for relay in running:
            for user in ("ann", "bob"):
                client = await logged_in(stack, relay, user)
                for cid in ALL_CALLS:
                    await insisting(partial(client.watch, cid), Refused)
                made.watchers.append(client)
        made.start()
        await made.accept(5, ALL_CALLS)
        yield made
        await made.finish()
        await made.balance()
        # A relay logs what went wrong: that is no failure here, a traceback would be.
        for relay in running:
            relay.terminate()
        for relay in running:
            assert await anyio.to_thread.run_sync(relay.wait) == 0
            assert "Traceback" not in relay.log, relay.log
