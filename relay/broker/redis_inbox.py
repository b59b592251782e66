"""The ingest stream in Redis: read by one process at a time, the one that holds the lease."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from relay import logs
from relay.broker import InboxEntry, scripts
from relay.broker.redis_broker import RedisBroker
from relay.errors import Unavailable

__all__ = ["RedisInbox"]

log = logs.get(__name__)

LEASE_S: Final = 10.0
WAIT_S: Final = 1.0
AT_ONCE: Final = 100


class RedisInbox:
    """The inbox of a relay that runs on Redis.

    It waits for entries on a connection of its own, since a blocked connection answers nothing
    else; the lease and what is settled go through the broker's.
    """

    def __init__(
        self, broker: RedisBroker, *, lease_s: float = LEASE_S, wait_s: float = WAIT_S
    ) -> None:
        self._commands = broker.commands
        self._keyspace = broker.keyspace
        self._node = broker.node
        self._lease_ms = int(lease_s * 1000)
        self._wait_s = wait_s
        self._has_lease = False
        self._is_started = False
        self._reading = broker.requests("ingest", bound=10, wait_s=wait_s)

    async def take(self) -> list[InboxEntry]:
        """Return the oldest entries, at most 100; waits up to a second, then returns none."""
        self._has_lease = await self._lease(self._lease_ms)
        if not self._has_lease:
            await asyncio.sleep(self._wait_s)
            return []
        if not self._is_started:
            await self._reading.start()
            self._is_started = True
        wait_ms = int(self._wait_s * 1000)
        reply = await self._reading.request(
            "XREAD", "COUNT", AT_ONCE, "BLOCK", wait_ms, "STREAMS", self._keyspace.ingest, "0"
        )
        if reply is None:
            return []
        [[_, entries]] = reply
        return [InboxEntry(id_.decode(), _text(fields)) for id_, fields in entries]

    async def settle(self, ids: Sequence[str]) -> None:
        """Delete entries whose events were published or refused."""
        if ids:
            await self._commands.request("XDEL", self._keyspace.ingest, *ids)

    async def aclose(self) -> None:
        """Give the lease back, so that another process takes over at once."""
        if self._has_lease:
            try:
                await self._lease(0)
            except Unavailable as error:
                log.info("the lease of the ingest stream runs out by itself", reason=error.message)
        await self._reading.aclose()

    async def _lease(self, milliseconds: int) -> bool:
        held = await self._commands.run(
            scripts.LEASE, [self._keyspace.ingest_lease], self._node, milliseconds
        )
        return bool(held)


def _text(fields: list[bytes]) -> bytes:
    """Return the field ``event``; an entry without it has an empty text, which is refused."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"")
