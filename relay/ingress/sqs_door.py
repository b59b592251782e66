"""The queue that Stream fills beside its webhooks: what it holds, it holds while the relay is away.

A message is a webhook's body and the same event, so whichever copy comes second is a repeat. It
leaves the queue after the atomic step. There is no signature: who may write to the queue is trusted
as who may write to Redis is. What is no event is counted, logged without its content, deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from relay import logs, metrics
from relay.doors import Door
from relay.errors import Refused, Unavailable
from relay.http import Clock
from relay.ingress.patience import Patience
from relay.ingress.queue_bodies import body_of
from relay.ingress.sources import Accepted, Source, StreamSource
from relay.registry import Registry
from relay.settings import SettingsError
from relay.tasks import Tasks, within

log: Final = logs.get(__name__)

T = TypeVar("T")
Reader = Callable[[bytes, int], Accepted]
"""Makes an event of a body at a time, in nanoseconds since 1970; raises a ``Refused``."""

VISIBLE_S: Final = 60
"""How long nobody else gets a message that was received: until then it is deleted or held anew."""
RECEIPTS_LEAST: Final = 10
"""How often a queue should let a message be received: a batch, and restarts in an outage."""
_HOLD_NS: Final = 30_000_000_000
_PAUSE_S: Final = 2.0
"""After a mistake of the relay."""
_ASK_AGAIN_S: Final = 30.0
"""After the queue turned out to be one that must not be read."""
_GOODBYE_S: Final = 2.0
_NO_ANSWER: Final = "queue does not answer"


class Message(NamedTuple):
    """One message of a queue.

    ``receipt`` is what it is deleted by; ``again``: it was received before and not deleted.
    """

    id: str
    receipt: str
    text: str
    again: bool = False


class Queue(Protocol):
    """A queue of messages. Everything but ``aclose`` raises ``Unavailable`` without an answer."""

    async def retention_s(self) -> float:
        """Return how long it keeps a message; raises ``SettingsError`` where it may not be read."""
        ...

    async def receipts_most(self) -> int | None:
        """Return how often a message may be received before it is moved away; None = for ever.

        Raises as ``retention_s``.
        """
        ...

    async def receive(self, visible_s: int) -> list[Message]:
        """Wait a while for messages and return at most ten, the oldest first.

        Nobody else gets them for ``visible_s`` seconds.
        """
        ...

    async def delete(self, messages: Sequence[Message]) -> None:
        """Delete messages; one that cannot be comes again."""
        ...

    async def hold(self, messages: Sequence[Message], visible_s: int) -> None:
        """Let nobody else have messages for so long from now on; 0 gives them back."""
        ...

    async def aclose(self) -> None:
        """Let go of every connection."""
        ...


async def check_retention(queue: Queue, window_s: float) -> float:
    """Return how long a queue keeps its messages, in seconds.

    Raises ``SettingsError`` when that is longer than repeats are known for: a copy that comes after
    that would be published a second time.
    """
    kept_s = await queue.retention_s()
    if kept_s > window_s:
        raise SettingsError(
            f"the queue of RELAY_INGEST_SQS_URL keeps messages for {kept_s:g} s, over "
            f"RELAY_DEDUPE_WINDOW={window_s:g}: set the queue's MessageRetentionPeriod to at most "
            "that, or the window to at least the period"
        )
    return kept_s


async def redrive_warning(queue: Queue) -> str | None:
    """Return why a queue may move events away in an outage, unpublished; None where it does not.

    A batch is received once however long Redis is away, up to the twelve hours that SQS lets it be
    held. But a process that stops gives it back, and one that is killed leaves it behind.
    """
    most = await queue.receipts_most()
    if most is None or most >= RECEIPTS_LEAST:
        return None
    return (
        f"its redrive policy moves a message away, unpublished, that was received {most} times. "
        "Each process that stops or is killed in an outage costs what it held a receipt: set "
        f"maxReceiveCount to at least {RECEIPTS_LEAST}"
    )


def queue_reader(sources: Mapping[str, Source], api_key: str, freshness_s: float) -> Reader:
    """Return what reads the copies of the webhooks that come under ``api_key``.

    Raises ``SettingsError`` when no source of Stream's scheme has that key.
    """
    for source in sources.values():
        if isinstance(source, StreamSource) and source.knows(api_key):
            return lambda raw, now_ns: source.queued(raw, api_key, now_ns, freshness_s)
    raise SettingsError(
        f"RELAY_INGEST_SQS_API_KEY={api_key!r} is no key that Stream's webhooks come under: "
        "list it in RELAY_KEYS or in a source of RELAY_SOURCES"
    )


class SqsDoor:
    """Publishes what a queue holds, a batch after another.

    While Redis is away the batch is kept from other readers and tried again, and no more is
    received: a queue that counts receipts must not take its messages for undeliverable.
    ``problem`` is why it does not read right now.
    """

    def __init__(
        self,
        door: Door,
        queue: Queue,
        read: Reader,
        registry: Registry,
        clock: Clock,
        *,
        window_s: float,
        rng: Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.problem: str | None = None
        self._door = door
        self._queue = queue
        self._read = read
        self._registry = registry
        self._clock = clock
        self._window_s = window_s
        self._sleep = sleep
        self._patience = Patience(rng, sleep)
        self._ignored = metrics.IGNORED.labels(door.name)
        self._tasks = Tasks("sqs")
        self._is_checked = False
        self._is_ending = False
        self._held: list[Message] = []
        self._held_ns = 0
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read; raises ``SettingsError`` when the queue must not be read.

        One that does not answer is asked again: a relay can do without it for a while.
        """
        try:
            await self._check()
        except Unavailable as error:
            log.warning(_NO_ANSWER, problem=error.message)
        self._reading = self._tasks.spawn(self._run())

    async def drain(self, limit_s: float) -> None:
        """Finish what was received, and what is being asked for, within ``limit_s`` seconds.

        A question that nobody waits for any more may still be answered, and then nobody else gets
        those messages for a minute.
        """
        self._is_ending = True
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=limit_s)
        await self._tasks.aclose()

    async def aclose(self) -> None:
        """Stop at once. What was not deleted is given back: others have it before its time."""
        await self._tasks.aclose()
        if self._held:
            try:
                async with within(_GOODBYE_S, "giving messages back"):
                    await self._queue.hold(self._held, 0)
            except Unavailable as error:
                log.info("messages come again later", problem=error.message)
        await self._queue.aclose()

    # -- reading ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._is_ending:
            try:
                if not self._is_checked:
                    await self._patience.insist(self._check, _NO_ANSWER)
                await self._take_and_delete()
            except SettingsError as error:
                self.problem = str(error)
                log.error("queue not read", problem=self.problem)
                await self._sleep(_ASK_AGAIN_S)
            except Exception:
                log.exception("queue reader failed")
                await self._sleep(_PAUSE_S)

    async def _check(self) -> None:
        await self._asked(lambda: check_retention(self._queue, self._window_s))
        self._is_checked = True

    async def _take_and_delete(self) -> None:
        messages = await self._patience.insist(self._receive, _NO_ANSWER)
        self._held, self._held_ns = messages, self._clock()
        if done := [message for message in messages if await self._is_done(message)]:
            await self._patience.insist(
                lambda: self._asked(lambda: self._queue.delete(done)), _NO_ANSWER
            )
        self._held = []

    async def _receive(self) -> list[Message]:
        if self._is_ending:
            return []
        return await self._asked(lambda: self._queue.receive(VISIBLE_S))

    async def _asked(self, action: Callable[[], Awaitable[T]]) -> T:
        """Ask the queue for something and note whether it answers."""
        try:
            result = await action()
        except Unavailable as error:
            self.problem = error.message
            raise
        self.problem = None
        return result

    async def _is_done(self, message: Message) -> bool:
        """Carry a message; False when the relay failed at it: it comes again, and none waits."""
        try:
            await self._carry(message)
        except Exception:
            log.exception("queue message failed", message=message.id)
            return False
        return True

    async def _carry(self, message: Message) -> None:
        """Publish one message, or drop it when it is no event."""
        try:
            accepted = self._read(body_of(message.text), self._clock())
        except Refused as error:
            self._door.refused(error)
            _log_dropped(message, error)
            return
        if accepted.event is None:
            self._ignored.inc()
            return
        again = message.again

        async def let_in() -> None:
            nonlocal again
            came_before, again = again, True
            await self._let_in(accepted, again=came_before)

        try:
            await self._patience.insist(let_in, "queue waits for redis")
        except Refused as error:
            _log_dropped(message, error)

    async def _let_in(self, accepted: Accepted, *, again: bool) -> None:
        """Publish, then learn: of a repeat the webhook has told, before its call may have ended.

        Unless it was tried before: then that may have ended in between, with whoever had it.
        """
        await self._keep_held()
        assert accepted.event is not None
        publication = await self._door.publish(accepted.event, accepted.origins)
        if accepted.body is not None and (again or not publication.duplicate):
            await self._registry.learn(accepted.body, self._clock())

    async def _keep_held(self) -> None:
        """Keep the batch from other readers when it has been held for long."""
        now_ns = self._clock()
        if now_ns - self._held_ns < _HOLD_NS:
            return
        self._held_ns = now_ns
        try:
            await self._queue.hold(self._held, VISIBLE_S)
        except Unavailable as error:
            log.info("messages may come again", problem=error.message)


def _log_dropped(message: Message, error: Refused) -> None:
    facts: dict[str, Any] = {"reason": error.reason, "problem": error.message}
    log.warning("queue message dropped", message=message.id, **facts)
