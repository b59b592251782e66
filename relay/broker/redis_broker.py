"""The broker over Redis: what asks for the atomic steps that the scripts do.

Three connections a process, in a Cluster to each primary: ``publish`` (a FIFO of atomic steps),
``command`` (positions, history, who watches) and ``subscribe``. What must hold is made to hold in
``scripts/``, ``link`` and ``subscriber``; how Redis is set up is known in ``deployments`` alone.
``redis_store`` and ``redis_inbox`` use the same Redis through the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

import msgspec

from relay import logs, metrics, wire
from relay.broker import (
    Entry,
    Epoch,
    Health,
    History,
    Limits,
    Listener,
    Receiver,
    Roster,
    deployments,
    scripts,
)
from relay.broker.canary import Canaries
from relay.broker.deployments import Subscriptions, Wanted
from relay.broker.desk import Desk
from relay.broker.keyspace import CANARY_HEADER, PARTITIONS, VOLATILE_HEADER, Keyspace
from relay.broker.link import Replicas
from relay.broker.redis_messages import RedisMessages
from relay.broker.redis_url import Place, Shape
from relay.broker.requests import Commands
from relay.broker.rules import PAGE_BYTES, PAGE_COUNT, call_life_s, given_window_s
from relay.errors import RelayError, Unavailable
from relay.events import Event, Position, Publication
from relay.settings import SettingsError
from relay.tasks import Tasks

__all__ = ["RedisBroker"]

log = logs.get(__name__)

OLDEST_REDIS: Final = 7
HEARTBEAT_S: Final = 3.0
DEAD_AFTER_S: Final = 10.0
POSITIONS_AT_ONCE: Final = 500
CONNECTIONS_LIFE_S: Final = 86_400.0
"""How long numbers of sockets are kept of a user whose sockets neither come nor go."""
NO_EVICTION: Final = "noeviction"
MEMORY_CHECK_S: Final = 30.0
"""Of the time that a publish may take: so much of it may be spent on waiting for replicas."""
COMMAND_BOUND: Final = 10_000
"""Requests that may wait on the command connection."""

_DUPLICATE: Final = 1
_REUSED: Final = 2

_COMMAND_SCRIPTS: Final = (
    scripts.CLAIM, scripts.CONNECTIONS, scripts.DUE, scripts.END, scripts.HEARTBEAT,
    scripts.HISTORY, scripts.JOIN, scripts.LEASE, scripts.LEAVE, scripts.MARKS, scripts.NODES,
    scripts.NOTIFY, scripts.OUT_DUE, scripts.OUT_HOOKS, scripts.OUT_LEASE, scripts.OUT_READ,
    scripts.OUT_RECORD, scripts.OUT_REPLAY, scripts.POSITIONS, scripts.REPLACE, scripts.ROSTER,
    scripts.SEATS, scripts.SPEND, scripts.TICKET, scripts.TICKETS,
)  # fmt: skip


class RedisBroker:
    """A broker for all processes that use the same Redis and prefix.

    ``url`` is RELAY_REDIS_URL; ``node`` names this process: unique and new at every start. Raises
    ``SettingsError`` for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        limits: Limits,
        node: str,
        *,
        partitions: int = PARTITIONS,
        heartbeat_s: float = HEARTBEAT_S,
        dead_after_s: float = DEAD_AFTER_S,
    ) -> None:
        self._place = Place.parse(url)
        self.keyspace = Keyspace(prefix, partitions)
        self.limits = limits
        self._node = node
        self._heartbeat_s = heartbeat_s
        self._dead_after_ms = int(dead_after_s * 1000)
        self._age_ms = max(1, int(limits.history_age_s * 1000))
        self._life_ms = int(call_life_s(limits) * 1000)
        self._given_ms = int(given_window_s(limits) * 1000)
        self._minted_ms = max(1, int(limits.minted_window_s * 1000))
        self._tasks = Tasks("redis broker")
        self._listener: Listener | None = None
        self._beat_is_due = asyncio.Event()
        self._deployment = deployments.of(self._place, self.keyspace, node, self._on_changed)
        # A copy of this process's own: see there.
        self._publish_script = scripts.PUBLISH.copy(node)
        self._publishing = self._deployment.commands(
            Wanted(
                "publish",
                [self._publish_script, scripts.CANARY],
                timeout_s=limits.publish_timeout_s,
                bound=limits.publish_queue,
                replicas=Replicas.of_each(limits.replicas, limits.publish_timeout_s),
            )
        )
        self.commands = self.requests("command", _COMMAND_SCRIPTS, bound=COMMAND_BOUND)
        self._subscriber = self.subscriptions("subscribe", self.keyspace)
        self._desk = Desk()
        self._messages = RedisMessages(self._desk, self.commands, self.keyspace, node)
        self._canaries = Canaries(
            self._publish_canary, self._ping, self._subscriber, self._canary_cids
        )
        self._warnings: tuple[str, ...] = ()

    def requests(
        self,
        what: str,
        loaded: Sequence[scripts.Script] = (),
        *,
        bound: int,
        wait_s: float = 0.0,
    ) -> Commands:
        """Return commands on connections of their own; ``wait_s`` is how long they may block."""
        timeout_s = self.limits.publish_timeout_s + wait_s
        return self._deployment.commands(Wanted(what, loaded, timeout_s, bound))

    def subscriptions(self, what: str, channels: Keyspace) -> Subscriptions:
        """Return subscriptions to ``channels``, on connections of their own, not yet open."""
        return self._deployment.subscriptions(
            what, channels=channels, timeout_s=self.limits.publish_timeout_s
        )

    @property
    def node(self) -> str:
        """This process's incarnation."""
        return self._node

    # -- coming and going -----------------------------------------------------------------------

    async def start(self, listener: Listener, live: Callable[[bytes], None]) -> None:
        """Connect. Raises ``Unavailable``, and ``SettingsError`` for a Redis that does not fit."""
        self._listener = listener
        try:
            await self._deployment.start()
            await self.commands.start()
            await self._check_version()
            await self._check_partitions()
            await self._publishing.start()
            await self._messages.start()
            self._subscriber.listen(listener, self._channels(live), self._canaries.on_canary)
            await self._subscriber.start()
            await self._beat()
            self._beat_is_due.clear()
        except BaseException:
            self.hang_up()
            await self.aclose()
            raise
        self._canaries.start()
        self._tasks.keep(self._keep_beating, "saying that this process lives")
        self._tasks.keep(self._keep_checking_memory, "checking how Redis is set up")

    def _channels(self, live: Callable[[bytes], None]) -> dict[str, Callable[[bytes], None]]:
        return {
            self.keyspace.live: live,
            self.keyspace.everybody: self._messages.take,
            self.keyspace.inbox(self._node): self._messages.take,
        }

    def hang_up(self) -> None:
        """Wait for no answer any more."""
        self._publishing.hang_up()
        self.commands.hang_up()

    async def aclose(self) -> None:
        """Disconnect; the other processes learn at once that this one is gone."""
        await self._desk.aclose()
        await self._tasks.aclose()
        await self._canaries.aclose()
        if self.commands.is_connected:
            try:
                await self.commands.request("ZREM", self.keyspace.nodes, self._node)
            except Unavailable as error:
                log.info("left without a goodbye", reason=error.message)
        await self._subscriber.aclose()
        await self._publishing.aclose()
        await self.commands.aclose()
        await self._deployment.aclose()

    async def _check_version(self) -> None:
        facts = _facts(await self.commands.request("INFO", "server"))
        version = facts.get("redis_version", "0")
        if int(version.partition(".")[0]) < OLDEST_REDIS:
            raise SettingsError(
                f"Redis at {self._place} is version {version}: the relay needs {OLDEST_REDIS}.0 "
                "or newer, or Valkey"
            )
        if facts.get("redis_mode") == "cluster" and self._place.shape is not Shape.CLUSTER:
            raise SettingsError(
                f"Redis at {self._place} is a node of a Cluster: RELAY_REDIS_URL must begin with "
                "redis+cluster://"
            )

    async def _check_partitions(self) -> None:
        ours = str(self.keyspace.partitions)
        key = self.keyspace.partitions_key
        # Reading first: a Redis that is out of memory takes no SET, whatever it would do.
        before = await self.commands.request("GET", key)
        if before is None:
            before = await self.commands.request("SET", key, ours, "NX", "GET")
        if before is not None and before.decode() != ours:
            raise SettingsError(
                f"the calls in Redis are spread over {before.decode()} partitions, this relay is "
                f"made for {ours}: use the version of the others, or another RELAY_REDIS_PREFIX"
            )

    def _on_changed(self) -> None:
        self._messages.changed(listening=self._subscriber.is_connected)
        if self.commands.is_connected:
            self._beat_is_due.set()  # before anything else is said: Redis may have lost everything

    # -- the atomic step ------------------------------------------------------------------------

    async def publish(self, event: Event) -> Publication:
        """Do the atomic step. The event takes its place in the queue before the first await."""
        if event.volatile and event.identity is None:
            return await self._publish_unmarked(event)
        kept = not event.volatile
        flags, epoch, offset = await self._publishing.run(
            self._publish_script,
            self.keyspace.of_publish(event),
            secrets.token_urlsafe(6),
            event.body[:-1] if kept else event.body,
            int(kept),
            event.fingerprint,
            self._minted_ms if event.minted else self._given_ms,
            self.limits.history_count,
            self._age_ms,
            self._life_ms,
            event.cid,
            event.type,
            event.event_id,
            self.limits.outbox_bytes,
            self.limits.dead_letter_bytes,
            repeatable=event.identity is not None,
        )
        return Publication(
            cid=event.cid,
            event_id=event.event_id,
            position=Position(epoch.decode(), offset) if offset else None,
            duplicate=bool(flags & _DUPLICATE),
            reused=bool(flags & _REUSED),
        )

    def publish_now(self, event: Event) -> None:
        """Do nothing: Redis always has to be waited for."""

    async def _publish_unmarked(self, event: Event) -> Publication:
        """Publish what is neither kept nor remembered, in its turn among the others."""
        await self._publishing.request(
            "SPUBLISH",
            self.keyspace.channel(event.cid),
            VOLATILE_HEADER + event.body,
            repeatable=False,
        )
        return Publication(cid=event.cid, event_id=event.event_id, position=None)

    # -- subscriptions and history --------------------------------------------------------------

    async def subscribe(self, cid: str) -> None:
        """Hand over publications of ``cid`` from now on; returns when Redis confirmed."""
        await self._subscriber.subscribe(cid)

    async def unsubscribe(self, cid: str) -> None:
        """Stop handing over publications of ``cid``."""
        self._subscriber.unsubscribe(cid)

    def partition(self, cid: str) -> int:
        """Return the partition of a call: all calls of one are kept by the same server."""
        return self.keyspace.partition(cid)

    async def positions(self, cids: Sequence[str]) -> list[Position]:
        """Return the calls' positions, in the order given; a call never used before gets one."""
        by_partition: defaultdict[int, list[str]] = defaultdict(list)
        for cid in dict.fromkeys(cids):
            by_partition[self.keyspace.partition(cid)].append(cid)
        batches = [
            members[start : start + POSITIONS_AT_ONCE]
            for members in by_partition.values()
            for start in range(0, len(members), POSITIONS_AT_ONCE)
        ]
        found: dict[str, Position] = {}
        for positions in await asyncio.gather(*map(self._positions, batches)):
            found.update(positions)
        return [found[cid] for cid in cids]

    async def _positions(self, cids: list[str]) -> dict[str, Position]:
        keys = [
            key for cid in cids for key in (*self.keyspace.of_order(cid), self.keyspace.roster(cid))
        ]
        reply = await self.commands.run(
            scripts.POSITIONS, keys, secrets.token_urlsafe(6), self._life_ms
        )
        epochs, offsets = reply[::2], reply[1::2]
        return {
            cid: Position(epoch.decode(), offset)
            for cid, epoch, offset in zip(cids, epochs, offsets, strict=True)
        }

    async def history(self, cid: str, after: int) -> History:
        """Return a page of what was kept after the offset ``after``."""
        offset, epochs, flat = await self.commands.run(
            scripts.HISTORY,
            self.keyspace.of_order(cid),
            after,
            secrets.token_urlsafe(6),
            self._life_ms,
            self._age_ms,
            PAGE_BYTES,
            PAGE_COUNT,
        )
        known = _read_epochs(epochs)
        entries = zip(flat[::2], flat[1::2], strict=True)
        return History(
            top=Position(known[-1].name, offset),
            epochs=known,
            entries=tuple(Entry(int(id_.partition(b"-")[0]), body) for id_, body in entries),
        )

    # -- messages between processes -------------------------------------------------------------

    def receive(self, receiver: Receiver) -> None:
        """Hand messages of processes to ``receiver``."""
        self._desk.receiver = receiver

    async def tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        """Give a text to the receivers of all processes, for the sockets of these users."""
        await self._messages.tell(user_ids, cid, body)

    async def broadcast(self, notice: bytes) -> None:
        """Give a notice to the receivers of all processes."""
        await self._messages.broadcast(notice)

    async def ask(self, node: str, question: bytes) -> bytes:
        """Return what the receiver of a process answers."""
        return await self._messages.ask(node, question)

    # -- who is there ---------------------------------------------------------------------------

    async def set_roster(self, cid: str, roster: Roster) -> None:
        """Say who watches ``cid`` on this process (count 0: nobody) and tell the others."""
        await self.commands.run(
            scripts.ROSTER,
            [self.keyspace.channel(cid), self.keyspace.roster(cid)],
            self._node,
            wire.encode(roster) if roster.count else b"",
            self._life_ms,
        )

    async def rosters(self, cid: str) -> dict[str, Roster]:
        """Return who watches ``cid``, by process; processes that died are left out."""
        key = self.keyspace.roster(cid)
        texts = await self._of_the_living(key, self.commands.request("HGETALL", key))
        read = {node: _roster(text) for node, text in texts.items()}
        return {node: roster for node, roster in read.items() if roster is not None}

    async def set_connections(self, user_id: str, count: int) -> dict[str, int]:
        """Say how many sockets a user has on this process; return the numbers by process."""
        key = self.keyspace.connections(user_id)
        saying = self.commands.run(
            scripts.CONNECTIONS, [key], self._node, count, int(CONNECTIONS_LIFE_S * 1000)
        )
        return {node: int(text) for node, text in (await self._of_the_living(key, saying)).items()}

    async def _of_the_living(self, key: str, reading: Awaitable[Any]) -> dict[str, bytes]:
        """Return a hash by process as ``reading`` finds it, without the dead (if known)."""
        # In this order: who said something, and then whether they still live. The other way round
        # one that came in between would be taken for dead.
        flat, alive = await asyncio.gather(reading, self._alive())
        texts = {node.decode(): text for node, text in zip(flat[::2], flat[1::2], strict=True)}
        if alive is None:
            return texts
        if dead := [node for node in texts if node not in alive]:
            await self.commands.request("HDEL", key, *dead)
        return {node: text for node, text in texts.items() if node in alive}

    async def _alive(self) -> frozenset[str] | None:
        """Return who is alive, None while the one server that knows it is away."""
        try:
            return await self.nodes()
        except Unavailable:
            return None

    async def nodes(self) -> frozenset[str]:
        """Return the processes that are alive (heard of in the last ten seconds)."""
        names = await self.commands.run(scripts.NODES, [self.keyspace.nodes], self._dead_after_ms)
        return frozenset(name.decode() for name in names) | {self._node}

    # -- how well it is -------------------------------------------------------------------------

    def health(self) -> Health:
        """Return what keeps events from flowing, hop by hop, and what may cost some one day."""
        return Health(problems=self._canaries.problems(), warnings=self._warnings)

    def _canary_cids(self) -> list[str]:
        return [self.keyspace.canary(self._node, each) for each in self._deployment.partitions()]

    async def _publish_canary(self, cid: str, token: bytes) -> None:
        keys, message = self.keyspace.of_canary(cid), CANARY_HEADER + token
        await self._publishing.run(scripts.CANARY, keys, message, repeatable=False)

    async def _ping(self, cid: str) -> None:
        slot = self.keyspace.slot(self.keyspace.partition(cid))
        await self.commands.request("PING", slot=slot)

    async def _keep_checking_memory(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):  # the canaries say so
                found = {
                    await self._memory_policy(partition)
                    for partition in self._deployment.partitions()
                }
                self._warn(found - {NO_EVICTION})
            await asyncio.sleep(MEMORY_CHECK_S)

    async def _memory_policy(self, partition: int) -> str | None:
        """Return what a server does when memory is short, None when it does not tell."""
        slot = self.keyspace.slot(partition)
        return _facts(await self.commands.request("INFO", "memory", slot=slot)).get(
            "maxmemory_policy"
        )

    def _warn(self, policies: Collection[str | None]) -> None:
        evicting = sorted(policy for policy in policies if policy is not None)
        warnings = [
            f"maxmemory-policy is {policy}: Redis may drop history and positions when memory is "
            f"short: set {NO_EVICTION}"
            for policy in evicting
        ]
        if None in policies:
            warnings.append(f"Redis does not tell maxmemory-policy: see that it is {NO_EVICTION}")
        for warning in set(warnings) - set(self._warnings):
            log.warning("redis is perhaps set up to lose data", reason=warning)
        self._warnings = tuple(warnings)
        metrics.REDIS_EVICTS.set(bool(evicting))

    async def _beat(self) -> bool:
        """Say that this process is alive; tell whether the others had taken it for dead."""
        reply: Any = await self.commands.run(
            scripts.HEARTBEAT, [self.keyspace.nodes], self._node, self._dead_after_ms
        )
        return bool(reply)

    async def _keep_beating(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._beat_is_due.wait()
            self._beat_is_due.clear()
            try:
                was_dead = await self._beat()
            except Unavailable:
                continue  # the connection says so itself
            if was_dead and self._listener is not None and (cids := self._subscriber.cids):
                log.warning("the others had taken this process for dead", node=self._node)
                self._listener.on_interrupted(cids)


def _facts(info: bytes) -> dict[str, str]:
    """Read what ``INFO`` answers."""
    return dict(line.partition(":")[::2] for line in str(info, "utf-8", "replace").splitlines())


def _roster(text: bytes) -> Roster | None:
    """Read a roster; None for one of another version that this one does not understand."""
    try:
        return msgspec.convert(wire.decode(text), Roster)
    except (RelayError, msgspec.ValidationError):
        metrics.ROSTERS_UNREAD.inc()
        return None


def _read_epochs(text: bytes) -> tuple[Epoch, ...]:
    """Read ``name:start,name:start``."""
    pairs = (part.partition(":") for part in text.decode().split(","))
    return tuple(Epoch(name, int(start)) for name, _, start in pairs)
