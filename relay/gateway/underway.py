"""What is being allowed to a socket, so that it can be forbidden before it has begun.

Whoever asks whether something is allowed waits for the answer; when it is forbidden meanwhile the
answer is an old one, and there is no watch and no login yet that could be ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from relay.errors import NotAllowed
from relay.gateway.connection import Connection
from relay.tokens import Claims

T = TypeVar("T")


@contextmanager
def noted(what: T, where: set[T]) -> Iterator[T]:
    """Keep something where others find it while it is under way."""
    where.add(what)
    try:
        yield what
    finally:
        where.discard(what)


class Arriving:
    """A login."""

    __slots__ = ("_claims", "_revoked_before")

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._revoked_before = 0

    def revoked(self, user_id: str | None, before_s: float) -> None:
        """Learn that the older tokens of a user, or of everybody, are worth nothing any more."""
        if user_id in (None, self._claims.user_id):
            self._revoked_before = max(self._revoked_before, int(before_s * 1e9))

    def check(self) -> None:
        """Raise ``TokenExpired`` when its token was among these."""
        self._claims.check_revoked(self._revoked_before)


class Beginning:
    """A call that is opened to a socket, to watch it or to send to it."""

    __slots__ = ("_is_expelled", "cid", "connection")

    def __init__(self, connection: Connection, cid: str) -> None:
        self.connection = connection
        self.cid = cid
        self._is_expelled = False

    def expelled(self, user_id: str | None, cid: str) -> None:
        """Learn that a call is closed to a user, or to everybody."""
        if cid == self.cid and user_id in (None, self.connection.user.id):
            self._is_expelled = True

    def check(self) -> None:
        """Raise ``NotAllowed`` when it was closed to this one."""
        if self._is_expelled:
            raise NotAllowed(f"the call {self.cid} was closed to this user", reason="expelled")
