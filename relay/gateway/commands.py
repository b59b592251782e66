"""Carry out one socket's commands, one after another: replies come in the order of the commands.

What the session refuses or answers at once does not wait for them; replies are told by their id.
A worker exists only while commands wait; an idle socket has neither a task nor a queue.
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

log = logs.get(__name__)

QUEUE_LIMIT: Final = 100
"""Commands that wait for their turn before the socket is no longer read."""


class Worker:
    """Works off the commands of one connection, then tells it so and is gone."""

    def __init__(self, connection: Connection, sockets: Sockets) -> None:
        self._connection = connection
        self._sockets = sockets
        self._queue: deque[Action] = deque()
        self.task: asyncio.Task[None] | None = None

    def put(self, action: Action) -> bool:
        """Append a command; return True when no more should be read for now."""
        self._queue.append(action)
        return len(self._queue) >= QUEUE_LIMIT

    async def run(self) -> None:
        """Work until nothing waits or the socket is closed."""
        while self._queue and self._connection.is_open:
            await self._carry_out(self._queue.popleft())
            if len(self._queue) < QUEUE_LIMIT // 2:
                self._connection.resume_reading()
        self._connection.worker_idle()

    async def _carry_out(self, action: Action) -> None:
        connection = self._connection
        try:
            if isinstance(action, Login):
                await self._log_in(action)
            else:
                connection.reply(await self._reply_to(action))
        except RelayError as error:
            if not isinstance(action, Send):  # what was to be published, its door has counted
                self._sockets.door.refused(error)
            connection.reply(frames.error(getattr(action, "id", None), error))
        except Exception:
            log.exception("command failed", action=type(action).__name__, peer=connection.peer)
            connection.end(Close.INTERNAL_ERROR, "internal error", "internal")

    async def _reply_to(self, action: Action) -> bytes:
        sockets, connection = self._sockets, self._connection
        match action:
            case Watch(command_id, cid, since):
                position, recovered = await sockets.watch(connection, cid, since)
                return frames.watching(command_id, cid, position, recovered)
            case Unwatch(command_id, cid):
                sockets.unwatch(connection, cid)
                return frames.unwatched(command_id, cid)
            case Send(command_id, event):
                return frames.sent(command_id, await sockets.publish(event))
            case Refresh(command_id, claims):
                for cid in claims.disallowed(connection.calls):
                    sockets.unwatch(connection, cid)
                connection.schedule()  # the new token may end sooner than the next visit
                return frames.refreshed(command_id)
        raise AssertionError(f"no worker needed for {action!r}")

    async def _log_in(self, action: Login) -> None:
        """Save the profile and admit the socket.

        Trouble of ours is told by a close code only: after an error frame Stream's client would
        give up for good.
        """
        connection, session = self._connection, self._connection.session
        now_ns = self._sockets.now_ns()
        try:
            user = await self._sockets.save_user(action.user_id, action.profile)
            session.claims.check_revoked(user.revoked_before)
            connection_id = self._sockets.admit(connection, user.id)
        except Refused as error:
            connection.perform(session.refused(error, now_ns))
        except Unavailable as error:
            connection.end(Close.TRY_AGAIN_LATER, error.message, error.reason)
        else:
            connection.perform(session.welcomed(user, connection_id, now_ns))
            connection.schedule()
