"""The embedded store: calls and users for as long as the process lives.

Changes happen between two turns of the event loop, so each is whole. Queries go by the same plan as
in Redis, over sorted lists, so what is found, refused and paged here is so there too. Guests are
forgotten when they stay away; calls and users stay until somebody deletes them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Final, Generic, TypeVar

from relay.broker import Change, HookList
from relay.broker.finding import Budget, Queries
from relay.broker.indexes import Mark, Span, marks_of_call, marks_of_user
from relay.broker.memory_outbox import MemoryOutbox
from relay.broker.rules import GONE_S, call_text, life_of_user_s
from relay.calls import Call
from relay.filters import Found, Query
from relay.hooks import Hooks
from relay.users import Profile, User, changed

__all__ = ["MemoryStore"]

R = TypeVar("R", bound=Call | User)

FORGOTTEN_AT_ONCE: Final = 4
"""Looked at with each new use, so that more is forgotten than comes."""


class MemoryTable(Generic[R]):
    """Records of one kind, by their ids, and their indexes."""

    def __init__(self, marks_of: Callable[[R], frozenset[Mark]]) -> None:
        self.records: dict[str, R] = {}
        self._marks_of = marks_of
        self._indexes: defaultdict[str, list[str]] = defaultdict(list)

    def put(self, identity: str, after: R | None) -> None:
        """Keep a record, or forget it (None)."""
        before = self.records.get(identity)
        old = self._marks_of(before) if before is not None else frozenset()
        new = self._marks_of(after) if after is not None else frozenset()
        if after is None:
            self.records.pop(identity, None)
        else:
            self.records[identity] = after
        for index, text in new - old:
            self.mark(index, text)
        for index, text in old - new:
            self._unmark(index, text)

    def mark(self, index: str, text: str) -> None:
        """Set a mark."""
        insort(self._indexes[index], text)

    def _unmark(self, index: str, text: str) -> None:
        texts = self._indexes[index]
        del texts[bisect_left(texts, text)]
        if not texts:
            del self._indexes[index]

    async def count(self, index: str, span: Span) -> int:
        """Return how many marks of an index lie in a span."""
        first, end = self._stretch(index, span)
        return max(0, end - first)

    async def marks(self, index: str, span: Span, most: int, *, ascending: bool) -> list[str]:
        """Return the first marks of a span, or, from its end on, the last."""
        first, end = self._stretch(index, span)
        texts = self._indexes.get(index, [])
        if ascending:
            return texts[first : min(end, first + most)]
        return texts[max(first, end - most) : end][::-1]

    def _stretch(self, index: str, span: Span) -> tuple[int, int]:
        texts = self._indexes.get(index, [])
        return bisect_left(texts, span.low), bisect_left(texts, span.high)

    async def look(self, identities: Sequence[str], budget: Budget) -> list[R | None]:
        """Return records by their ids, None for those that are not there."""
        await asyncio.sleep(0)  # as a look into Redis does
        budget.spend(len(identities), 0)
        return [self.records.get(identity) for identity in identities]


class MemoryStore:
    """Calls and users in this process."""

    def __init__(self, outbox: MemoryOutbox | None = None) -> None:
        self._outbox = outbox
        self._queries = Queries()
        self._calls = MemoryTable[Call](marks_of_call)
        self._users = MemoryTable[User](marks_of_user)
        # In the order in which they are forgotten; uses by the length of their window, so too.
        self._forgotten_at: OrderedDict[str, int] = OrderedDict()
        self._gone: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._spent: defaultdict[int, OrderedDict[tuple[int, str], int]] = defaultdict(OrderedDict)

    # -- users ----------------------------------------------------------------------------------

    async def user(self, user_id: str) -> User | None:
        """Return a user, None when unknown."""
        return self._users.records.get(user_id)

    async def users(self, user_ids: Collection[str]) -> dict[str, User]:
        """Return users by their ids; unknown ones are left out."""
        known = self._users.records
        return {user_id: known[user_id] for user_id in user_ids if user_id in known}

    async def save_user(self, user_id: str, profile: Profile, now_ns: int) -> User:
        """Create or change a user and return it."""
        self._forget(now_ns)
        user = changed(self._users.records.get(user_id), user_id, profile, now_ns)
        self._keep(user, now_ns)
        return user

    async def change_user(
        self, user_id: str, change: Callable[[User], Profile], now_ns: int
    ) -> User | None:
        """Save what ``change`` makes of a user as it is, and return it; None when unknown."""
        self._forget(now_ns)
        present = self._users.records.get(user_id)
        if present is None:
            return None
        user = changed(present, user_id, change(present), now_ns)
        self._keep(user, now_ns)
        return user

    def _keep(self, user: User, now_ns: int) -> None:
        self._users.put(user.id, user)
        self._forgotten_at.pop(user.id, None)
        if life_s := life_of_user_s(user):
            self._forgotten_at[user.id] = now_ns + life_s * 1_000_000_000

    def _forget(self, now_ns: int) -> None:
        for _ in range(FORGOTTEN_AT_ONCE):
            user_id, at = next(iter(self._forgotten_at.items()), ("", now_ns))
            if at >= now_ns:
                break
            del self._forgotten_at[user_id]
            self._users.put(user_id, None)

    async def query_users(self, query: Query) -> Found[User]:
        """Return the users that a query matches."""
        return await self._queries.find(query, self._users)

    # -- calls ----------------------------------------------------------------------------------

    async def call(self, cid: str) -> Call | None:
        """Return a call, None when it was never created."""
        return self._calls.records.get(cid)

    async def calls(self, cids: Collection[str]) -> dict[str, Call]:
        """Return calls by their cids; those that were never created are left out."""
        known = self._calls.records
        return {cid: known[cid] for cid in cids if cid in known}

    async def create_call(self, call: Call) -> tuple[Call, bool]:
        """Create a call unless it exists; return what is kept, and whether it was created."""
        present = self._calls.records.get(call.cid)
        if present is not None:
            return present, False
        call_text(call)
        self._calls.put(call.cid, call)
        return call, True

    async def change_call(self, cid: str, change: Callable[[Call], Call]) -> Change | None:
        """Apply ``change`` to a call; None when there is no such call."""
        before = self._calls.records.get(cid)
        if before is None:
            return None
        after = change(before)
        if after == before:
            return Change(before, before)
        call_text(after)
        self._calls.put(cid, after)
        return Change(before, after)

    async def delete_call(self, cid: str) -> Call | None:
        """Delete a call and return it as it was; None when there is no such call."""
        before = self._calls.records.get(cid)
        if before is not None:
            self._calls.put(cid, None)
        return before

    async def note_gone(self, cid: str, created_at: int, now_ns: int) -> None:
        """Remember for ``GONE_S`` that this call, created then, was deleted elsewhere."""
        self._gone.pop(cid, None)
        self._gone[cid] = created_at, now_ns + GONE_S * 1_000_000_000
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._gone))
            if self._gone[oldest][1] >= now_ns:
                break
            del self._gone[oldest]

    async def gone(self, cid: str, now_ns: int) -> int | None:
        """Return when the call was created that was noted to be gone; None when none was."""
        created_at, until = self._gone.get(cid, (None, 0))
        return created_at if now_ns < until else None

    async def query_calls(self, query: Query) -> Found[Call]:
        """Return the calls that a query matches."""
        return await self._queries.find(query, self._calls)

    # -- counting -------------------------------------------------------------------------------

    async def spend(self, key: str, window_s: int, now_ns: int) -> int:
        """Count one more use of ``key`` in the current window; return how many there were in it."""
        window = now_ns // 1_000_000_000 // window_s
        uses = self._spent[window_s]
        uses[window, key] = spent = uses.get((window, key), 0) + 1
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest = next(iter(uses))
            if oldest[0] + 1 >= window:
                break
            del uses[oldest]
        return spent

    # -- hooks ----------------------------------------------------------------------------------

    async def hooks(self) -> HookList:
        """Return the hooks as they are now."""
        return HookList() if self._outbox is None else self._outbox.hooks

    async def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        """Replace the hooks that were read as ``based_on``; None when others came in between."""
        assert self._outbox is not None, "hooks without an outbox would lose every delivery"
        return self._outbox.save_hooks(hooks, based_on, now_ms)

    async def tell_hooks(self, hooks: HookList) -> None:
        """Do nothing: here the hooks and what the publish step knows of them are one."""
