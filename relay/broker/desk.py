"""Where the messages of processes arrive in this one: what both brokers share of them.

It holds the receiver, and the time within which that answers a question.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from relay.broker import Receiver
from relay.errors import RelayError, Unavailable
from relay.tasks import Tasks, within

ANSWER_S: Final = 2.0


class Desk:
    """Where messages arrive in this process; what arrives before there is a receiver is lost."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self.receiver: Receiver | None = None
        self.tasks = Tasks("messages between processes")
        self.answer_s = answer_s

    async def aclose(self) -> None:
        """Answer no more."""
        self.receiver = None
        await self.tasks.aclose()

    def told(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        """Hand over a text for users' sockets."""
        if self.receiver is not None:
            self.receiver.on_told(user_ids, cid, body)

    def noticed(self, notice: bytes) -> None:
        """Hand over a notice."""
        if self.receiver is not None:
            self.receiver.on_notice(notice)

    async def answer(self, question: bytes) -> bytes:
        """Return the receiver's answer; raises ``Unavailable`` when there is none in time."""
        if self.receiver is None:
            raise Unavailable("this process is not ready to answer")
        try:
            async with within(self.answer_s, "answering"):
                return await self.receiver.on_question(question)
        except RelayError as error:
            raise Unavailable(f"the process gave no answer: {error.message}") from error
