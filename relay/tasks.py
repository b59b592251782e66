"""Tasks with an owner, and waits with a limit.

Whoever starts work in the background keeps it in a ``Tasks`` and closes that when it ends itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar, cast

from relay import logs, metrics
from relay.errors import RelayError, Unavailable
from relay.retry import backoff

log = logs.get(__name__)

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STEADY_AFTER_S: Final = 60.0
"""Work that went on for so long has recovered: its next failure begins a new row of them."""

T = TypeVar("T")
_jitter = random.Random()  # noqa: S311 - jitter, not secrets


class Tasks:
    """The background tasks of one owner. A failure that nobody waits for is logged."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work`` and keep it until it ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, work: Callable[[], Coroutine[Any, Any, None]], what: str) -> asyncio.Task[None]:
        """Do ``work`` until it returns, from its beginning again whenever it fails.

        Each failure is logged and counted, and followed by a pause: 0.1 s, doubling up to 5 s.
        ``work`` leaves what it was at so that it can begin again; ``what`` names it in the log.
        """
        return self.spawn(self._keep(work, what))

    async def _keep(self, work: Callable[[], Coroutine[Any, Any, None]], what: str) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                return await work()
            except Exception as error:
                failures = 1 if loop.time() - began > STEADY_AFTER_S else failures + 1
                metrics.BACKGROUND_FAILURES.inc()
                log.error(
                    "background work failed and begins again",
                    owner=self._owner, what=what, failures=failures, exc_info=error,
                )  # fmt: skip
            await asyncio.sleep(
                backoff(failures, _jitter, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
            )

    async def aclose(self) -> None:
        """Cancel what still runs, and what that starts as it ends, and wait until it has ended."""
        while tasks := self._tasks - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # they are let go of in the turn after they ended

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, RelayError):  # those are for whoever waits for the task
            metrics.BACKGROUND_FAILURES.inc()
            log.error("background task failed", owner=self._owner, exc_info=error)


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """Return what all ``works`` return, in order; the first error is raised when all have ended."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return cast("list[T]", outcomes)


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Bound a wait: raise ``Unavailable`` naming ``what`` when the body takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(f"{what} took more than {seconds:g} s: try again") from None
