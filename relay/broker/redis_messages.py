"""Messages between processes over Redis' plain pub/sub: one channel for all, and one for each.

A message is a line of JSON that says what it is, and then its bytes as they are.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Collection
from typing import Annotated, Final, TypeAlias

import msgspec

from relay import logs, wire
from relay.broker import scripts
from relay.broker.desk import Desk
from relay.broker.keyspace import Keyspace
from relay.broker.requests import Commands
from relay.errors import RelayError, Unavailable
from relay.retry import backoff
from relay.tasks import within

__all__ = ["RedisMessages"]

log = logs.get(__name__)

ASKED_BOUND: Final = 10_000
"""Questions of this process that may wait for an answer."""
ANSWERING_BOUND: Final = 1000
"""Questions of others that may be answered at once; who asks beyond that gets no answer."""
NOTICES_KEPT: Final = 1000
NOTICES_KEPT_S: Final = 3600.0
SEEN_MOST: Final = 2 * NOTICES_KEPT
"""Of the last ones it is known that they were seen; Redis trims a little later than it is told."""


class _Tell(msgspec.Struct, tag="tell", frozen=True):
    """A text for the sockets of users."""

    user_ids: list[str]
    cid: str | None


class _Notice(msgspec.Struct, tag="notice", frozen=True):
    """Something for all processes; ``id`` is that of its entry in the stream of notices."""

    id: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,20}-[0-9]{1,20}$")]


class _Question(msgspec.Struct, tag="question", frozen=True):
    """Something that ``sender`` wants to know."""

    id: str
    sender: str


class _Answer(msgspec.Struct, tag="answer", frozen=True):
    """The answer to the question of that id."""

    id: str


_Head: TypeAlias = _Tell | _Notice | _Question | _Answer


class RedisMessages:
    """Messages over Redis; ``take`` is to be given what arrives on this process's channels."""

    def __init__(self, desk: Desk, commands: Commands, keyspace: Keyspace, node: str) -> None:
        self._desk = desk
        self._commands = commands
        self._keyspace = keyspace
        self._node = node
        self._numbers = itertools.count(1)
        self._asked: dict[str, asyncio.Future[bytes]] = {}
        self._is_listening = False
        # Not by how high an id is: after a failover that lost some they may begin lower again.
        self._seen: dict[tuple[str, bytes], None] = {}
        self._reading: asyncio.Task[None] | None = None
        self._unread = False
        self._random = random.Random()  # noqa: S311 - jitter, not secrets

    async def tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        """Give a text to all processes, for the sockets of these users."""
        await self._send(self._keyspace.everybody, _Tell(list(user_ids), cid), body)

    async def broadcast(self, notice: bytes) -> None:
        """Give a notice to all processes; doing it twice does what doing it once does."""
        await self._commands.run(
            scripts.NOTIFY,
            [self._keyspace.notices],
            self._keyspace.everybody,
            notice,
            NOTICES_KEPT,
            int(NOTICES_KEPT_S * 1000),
        )

    async def ask(self, node: str, question: bytes) -> bytes:
        """Return what a process answers; raises ``Unavailable`` when it does not."""
        if node == self._node:
            return await self._desk.answer(question)
        if len(self._asked) >= ASKED_BOUND:
            raise Unavailable("too many questions wait for other processes: try again later")
        number = str(next(self._numbers))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with within(self._desk.answer_s, f"the answer of the process {node}"):
                head = _Question(number, self._node)
                await self._send(self._keyspace.inbox(node), head, question)
                return await answer
        finally:
            del self._asked[number]

    async def _send(self, channel: str, head: _Head, body: bytes) -> None:
        message = b"%b\n%b" % (wire.encode(head), body)
        await self._commands.request("PUBLISH", channel, message, repeatable=False)

    def take(self, message: bytes) -> None:
        """Take a message; one that no process of ours wrote is logged and dropped."""
        line, _, body = message.partition(b"\n")
        try:
            head = msgspec.convert(wire.decode(line), _Head)
        except (RelayError, msgspec.ValidationError) as error:
            log.warning("not a message between processes", reason=str(error))
            return
        match head:
            case _Tell(user_ids, cid):
                self._desk.told(user_ids, cid, body)
            case _Notice(entry):
                self._notice(entry, body)
            case _Question(number, sender):
                self._take_question(number, sender, body)
            case _Answer(number):
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    answer.set_result(body)

    def _take_question(self, number: str, sender: str, question: bytes) -> None:
        if len(self._desk.tasks) >= ANSWERING_BOUND:
            log.warning("too many questions of other processes", sender=sender)
            return
        self._desk.tasks.spawn(self._answer(number, sender, question))

    async def _answer(self, number: str, sender: str, question: bytes) -> None:
        try:
            answer = await self._desk.answer(question)
            await self._send(self._keyspace.inbox(sender), _Answer(number), answer)
        except Unavailable as error:  # who asked has a limit of its own
            log.info("a question stays unanswered", sender=sender, reason=error.message)

    # -- notices ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Learn which notices are older than this process; raises ``Unavailable``."""
        for entry, notice in await self._kept():
            self._is_new(entry, notice)

    def changed(self, *, listening: bool) -> None:
        """Learn whether messages arrive; read up on the notices that did not."""
        if listening and not self._is_listening:
            self._unread = True
            if self._reading is None:
                self._reading = self._desk.tasks.keep(self._read_up, "reading up on notices")
        self._is_listening = listening

    def _notice(self, entry: str, notice: bytes) -> None:
        """Hand a notice over, unless older ones are being read: it is among those that follow.

        One that was read already may arrive after that.
        """
        if self._reading is not None:
            self._unread = True
        elif self._is_new(entry, notice):
            self._desk.noticed(notice)

    def _is_new(self, entry: str, notice: bytes) -> bool:
        """Note that a notice was seen; tell whether it had not been."""
        key = (entry, notice)
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > SEEN_MOST:
            del self._seen[next(iter(self._seen))]
        return True

    async def _kept(self) -> list[tuple[str, bytes]]:
        """Return the notices that are kept, by the ids of their entries."""
        entries = await self._commands.request("XRANGE", self._keyspace.notices, "-", "+")
        return [(entry.decode(), fields[1]) for entry, fields in entries]

    async def _read_up(self) -> None:
        """Hand over the notices that were missed, until none has come meanwhile."""
        failures = 0
        while self._unread:
            self._unread = False
            try:
                for entry, notice in await self._kept():
                    if self._is_new(entry, notice):
                        self._desk.noticed(notice)
            except Unavailable as error:
                failures += 1
                self._unread = True
                log.info("notices may be missing", reason=error.message)
                await asyncio.sleep(backoff(failures, self._random))
            except BaseException:
                self._unread = True
                raise
        self._reading = None
