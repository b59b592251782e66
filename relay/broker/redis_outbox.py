"""The outbox in Redis: what of it is not done by the publish step (scripts/publish.lua).

Reads and records go through the broker's connection for commands; the publish step wakes the
leaseholder over a channel of the partition. What must be atomic is made so in ``scripts/``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from relay import metrics, wire
from relay.broker import (
    Changes,
    DeadLetter,
    Due,
    HookList,
    Key,
    Lease,
    LeaseLost,
    Mark,
    Owed,
    Progress,
    Replayed,
    Span,
    Tried,
    Waiting,
    scripts,
)
from relay.broker.keyspace import Keyspace, OutboxKeys
from relay.broker.redis_broker import RedisBroker
from relay.broker.rules import replayed
from relay.events import Position

__all__ = ["RedisOutbox"]

LEASE_S: Final = 10.0
PAGE_BYTES: Final = 262_144

_DONE: Final = b"-"
"""What stands for a delivery that is done although one before it is not."""


class RedisOutbox:
    """The outbox of a relay that runs on Redis."""

    def __init__(self, broker: RedisBroker, *, lease_s: float = LEASE_S) -> None:
        self._redis = broker.commands
        self._keys = broker.keyspace.outboxes
        self._node = broker.node
        self._deliverers = broker.keyspace.deliverers
        self._lease_ms = int(lease_s * 1000)
        self._dead_bytes = broker.limits.dead_letter_bytes
        self._wakes = broker.subscriptions("wake", WakeChannels(broker.keyspace))

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self._keys)

    @property
    def lease_s(self) -> float:
        """How long a lease lasts that is not renewed, in seconds."""
        return self._lease_ms / 1000

    async def start(self, woken: Callable[[int], None]) -> None:
        """Open the connection on which the publish steps wake this process."""
        self._wakes.listen(_Woken(woken), {}, _ignore)
        await self._wakes.start()

    async def aclose(self) -> None:
        """Close it."""
        await self._wakes.aclose()

    # -- leases ---------------------------------------------------------------------------------

    @property
    def node(self) -> str:
        """This process's incarnation."""
        return self._node

    async def join(self) -> frozenset[str]:
        """Say that this process delivers, for as long as a lease lasts; return all that do."""
        await self._redis.run(scripts.HEARTBEAT, [self._deliverers], self._node, self._lease_ms)
        names = await self._redis.run(scripts.NODES, [self._deliverers], self._lease_ms)
        return frozenset(name.decode() for name in names) | {self._node}

    async def leave(self) -> None:
        """Say that it no longer does."""
        await self._redis.request("ZREM", self._deliverers, self._node)

    async def lease(self, partition: int, token: str = "") -> Lease | None:
        """Take a partition, or renew the lease of ``token``; None while another process has it."""
        held, version, top, shed, length, waiting, waiting_bytes = await self._lease(
            partition, self._lease_ms, token
        )
        if not held:
            self._wakes.unsubscribe(str(partition))
            return None
        if held.decode() != token:
            await self._wakes.subscribe(str(partition))
        return Lease(
            partition, held.decode(), int(version), int(top), length, waiting, int(shed),
            self._dead_bytes - int(waiting_bytes),
        )  # fmt: skip

    async def inform(self, lease: Lease, hooks: HookList) -> None:
        """Let the publish step of a partition know of hooks that it has not been told of."""
        keys = self._keys[lease.partition]
        await self._redis.run(
            scripts.OUT_HOOKS, [keys.state, keys.wake], hooks.version, hooks.wanted()
        )

    async def give_back(self, lease: Lease) -> None:
        """Let another process have it at once."""
        self._wakes.unsubscribe(str(lease.partition))
        await self._lease(lease.partition, 0, lease.token)

    async def _lease(self, partition: int, milliseconds: int, token: str) -> Any:
        keys = self._keys[partition]
        return await self._redis.run(
            scripts.OUT_LEASE,
            [keys.lease, keys.state, keys.entries, keys.waiting_at],
            self._node,
            milliseconds,
            token,
        )

    # -- what the leaseholder does --------------------------------------------------------------

    async def progress(self, lease: Lease) -> Progress:
        """Return what has been recorded."""
        flat = await self._redis.request("HGETALL", self._keys[lease.partition].tried)
        progress = Progress({}, set(), {})
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            number, _, hook_id = field.decode().partition("|")
            if not number:
                progress.settled[hook_id] = int(value)
            elif value == _DONE:
                progress.done.add(Key(int(number), hook_id))
            else:
                progress.tried[Key(int(number), hook_id)] = _read(value, Tried)
        return progress

    async def read(self, lease: Lease, after: int, count: int) -> list[Owed]:
        """Return the next entries after a number."""
        key = self._keys[lease.partition].entries
        reply = await self._redis.run(scripts.OUT_READ, [key], after, count, PAGE_BYTES)
        return [_owed(number, fields) for number, fields in reply]

    async def due(self, lease: Lease, now_ms: int, count: int, skip: int = 0) -> Due:
        """Return which waiting deliveries are due, the most overdue first, without some of them."""
        key = self._keys[lease.partition].waiting_at
        members, following = await self._redis.run(scripts.OUT_DUE, [key], now_ms, count, skip)
        return Due([*map(_mark, members)], int(float(following)) if following else None)

    async def waiting(self, lease: Lease, ids: Sequence[str]) -> list[Waiting]:
        """Return some waiting deliveries; what waits no longer is left out."""
        texts = await self._redis.request("HMGET", self._keys[lease.partition].waiting, *ids)
        return [_read(text, Waiting) for text in texts if text is not None]

    async def record(self, lease: Lease, changes: Changes) -> None:
        """Record changes in one atomic step; raises ``LeaseLost``."""
        keys = self._keys[lease.partition]
        dropped = await self._redis.run(
            scripts.OUT_RECORD,
            [
                keys.lease, keys.entries, keys.state, keys.tried, keys.dead, keys.dead_at,
                keys.waiting, keys.waiting_at,
            ],
            lease.token,
            changes.trim,
            self._dead_bytes,
            *_listed(2, _set(changes)),
            *_listed(1, [*map(_field, changes.forget), *map(_settled, changes.gone)]),
            *_listed(3, chain.from_iterable(
                (id_, letter.at_ms, wire.encode(letter)) for id_, letter in changes.dead.items()
            )),
            *_listed(3, chain.from_iterable(
                (_member(each.mark), each.due_ms, wire.encode(each))
                for each in changes.waiting.values()
            )),
            *_listed(1, map(_member, changes.ended)),
        )  # fmt: skip
        if dropped < 0:
            raise LeaseLost
        if dropped:
            metrics.DEAD_LETTERS_DROPPED.inc(dropped)

    # -- dead letters ---------------------------------------------------------------------------

    async def dead_letters(self, span: Span, limit: int = 100) -> list[DeadLetter]:
        """Return dead letters without their bodies, the oldest first."""
        found = await asyncio.gather(*(self._dead_in(keys, span, limit) for keys in self._keys))
        letters = sorted(chain.from_iterable(found), key=lambda letter: (letter.at_ms, letter.id))
        return [msgspec.structs.replace(letter, body=None) for letter in letters[:limit]]

    async def _dead_in(self, keys: OutboxKeys, span: Span, limit: int) -> list[DeadLetter]:
        """Return the first ones of a partition: read in pages, since hooks are not indexed."""
        letters: list[DeadLetter] = []
        until = "+inf" if span.until_ms is None else f"({span.until_ms}"
        at = 0
        while len(letters) < limit:
            ids = await self._redis.request(
                "ZRANGEBYSCORE", keys.dead_at, span.since_ms, until, "LIMIT", at, limit
            )
            texts = await self._redis.request("HMGET", keys.dead, *ids) if ids else []
            page = [_read(text, DeadLetter) for text in texts if text is not None]
            letters.extend(each for each in page if span.hook_id in ("", each.hook_id))
            if len(ids) < limit:
                break
            at += limit
        return letters[:limit]

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """Return one with its body."""
        found = await self._find_dead(letter_id)
        return None if found is None else found[1]

    async def _find_dead(self, letter_id: str) -> tuple[OutboxKeys, DeadLetter] | None:
        texts = await asyncio.gather(
            *(self._redis.request("HGET", keys.dead, letter_id) for keys in self._keys)
        )
        for keys, text in zip(self._keys, texts, strict=True):
            if text is not None:
                return keys, _read(text, DeadLetter)
        return None

    async def replay(self, ids: Sequence[str], hook_ids: Collection[str]) -> Replayed:
        """Put dead letters back."""
        put_back = bodiless = hookless = 0
        for letter_id in ids:
            found = await self._find_dead(letter_id)
            if found is None:
                continue
            keys, letter = found
            waiting = replayed(letter)
            if waiting is None:
                bodiless += 1
                continue
            if letter.hook_id not in hook_ids:
                hookless += 1
                continue
            put_back += await self._redis.run(
                scripts.OUT_REPLAY,
                [
                    keys.dead, keys.dead_at, keys.state, keys.waiting, keys.waiting_at, keys.wake,
                ],
                letter_id,
                waiting.due_ms,
                wire.encode(waiting),
                _member(waiting.mark),
            )  # fmt: skip
        return Replayed(put_back, bodiless, hookless)


