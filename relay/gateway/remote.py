"""Sockets on other processes: what concerns a socket happens where the socket is.

``Remote`` asks the process that owns one, or tells all of them, and does for ``Sockets`` what the
others ask. Questions, answers and notices are JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from relay import logs, wire
from relay.broker import Broker
from relay.broker.seats import Seat
from relay.errors import BadInput, NotAllowed, NotFound, RelayError, Unavailable, UnknownConnection
from relay.tasks import together

if TYPE_CHECKING:
    from relay.gateway.sockets import Sockets

log = logs.get(__name__)


class _Attach(msgspec.Struct, tag="attach", frozen=True):
    """Let a socket of yours watch calls; ``gone`` as in ``Sockets.attach_here``."""

    connection_id: str
    cids: list[str]
    gone: list[str] | None = None


class _Dismiss(msgspec.Struct, tag="dismiss", frozen=True):
    """Which of these sockets of yours are alive? Cut the others off."""

    names: list[str]


class _Occupied(msgspec.Struct, tag="occupied", frozen=True):
    """Which of these seats does a socket of yours occupy?"""

    seats: list[Seat]


class _Count(msgspec.Struct, tag="count", frozen=True):
    """How many sockets of a user are open on you?"""

    user_id: str


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a question: ``error`` names a class of ``_ERRORS``."""

    error: str = ""
    message: str = ""
    reason: str = ""
    occupied: tuple[int, ...] = ()
    count: int = 0
    alive: tuple[str, ...] = ()


class _Expel(msgspec.Struct, tag="expel", frozen=True):
    """Let the sockets of a user cease to watch a call; None: of everybody."""

    user_id: str | None
    cid: str


class _Revoke(msgspec.Struct, tag="revoke", frozen=True):
    """Close the sockets of a user whose token is older; None: of everybody."""

    user_id: str | None
    before_s: float


_Question: TypeAlias = _Attach | _Count | _Dismiss | _Occupied
_Notice: TypeAlias = _Expel | _Revoke

_ERRORS: Final = {
    error.__name__: error
    for error in (BadInput, NotAllowed, NotFound, Unavailable, UnknownConnection)
}


class Remote:
    """This process's side of both conversations. Implements ``broker.Receiver``."""

    def __init__(self, broker: Broker, here: Sockets) -> None:
        self._broker = broker
        self._here = here

    # -- what this process asks ---------------------------------------------------------------

    async def attach(
        self, owner: str, connection_id: str, cids: Sequence[str], gone: Collection[str] | None
    ) -> None:
        """Let the socket of another process watch calls; see ``Sockets.attach_here``."""
        if owner not in await self._broker.nodes():
            raise UnknownConnection("connection_id is of a process that is gone: reconnect")
        named = None if gone is None else list(gone)
        await self._ask(owner, _Attach(connection_id, list(cids), named))

    async def dismiss(self, node: str, names: Sequence[str]) -> Collection[str]:
        """Ask a process; see ``Returns.dismiss_here``. On one that is silent nobody is alive."""
        try:
            return (await self._ask(node, _Dismiss(list(names)))).alive
        except Unavailable as error:
            log.info("a silent process has nobody", node=node, reason=error.message)
            return ()

    async def occupied(self, seats: Sequence[Seat]) -> set[Seat]:
        """Ask every process; see ``Sockets.occupied``."""
        question = _Occupied(list(seats))
        nodes = await self._broker.nodes()
        answers = await together(self._ask(node, question) for node in nodes)
        return {seats[index] for answer in answers for index in answer.occupied}

    async def count(self, nodes: Collection[str], user_id: str) -> int:
        """Return how many sockets of a user other processes have; the silent ones have none."""
        counts = await together(self._count(node, user_id) for node in nodes)
        return sum(counts)

    async def _count(self, node: str, user_id: str) -> int:
        try:
            return (await self._ask(node, _Count(user_id))).count
        except Unavailable as error:
            log.info("sockets of a silent process do not count", node=node, reason=error.message)
            return 0

    async def expel(self, user_id: str | None, cid: str) -> None:
        """Tell every process; see ``Sockets.expel``."""
        await self._broker.broadcast(wire.encode(_Expel(user_id, cid)))

    async def revoke(self, user_id: str | None, before_s: float) -> None:
        """Tell every process; see ``Sockets.revoke``."""
        await self._broker.broadcast(wire.encode(_Revoke(user_id, before_s)))

    async def _ask(self, node: str, question: _Question) -> _Answer:
        text = await self._broker.ask(node, wire.encode(question))
        answer: _Answer | None = _read(text, _Answer)
        if answer is None:
            raise Unavailable(f"the process {node} answers what nobody understands")
        if answer.error:
            failure = _ERRORS.get(answer.error, Unavailable)
            raise failure(answer.message, reason=answer.reason)
        return answer

    # -- what other processes ask (broker.Receiver) -------------------------------------------

    def on_told(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        """Write a text to the sockets of users."""
        self._here.tell_here(user_ids, cid, body)

    def on_notice(self, notice: bytes) -> None:
        """Do what all processes are to do."""
        said: _Notice | None = _read(notice, _Notice)
        match said:
            case _Expel(user_id, cid):
                self._here.expel_here(user_id, cid)
            case _Revoke(user_id, before_s):
                self._here.revoke_here(user_id, before_s)

    async def on_question(self, question: bytes) -> bytes:
        """Answer another process; a refusal is an answer too."""
        try:
            answer = await self._answer(_read(question, _Question))
        except RelayError as error:
            name = type(error).__name__
            answer = _Answer(error=name, message=error.message, reason=error.reason)
        return wire.encode(answer)

    async def _answer(self, question: _Question | None) -> _Answer:
        match question:
            case _Attach(connection_id, cids, gone):
                await self._here.attach_here(connection_id, cids, gone)
                return _Answer()
            case _Dismiss(names):
                return _Answer(alive=tuple(await self._here.returns.dismiss_here(names)))
            case _Count(user_id):
                return _Answer(count=self._here.count_here(user_id))
            case _Occupied(seats):
                return _Answer(occupied=tuple(self._here.occupied_here(seats)))
        raise Unavailable("the question is not understood: is another version running?")


def _read(text: bytes, kind: Any) -> Any:
    """Return a message; None, and a line in the log, when it is none of that kind."""
    try:
        return msgspec.convert(wire.decode(text), kind)
    except (BadInput, msgspec.ValidationError) as error:
        log.warning("a message of another process is not understood", reason=str(error))
        return None
