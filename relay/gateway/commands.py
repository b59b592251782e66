"""Carry out one socket's commands, one after another: replies come in the order of the commands.

What the session refuses or answers at once does not wait for them; replies are told by their id.
A worker exists only while commands wait: an idle socket has neither a task nor a queue, and an
event that the broker takes at once needs none, since a task costs as much as the rest of the way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from relay import logs
from relay.errors import Close, Refused, RelayError, Unavailable
from relay.gateway import frames
from relay.gateway.session import Action, Login, Refresh, Send, Unwatch, Watch

if TYPE_CHECKING:
    from relay.gateway.connection import Connection
    from relay.gateway.sockets import Sockets
    from relay.tokens import Claims

log = logs.get(__name__)

QUEUE_LIMIT: Final = 100
"""Commands that wait for their turn before the socket is no longer read."""


def publish_now(connection: Connection, sockets: Sockets, action: Send) -> bool:
    """Publish and reply in this loop turn; False, with nothing done, where a worker has to wait."""
    try:
        publication = sockets.publish_now(connection, action.event)
        if publication is not None:
            connection.reply(frames.sent(action.id, publication))
    except Exception as error:  # noqa: BLE001 - the top of a command's way, as in a worker
        _tell(connection, sockets, action, error)
        return True
    return publication is not None


def _tell(connection: Connection, sockets: Sockets, action: Action, error: Exception) -> None:
    """Reply to a command that failed; end the socket over what must not happen."""
    if isinstance(error, RelayError):
        if not isinstance(action, Send):  # what was to be published, its door has counted
            sockets.door.refused(error)
        connection.reply(frames.error(getattr(action, "id", None), error))
    else:
        what, peer = type(action).__name__, connection.peer
        log.error("command failed", action=what, peer=peer, exc_info=error)
        connection.end(Close.INTERNAL_ERROR, "internal error", "internal")


class Worker:
    """Works off the commands of one connection, then tells it so and is gone."""

    def __init__(self, connection: Connection, sockets: Sockets) -> None:
        self._connection = connection
        self._sockets = sockets
        self._queue: deque[tuple[Action, float]] = deque()
        self._task: asyncio.Task[None] | None = sockets.tasks.spawn(self._run())

    def put(self, action: Action) -> bool:
        """Append a command; return True when no more should be read for now."""
        self._queue.append((action, self._sockets.now()))
        return len(self._queue) >= QUEUE_LIMIT

    def cancel(self) -> None:
        """Leave what waits undone: the socket is closed."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        """Work until nothing waits or the socket is closed."""
        try:
            while self._queue and self._connection.is_open:
                await self._sockets.pace.admit()
                await self._carry_out(*self._queue.popleft())
                if len(self._queue) < QUEUE_LIMIT // 2:
                    self._connection.resume_reading()
            self._connection.worker_idle()
        finally:
            self._task = None  # one that was cancelled keeps its frames, and these keep us

    async def _carry_out(self, action: Action, came: float) -> None:
        connection = self._connection
        try:
            if isinstance(action, Login):
                await self._log_in(action)
            else:
                connection.reply(await self._reply_to(action, came))
        except Exception as error:  # noqa: BLE001 - it is told and logged
            _tell(connection, self._sockets, action, error)

    async def _reply_to(self, action: Action, came: float) -> bytes:
        sockets, connection = self._sockets, self._connection
        match action:
            case Watch(command_id, cid, since):
                position, recovered = await sockets.watch(connection, cid, since)
                return frames.watching(command_id, cid, position, recovered)
            case Unwatch(command_id, cid):
                sockets.unwatch(connection, cid)
                return frames.unwatched(command_id, cid)
            case Send(command_id, event):
                return frames.sent(command_id, await sockets.publish(connection, event, came))
            case Refresh(command_id, claims):
                await self._check_not_revoked(claims)
                for cid in claims.disallowed(connection.calls):
                    sockets.unwatch(connection, cid)
                connection.schedule()  # the new token may end sooner than the next visit
                return frames.refreshed(command_id)
        raise AssertionError(f"no worker needed for {action!r}")

    async def _check_not_revoked(self, claims: Claims) -> None:
        """Refuse a new token that was revoked; the session goes by it already, so it ends."""
        try:
            await self._sockets.check_not_revoked(claims)
        except Refused as error:
            self._connection.end(Close.TOKEN_EXPIRED, error.message, error.reason)
            raise

    async def _log_in(self, action: Login) -> None:
        """Save the profile and admit the socket.

        Trouble of ours is told by a close code only: after an error frame Stream's client would
        give up for good.
        """
        connection, session = self._connection, self._connection.session
        now_ns = self._sockets.now_ns()
        try:
            user, connection_id = await self._sockets.log_in(
                connection, action.user_id, action.profile
            )
        except Refused as error:
            connection.perform(session.refused(error, now_ns))
        except Unavailable as error:
            connection.end(Close.TRY_AGAIN_LATER, error.message, error.reason)
        else:
            connection.perform(session.welcomed(user, connection_id, now_ns))
            connection.schedule()