class WakeChannels(Keyspace):
    """The channels on which partitions wake their leaseholders, under the partitions' numbers."""

    def __init__(self, keyspace: Keyspace) -> None:
        self.outboxes = keyspace.outboxes

    def channel(self, cid: str) -> str:
        """Return the channel of a partition."""
        return self.outboxes[int(cid)].wake


class _Woken:
    """A listener to the channels of partitions: any news there is the same news."""

    def __init__(self, woken: Callable[[int], None]) -> None:
        self._woken = woken

    def on_publication(self, cid: str, _: Position | None, __: bytes) -> None:
        """Tell that something is new in a partition."""
        self._woken(int(cid))

    def on_roster(self, cid: str) -> None:
        """Ignore what is never sent there."""

    def on_interrupted(self, cids: Collection[str]) -> None:
        """Tell that something may be new in partitions."""
        for cid in cids:
            self._woken(int(cid))


def _ignore(cid: str, token: bytes) -> None:
    """Ignore what is never sent there."""


def _read(text: bytes, kind: type[Any]) -> Any:
    return msgspec.convert(wire.decode(text), kind)


def _owed(number: bytes, fields: list[bytes]) -> Owed:
    """Return the entry that scripts/publish.lua wrote: names and values in this order."""
    version, _, cid, kind, event_id, epoch, offset, body = fields[1::2]
    position = Position(epoch.decode(), int(offset))
    return Owed(
        int(number.partition(b"-")[0]),
        int(version),
        cid.decode(),
        kind.decode(),
        event_id.decode(),
        position,
        body,
    )


def _field(key: Key) -> str:
    return f"{key.seq}|{key.hook_id}"


def _member(mark: Mark) -> str:
    return f"{mark.id}|{mark.hook_id}"


def _mark(member: bytes) -> Mark:
    waiting_id, _, hook_id = member.decode().partition("|")
    return Mark(waiting_id, hook_id)


def _settled(hook_id: str) -> str:
    return f"|{hook_id}"


def _set(changes: Changes) -> list[str | bytes | int]:
    flat: list[str | bytes | int] = []
    for key, tried in changes.tried.items():
        flat += (_field(key), _DONE if tried is None else wire.encode(tried))
    for hook_id, number in changes.settled.items():
        flat += (_settled(hook_id), number)
    return flat


def _listed(width: int, items: Any) -> list[Any]:
    """Return items of ``width`` arguments each, after their number."""
    flat = list(items)
    return [len(flat) // width, *flat]
