"""The connection on which publications arrive.

It resubscribes after every loss and then says that something may be missing; a connection that is
silent although it was pinged is given up. The way of a message is short on purpose: one look-up of
the call, one read of the header, one copy of the body.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from relay import logs
from relay.broker import Listener
from relay.broker.keeper import Keeper
from relay.broker.keyspace import (
    CANARY,
    HEADER,
    HEADER_SIZE,
    KEPT,
    ROSTER,
    VOLATILE,
    Keyspace,
    is_canary,
)
from relay.broker.resp import Command, Connection, ReplyError, Route, pack
from relay.errors import Unavailable
from relay.events import Position
from relay.tasks import Tasks, within

log = logs.get(__name__)

PING_S: Final = 1.5
SILENCE_S: Final = 5.0
CHUNK: Final = 1000
"""Subscriptions asked for at once after a reconnect."""
EPOCHS_KNOWN: Final = 10_000


Elsewhere = Callable[["Subscriber", bytes], None]
"""Takes a channel that a Cluster's node does not serve any more."""


class Subscriber:
    """Subscriptions to calls' channels, and to the few plain channels of ``listen``."""

    def __init__(
        self,
        route: Route,
        name: str,
        *,
        keyspace: Keyspace,
        node: str,
        timeout_s: float,
        changed: Callable[[], None],
        ping_s: float = PING_S,
        silence_s: float = SILENCE_S,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._keyspace = keyspace
        self._node = node.encode()
        self._timeout_s = timeout_s
        self._ping_s = ping_s
        self._silence_s = silence_s
        self._elsewhere = elsewhere
        self._keeper = Keeper(route, name, self, changed)
        self._tasks = Tasks("redis subscriber")
        self._resubscribing: set[asyncio.Task[None]] = set()
        self._wanted: dict[bytes, str] = {}
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        # Commands of a channel that Redis has not answered: only the last answer counts.
        self._unanswered: Counter[bytes] = Counter()
        self._asked: deque[bytes] = deque()
        self._outgoing: list[bytes] = []
        self._epochs: dict[bytes, str] = {}
        self._listener: Listener
        self._plain: dict[bytes, Callable[[bytes], None]] = {}
        self._on_canary: Callable[[str, bytes], None] = _ignore

    @property
    def is_connected(self) -> bool:
        """Tell whether the connection stands."""
        return self._keeper.connection is not None

    @property
    def cids(self) -> list[str]:
        """Return the calls that are subscribed to."""
        return [cid for cid in self._wanted.values() if not is_canary(cid)]

    @property
    def channels(self) -> list[bytes]:
        """Return the channels that are subscribed to, or asked for."""
        return list(self._wanted)

    def listen(
        self,
        listener: Listener,
        plain: Mapping[str, Callable[[bytes], None]],
        canary: Callable[[str, bytes], None],
    ) -> None:
        """Say who is told what arrives; before anything else.

        ``plain`` are channels that are not of calls, and who takes their messages.
        """
        self._listener, self._on_canary = listener, canary
        self._plain = {channel.encode(): take for channel, take in plain.items()}

    async def start(self) -> None:
        """Connect; raises ``Unavailable``."""
        await self._keeper.start()
        self._tasks.keep(self._watch_silence, "watching for silence")

    def start_soon(self) -> None:
        """Connect as soon as the server can be reached."""
        self._keeper.start_soon()
        self._tasks.keep(self._watch_silence, "watching for silence")

    async def aclose(self) -> None:
        """Disconnect."""
        await self._tasks.aclose()
        await self._keeper.aclose()

    async def subscribe(self, cid: str) -> None:
        """Subscribe to a call and wait for Redis' confirmation; raises ``Unavailable``."""
        channel = self._keyspace.channel(cid).encode()
        confirmed = self._confirmed.get(channel)
        if confirmed is None:
            self._wanted[channel] = cid
            confirmed = self._expect(channel)
            self._send("SSUBSCRIBE", channel)
        try:
            async with within(self._timeout_s, "subscribing in Redis"):
                await asyncio.shield(confirmed)
        except Unavailable:
            if self._confirmed.get(channel) is confirmed:
                self._leave(channel)
            raise

    def unsubscribe(self, cid: str) -> None:
        """Unsubscribe from a call; nothing of it is handed over any more."""
        channel = self._keyspace.channel(cid).encode()
        if channel in self._wanted:
            self._leave(channel)

    def stands(self, cid: str) -> bool:
        """Tell whether the connection that a call is subscribed on stands: there is one for all."""
        return self.is_connected

    def drop(self, cid: str, why: str) -> None:
        """Give up the connection that a call is subscribed on, and make another."""
        self._keeper.drop(why)

    # -- for a Cluster, where a channel may move --------------------------------------------------

    def release(self, channel: bytes, *, is_ended: bool) -> tuple[str, asyncio.Future[None] | None]:
        """Give a channel up, unless the server has; return its call and who waits for it."""
        cid = self._wanted.pop(channel)
        confirmed = self._confirmed.pop(channel)
        if not is_ended:
            self._send("SUNSUBSCRIBE", channel)
        return cid, None if confirmed.done() else confirmed

    def adopt(self, channel: bytes, cid: str, waiting: asyncio.Future[None] | None) -> None:
        """Subscribe to what another node has given up, then say what may have been missed."""
        self._wanted[channel] = cid
        confirmed = self._expect(channel)
        if waiting is not None:
            confirmed.add_done_callback(partial(_pass_on, waiting))
        if self.is_connected:
            self._resubscribe([channel])

    def _leave(self, channel: bytes) -> None:
        del self._wanted[channel]
        confirmed = self._confirmed.pop(channel)
        if not confirmed.done():
            confirmed.set_exception(Unavailable("the subscription was given up"))
            confirmed.exception()  # perhaps nobody waits for it
        self._send("SUNSUBSCRIBE", channel)

    def _expect(self, channel: bytes) -> asyncio.Future[None]:
        confirmed = self._confirmed[channel] = asyncio.get_running_loop().create_future()
        return confirmed

    def _send(self, command: str, channel: bytes) -> None:
        """Send with what else is sent in this turn; without a connection the next one begins so."""
        if not self.is_connected:
            return
        self._unanswered[channel] += 1
        self._asked.append(channel)
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(pack((command, channel)))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._keeper.connection is not None and outgoing:
            self._keeper.connection.write(b"".join(outgoing))

    # -- what arrives ---------------------------------------------------------------------------

    def on_reply(self, reply: Any) -> None:
        """Take a message or a confirmation. The hot path."""
        try:
            kind, channel, message = reply
        except (TypeError, ValueError):
            self._on_other(reply)
            return
        if kind == b"smessage":
            if (cid := self._wanted.get(channel)) is not None:
                self._take(cid, message)
        elif kind == b"message":
            self._plain[channel](message)
        elif kind in (b"ssubscribe", b"sunsubscribe"):
            self._answered(channel, is_subscribed=kind == b"ssubscribe")

    def _take(self, cid: str, message: bytes) -> None:
        try:
            kind, name, offset = HEADER.unpack_from(message)
            epoch = self._epochs.get(name) or self._epoch(name)
        except (struct.error, UnicodeDecodeError):
            log.warning("not a publication on a call's channel", cid=cid)
            return
        if kind == KEPT:
            # Half the time of Position(epoch, offset), whose __new__ is written in Python.
            position = tuple.__new__(Position, (epoch, offset))
            self._listener.on_publication(cid, position, message[HEADER_SIZE:])
        elif kind == VOLATILE:
            self._listener.on_publication(cid, None, message[HEADER_SIZE:])
        elif kind == ROSTER and message[HEADER_SIZE:] != self._node:
            self._listener.on_roster(cid)
        elif kind == CANARY:
            self._on_canary(cid, message[HEADER_SIZE:])

    def _epoch(self, name: bytes) -> str:
        """Decode an epoch's name, once: a call has one for as long as nothing fails."""
        if len(self._epochs) >= EPOCHS_KNOWN:
            self._epochs.clear()
        epoch = self._epochs[name] = name.decode("ascii")
        return epoch

    def _on_other(self, reply: Any) -> None:
        if not isinstance(reply, ReplyError):
            return
        moved = str(reply).startswith(("MOVED ", "CLUSTERDOWN"))
        if self._elsewhere is None or not moved:
            self._keeper.drop(f"Redis refused a subscription: {reply}")
        elif self._asked:  # else it is about one that was ended before it was given up
            channel = self._asked[0]
            if self._was_last_answer(channel) and channel in self._wanted:
                self._elsewhere(self, channel)

    def _answered(self, channel: bytes, *, is_subscribed: bool) -> None:
        was_asked = bool(self._unanswered[channel])
        if not self._was_last_answer(channel) or channel not in self._wanted:
            return
        if is_subscribed:
            if not (confirmed := self._confirmed[channel]).done():
                confirmed.set_result(None)
        elif not was_asked:
            # Redis ended it by itself, because the slot has moved.
            if self._elsewhere is None:
                self._resubscribe([channel])
            else:
                self._elsewhere(self, channel)

    def _was_last_answer(self, channel: bytes) -> bool:
        """Count an answer; tell whether no other one to this channel is due."""
        if self._asked and self._asked[0] == channel:
            self._asked.popleft()
        if self._unanswered[channel] > 1:
            self._unanswered[channel] -= 1
            return False
        del self._unanswered[channel]
        return True

    # -- what the keeper tells ------------------------------------------------------------------

    def preamble(self) -> tuple[Sequence[Command], Sequence[Command]]:
        """Subscribe to the plain channels; from then on the connection takes messages."""
        return [("SUBSCRIBE", channel) for channel in self._plain], []

    def on_open(self, connection: Connection) -> None:
        """Subscribe again to everything that is wanted."""
        self._outgoing.clear()
        self._unanswered.clear()
        self._asked.clear()
        if self._wanted:
            self._resubscribe(list(self._wanted))

    def on_writable(self) -> None:
        """Do nothing: what is written here is little, and a chunk waits for its answers."""

    def on_unreachable(self) -> None:
        """Do nothing: subscriptions wait."""

    def on_closed(self) -> None:
        """Stop subscribing on a connection that is gone."""
        for task in self._resubscribing:
            task.cancel()

    def _resubscribe(self, channels: list[bytes]) -> None:
        task = self._tasks.keep(partial(self._subscribe_again, channels), "subscribing again")
        self._resubscribing.add(task)
        task.add_done_callback(self._resubscribing.discard)

    async def _subscribe_again(self, channels: list[bytes]) -> None:
        """Subscribe in chunks, then say what may have been missed."""
        for start in range(0, len(channels), CHUNK):
            wanted = [c for c in channels[start : start + CHUNK] if c in self._wanted]
            for channel in wanted:
                if self._confirmed[channel].done():
                    self._expect(channel)
                self._send("SSUBSCRIBE", channel)
            if waiting := [self._confirmed[c] for c in wanted if c in self._confirmed]:
                await asyncio.wait(waiting)
        cids = [self._wanted[channel] for channel in channels if channel in self._wanted]
        if cids := [cid for cid in cids if not is_canary(cid)]:
            self._listener.on_interrupted(cids)

    async def _watch_silence(self) -> None:
        """Ping, and give up a connection that no longer says anything."""
        ping = pack(("PING",))
        while True:
            await asyncio.sleep(self._ping_s)
            connection = self._keeper.connection
            if connection is None:
                continue
            if asyncio.get_running_loop().time() - connection.heard_at > self._silence_s:
                self._keeper.drop("Redis is silent")
            else:
                connection.write(ping)


def _ignore(_: str, __: bytes, /) -> None:
    """Stand in until somebody sends canaries."""


def _pass_on(waiting: asyncio.Future[None], confirmed: asyncio.Future[None]) -> None:
    """Tell who waits for a subscription how the one that took its place has ended."""
    if waiting.done() or confirmed.cancelled():
        return
    if (error := confirmed.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(None)
