"""Calls, users and hooks in Redis, for all processes: records and indexes, see ``redis_table``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import msgspec

from relay import wire
from relay.broker import Change, HookList, scripts
from relay.broker.finding import Queries
from relay.broker.indexes import marks_of_call, marks_of_user
from relay.broker.redis_broker import RedisBroker
from relay.broker.redis_table import Table
from relay.broker.rules import GONE_S, call_text, life_of_user_s
from relay.calls import Call
from relay.filters import Found, Query
from relay.hooks import Hooks
from relay.users import Profile, User, changed

__all__ = ["RedisStore"]


class RedisStore:
    """The store of a relay that runs on Redis; it speaks through the broker's connection."""

    def __init__(self, broker: RedisBroker, queries: Queries | None = None) -> None:
        self._redis = broker.commands
        self._keyspace = broker.keyspace
        self._queries = queries or Queries()
        self._calls = Table(
            self._redis, self._keyspace, Call,
            key=self._keyspace.call, text_of=call_text, marks_of=marks_of_call, life_s=_for_ever,
        )  # fmt: skip
        self._users = Table(
            self._redis, self._keyspace, User,
            key=self._keyspace.user, text_of=wire.encode, marks_of=marks_of_user,
            life_s=life_of_user_s,
        )  # fmt: skip

    # -- users ----------------------------------------------------------------------------------

    async def user(self, user_id: str) -> User | None:
        """Return a user, None when unknown."""
        return await self._users.get(user_id)

    async def users(self, user_ids: Collection[str]) -> dict[str, User]:
        """Return users by their ids; unknown ones are left out."""
        return await self._users.get_many(user_ids)

    async def save_user(self, user_id: str, profile: Profile, now_ns: int) -> User:
        """Create or change a user and return it."""
        _, user = await self._users.put(
            user_id, lambda present: changed(present, user_id, profile, now_ns)
        )
        assert user is not None, "nobody is deleted here"
        return user

    async def change_user(
        self, user_id: str, change: Callable[[User], Profile], now_ns: int
    ) -> User | None:
        """Save what ``change`` makes of a user as it is, and return it; None when unknown."""
        _, user = await self._users.put(
            user_id,
            lambda present: present and changed(present, user_id, change(present), now_ns),
        )
        return user

    async def query_users(self, query: Query) -> Found[User]:
        """Return the users that a query matches."""
        return await self._queries.find(query, self._users)

    # -- calls ----------------------------------------------------------------------------------

    async def call(self, cid: str) -> Call | None:
        """Return a call, None when it was never created."""
        return await self._calls.get(cid)

    async def calls(self, cids: Collection[str]) -> dict[str, Call]:
        """Return calls by their cids; those that were never created are left out."""
        return await self._calls.get_many(cids)

    async def create_call(self, call: Call) -> tuple[Call, bool]:
        """Create a call unless it exists; return what is kept, and whether it was created."""
        before, after = await self._calls.put(call.cid, lambda present: present or call)
        assert after is not None, "either was there"
        return after, before is None

    async def change_call(self, cid: str, change: Callable[[Call], Call]) -> Change | None:
        """Apply ``change`` to a call; None when there is no such call."""
        before, after = await self._calls.put(
            cid, lambda present: None if present is None else change(present)
        )
        return None if before is None or after is None else Change(before, after)

    async def delete_call(self, cid: str) -> Call | None:
        """Delete a call and return it as it was; None when there is no such call.

        Of several processes that delete it in the same moment more than one may be told so.
        """
        before, _ = await self._calls.put(cid, lambda present: None)
        return before

    async def note_gone(self, cid: str, created_at: int, now_ns: int) -> None:
        """Remember for ``GONE_S`` that this call, created then, was deleted elsewhere."""
        await self._redis.request("SET", self._keyspace.gone(cid), created_at, "EX", GONE_S)

    async def gone(self, cid: str, now_ns: int) -> int | None:
        """Return when the call was created that was noted to be gone; None when none was."""
        created_at = await self._redis.request("GET", self._keyspace.gone(cid))
        return None if created_at is None else int(created_at)

    async def query_calls(self, query: Query) -> Found[Call]:
        """Return the calls that a query matches."""
        return await self._queries.find(query, self._calls)

    # -- counting -------------------------------------------------------------------------------

    async def spend(self, key: str, window_s: int, now_ns: int) -> int:
        """Count one more use of ``key`` in the current window; return how many there were in it."""
        window = now_ns // 1_000_000_000 // window_s
        spent: int = await self._redis.run(
            scripts.SPEND, [self._keyspace.spent(key, window_s, window)], 2 * window_s
        )
        return spent

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
        await self.tell_hooks(saved)
        return saved

    async def tell_hooks(self, hooks: HookList) -> None:
        """Let the publish steps of every partition know what is wanted, unless they know later."""
        wanted = hooks.wanted()
        telling = (
            self._redis.run(scripts.OUT_HOOKS, [keys.state, keys.wake], hooks.version, wanted)
            for keys in self._keyspace.outboxes
        )
        await asyncio.gather(*telling)


def _for_ever(_: Call) -> int:
    return 0
