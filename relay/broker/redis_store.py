"""Calls, users and the list of hooks in Redis, as JSON, one key each."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from relay import wire
from relay.broker import HookList, scripts
from relay.broker.redis_broker import RedisBroker
from relay.calls import Call
from relay.errors import Unavailable
from relay.hooks import Hooks
from relay.users import Profile, User, changed

__all__ = ["RedisStore"]

ATTEMPTS: Final = 10
"""Tries to change a user while others change it too."""


class RedisStore:
    """The store of a relay that runs on Redis; it speaks through the broker's connection."""

    def __init__(self, broker: RedisBroker) -> None:
        self._redis = broker.commands
        self._keyspace = broker.keyspace

    async def user(self, user_id: str) -> User | None:
        """Return a user, None when unknown."""
        return _user(await self._redis.request("GET", self._keyspace.user(user_id)))

    async def save_user(self, user_id: str, profile: Profile, now_ns: int) -> User:
        """Create or change a user and return it."""
        key = self._keyspace.user(user_id)
        present: bytes = await self._redis.request("GET", key) or b""
        for _ in range(ATTEMPTS):
            before = _user(present)
            user = changed(before, user_id, profile, now_ns)
            if user is before:
                return user
            text = wire.encode(user)
            present = await self._redis.run(scripts.REPLACE, [key], present, text)
            if present == text:
                return user
        raise Unavailable("the user is being changed by too many at once: try again")

    async def call(self, cid: str) -> Call | None:
        """Return a call, None when it was never created."""
        text = await self._redis.request("GET", self._keyspace.call(cid))
        return None if text is None else msgspec.convert(wire.decode(text), Call)

    async def create_call(self, call: Call) -> tuple[Call, bool]:
        """Create a call unless it exists; return what is kept, and whether it was created."""
        key = self._keyspace.call(call.cid)
        before = await self._redis.request("SET", key, wire.encode(call), "NX", "GET")
        if before is None:
            return call, True
        return msgspec.convert(wire.decode(before), Call), False

    async def hooks(self) -> HookList:
        """Return the hooks as they are now."""
        text = await self._redis.request("GET", self._keyspace.hooks)
        return msgspec.convert(wire.decode(text), HookList) if text else HookList()

    async def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        """Replace the hooks that were read as ``based_on``; None when others came in between."""
        saved = based_on.changed(hooks, now_ms)
        before = wire.encode(based_on) if based_on.version else b""
        text = wire.encode(saved)
        if await self._redis.run(scripts.REPLACE, [self._keyspace.hooks], before, text) != text:
            return None
        await self._tell(saved)
        return saved

    async def _tell(self, saved: HookList) -> None:
        """Let the publish steps of every partition know what is wanted now."""
        wanted = saved.wanted()
        telling = (
            self._redis.run(scripts.OUT_HOOKS, [keys.state, keys.wake], saved.version, wanted)
            for keys in self._keyspace.outboxes
        )
        await asyncio.gather(*telling)


def _user(text: bytes | None) -> User | None:
    return msgspec.convert(wire.decode(text), User) if text else None
