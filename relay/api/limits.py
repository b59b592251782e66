"""Limits of the HTTP API: so many requests a minute, per user and operation, over all processes.

Servers are exempt. Every answer tells in ``X-RateLimit-*`` what is left, as Stream's does.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from relay import http, logs, metrics
from relay.broker import Store
from relay.errors import RateLimited, Unavailable
from relay.http import Clock
from relay.tokens import Claims

log = logs.get(__name__)

WINDOW_S: Final = 60
_NS: Final = 1_000_000_000


class Meter:
    """Counts requests. ``limit`` per window, 0 = no limit."""

    def __init__(self, store: Store, limit: int, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.limit = limit

    def reset_s(self) -> int:
        """Return when the current window ends, in seconds since 1970."""
        return (self._clock() // _NS // WINDOW_S + 1) * WINDOW_S

    async def spend(self, request: Request, claims: Claims, operation: str) -> None:
        """Count one request of a user; raises ``RateLimited`` when it is one too many.

        Anonymous users and guests-to-be share a name: they are told apart by their address.
        """
        if claims.user_id is None:
            self._tell(request, self.limit)
            return
        address = request.client.host if request.client and claims.user_id.startswith("!") else ""
        await self.spend_as(request, f"{claims.user_id}{address}", operation)

    async def spend_as(self, request: Request, who: str, operation: str) -> None:
        """Count one request of whoever ``who`` names."""
        if not self.limit:
            return
        try:
            used = await self._store.spend(f"{operation}:{who}", WINDOW_S, self._clock())
        except Unavailable as error:
            # Whatever needs Redis refuses by itself; nothing else has to stop with it.
            log.warning("requests are not counted", reason=error.message)
            return
        self._tell(request, max(0, self.limit - used))
        if used > self.limit:
            metrics.RATE_LIMITED.labels(operation).inc()
            raise RateLimited(
                f"at most {self.limit} {operation} requests a minute: see X-RateLimit-Reset",
                retry_after=self.reset_s() - self._clock() / _NS,
            )

    def _tell(self, request: Request, remaining: int) -> None:
        if self.limit:
            http.set_header(request, "X-RateLimit-Limit", self.limit)
            http.set_header(request, "X-RateLimit-Remaining", remaining)
            http.set_header(request, "X-RateLimit-Reset", self.reset_s())
