"""Tickets in Redis: one hash a user, and one a process of how far its sockets have come.

A ticket is written where it changes for one socket; what moves with every publication is said by
each process for all its sockets together, once in a while. A claim reads, decides in Python, and
changes what is still as it was read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Final

import msgspec

from relay import logs, metrics, wire
from relay.broker import scripts
from relay.broker.redis_broker import RedisBroker
from relay.broker.tickets import (
    BEAT_S,
    HELD_LIFE_S,
    LIFE_S,
    TICKETS_MOST,
    Entry,
    Marks,
    Ticket,
    bounded,
    held_by,
    resolve,
    thinned,
)
from relay.errors import Unavailable
from relay.events import Position
from relay.tasks import together

__all__ = ["RedisTickets"]

log = logs.get(__name__)

ATTEMPTS: Final = 20
"""Tries to claim while the user's other sockets come and go."""

MARKS_AT_ONCE: Final = 500
_HELD_LIFE_MS: Final = int(HELD_LIFE_S * 1000)
_read_ticket = wire.reader(Ticket)


class RedisTickets:
    """The tickets of a relay that runs on Redis; it speaks through the broker's connection."""

    def __init__(
        self, broker: RedisBroker, *, life_s: float = LIFE_S, beat_s: float = BEAT_S
    ) -> None:
        self._redis = broker.commands
        self._keyspace = broker.keyspace
        self._node = broker.node
        self._life_ms = int(life_s * 1000)
        self._marks_life_ms = int((life_s + beat_s) * 1000)

    async def hold(self, user_id: str, name: str, ticket: Ticket) -> None:
        """Keep the ticket of an open socket."""
        await self._put(user_id, name, wire.encode(bounded(ticket)), b"")

    async def leave(self, user_id: str, name: str, ticket: Ticket) -> None:
        """Leave the ticket of a socket that broke."""
        await self._put(user_id, name, wire.encode(bounded(ticket)), b"%d" % self._life_ms)

    async def drop(self, user_id: str, name: str) -> None:
        """Forget the ticket of a socket."""
        await self._put(user_id, name, b"", b"")

    async def _put(self, user_id: str, name: str, text: bytes, life: bytes) -> None:
        key = self._keyspace.tickets(user_id)
        count = await self._redis.run(scripts.TICKET, [key], name, text, life, _HELD_LIFE_MS)
        if count <= TICKETS_MOST:
            return
        for _ in range(ATTEMPTS):
            texts, entries, now = await self._look(user_id)
            changes = thinned(entries, name, now=now, life_ms=self._life_ms)
            if await self._change(user_id, texts, changes):
                return

    async def mark(self, positions: Mapping[str, Position], ended: Collection[str]) -> None:
        """Say how far the sockets here have come."""
        said = iter([*((cid, _mark(at)) for cid, at in positions.items()), *_nothing(ended)])
        while True:
            batch = list(islice(said, MARKS_AT_ONCE))
            flat = [part for pair in batch for part in pair]
            key = self._keyspace.marks(self._node)
            await self._redis.run(scripts.MARKS, [key], self._marks_life_ms, *flat)
            if len(batch) < MARKS_AT_ONCE:
                return

    async def held(self, user_id: str, cids: Collection[str]) -> dict[str, str]:
        """Return the sockets that are open, as far as is known, and watch any of the calls."""
        _, entries, _ = await self._look(user_id)
        return held_by(entries, cids)

    async def claim(
        self, user_id: str, cids: Collection[str], gone: Collection[str], heir: str, node: str
    ) -> dict[str, Position]:
        """Use up one ticket for each call and return where to go on."""
        for _ in range(ATTEMPTS):
            texts, entries, now = await self._look(user_id)
            unread = texts.keys() - entries.keys()
            dead = {entry.ticket.node for name, entry in entries.items() if name in gone}
            marks = await self._marks(dead)
            claim = resolve(
                entries, cids, gone, heir=heir, node=node, now=now, marks=marks, unread=unread
            )
            if await self._change(user_id, texts, claim.changes):
                _tell_of(unread)
                return claim.positions
        raise Unavailable("too many sockets of this user come and go: try again")

    async def _change(
        self, user_id: str, texts: Mapping[str, bytes], changes: Mapping[str, Entry | None]
    ) -> bool:
        """Change entries that still are as they were read; False with nothing changed when not."""
        if not changes:
            return True
        flat = [
            part
            for name, entry in changes.items()
            for part in (name, texts.get(name, b""), _text(entry))
        ]
        key = self._keyspace.tickets(user_id)
        return bool(await self._redis.run(scripts.CLAIM, [key], _HELD_LIFE_MS, *flat))

    async def _look(self, user_id: str) -> tuple[dict[str, bytes], dict[str, Entry], int]:
        """Return what is kept, as texts and, what can be, read; and what time it is."""
        key = self._keyspace.tickets(user_id)
        now, flat = await self._redis.run(scripts.TICKETS, [key])
        texts = {name.decode(): text for name, text in zip(flat[::2], flat[1::2], strict=True)}
        read = ((name, _entry(text)) for name, text in texts.items())
        return texts, {name: entry for name, entry in read if entry is not None}, int(now)

    async def _marks(self, nodes: Collection[str]) -> Marks:
        names = sorted(nodes)
        hashes = await together(
            self._redis.request("HGETALL", self._keyspace.marks(node)) for node in names
        )
        return {
            node: {
                cid.decode(): _position(text)
                for cid, text in zip(flat[::2], flat[1::2], strict=True)
                if cid
            }
            if flat
            else None
            for node, flat in zip(names, hashes, strict=True)
        }


def _text(entry: Entry | None) -> bytes:
    return b"" if entry is None else b"%d %b" % (entry.until, wire.encode(entry.ticket))


def _entry(text: bytes) -> Entry | None:
    """Return an entry that was kept, None for what cannot be read: of another version, perhaps."""
    until, _, ticket = text.partition(b" ")
    try:
        return Entry(int(until), _read_ticket(ticket))
    except (ValueError, msgspec.DecodeError):
        return None


def _tell_of(unread: Collection[str]) -> None:
    if unread:
        metrics.TICKETS.labels("unread").inc(len(unread))
        log.warning("tickets cannot be read", count=len(unread))


def _mark(position: Position) -> str:
    return f"{position.epoch}:{position.offset}"


def _nothing(cids: Collection[str]) -> list[tuple[str, str]]:
    return [(cid, "") for cid in cids]


def _position(text: bytes) -> Position:
    epoch, _, offset = text.decode().rpartition(":")
    return Position(epoch, int(offset))
