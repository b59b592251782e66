"""One delivery in the hands of this process, and the rules by which it goes on. Pure."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

from relay.broker import Attempt, DeadLetter, Key, Owed, Reason, Tried, Waiting, delivery_id
from relay.egress.sinks import Delivery, Result
from relay.events import Position
from relay.hooks import Hook
from relay.retry import REQUEST_LIMIT_S, Outcome, attempt_limit, later_attempt, next_attempt

if TYPE_CHECKING:
    from relay.egress.partition import Partition

MOST_LOST: Final = 5
"""Attempts of which the relay died: after these a delivery is taken for what kills it."""
ANSWER_CHARS: Final = 512


class Job:
    """A delivery that is begun, or about to be. ``waiting`` has it when it is not of the row."""

    __slots__ = (
        "body", "cid", "event_id", "hook_id", "id", "is_queued", "is_resumed", "partition",
        "position", "seq", "tried", "type", "waiting",
    )  # fmt: skip

    def __init__(
        self, partition: Partition, hook_id: str, source: Owed | Waiting, tried: Tried
    ) -> None:
        self.partition = partition
        self.hook_id = hook_id
        self.cid, self.type, self.event_id = source.cid, source.type, source.event_id
        self.is_queued = False
        self.is_resumed = tried.under_way
        self.tried = interrupted(tried)
        if isinstance(source, Owed):
            self.waiting: Waiting | None = None
            self.seq = source.seq
            self.position = source.position
            self.body = source.body
            self.id = delivery_id(hook_id, source.cid, source.position)
        else:
            self.waiting = source
            self.seq = 0
            self.position = Position(source.epoch, source.offset)
            self.body = source.body.encode()
            self.id = source.id

    @property
    def key(self) -> Key:
        """What the delivery is recorded under while it is of the row."""
        return Key(self.seq, self.hook_id)

    @property
    def delivery(self) -> Delivery:
        """What the sink gets for the attempt that has begun."""
        return Delivery(
            delivery_id=self.id,
            event_id=self.event_id,
            cid=self.cid,
            type=self.type,
            body=self.body,
            attempt=self.tried.number,
        )

    # -- how it goes on -------------------------------------------------------------------------

    def limit_s(self, hook: Hook, now_ms: int) -> float:
        """Return how long the next attempt may take, in seconds; 0 or less when none may begin.

        Whatever time has passed: an attempt of the longer schedule may always begin, and one whose
        outcome died with a process is made again.
        """
        tried = self.tried
        if tried.later or self.is_resumed or not tried.first_ms:
            return min(REQUEST_LIMIT_S, hook.timeout_s)
        return attempt_limit((now_ms - tried.first_ms) / 1000, hook.timeout_s)

    def begin(self, now_ms: int) -> None:
        """Note that an attempt begins."""
        self.is_resumed = False
        first_ms = self.tried.first_ms or now_ms
        self.tried = msgspec.structs.replace(self.tried, first_ms=first_ms, under_way=True)

    def withdraw(self) -> None:
        """Note that the attempt was not made after all."""
        self.tried = msgspec.structs.replace(self.tried, under_way=False)

    def ended(self, result: Result, now_ms: int) -> None:
        """Note how the attempt ended."""
        latency_ms = round(result.latency_s * 1000)
        attempt = Attempt(
            now_ms - latency_ms,
            result.outcome.value,
            result.status,
            latency_ms,
            result.answer.decode("utf-8", "replace")[:ANSWER_CHARS],
        )
        self.tried = msgspec.structs.replace(
            self.tried, under_way=False, attempts=(*self.tried.attempts, attempt)
        )

    def retry_delay(self, result: Result, now_ms: int, rng: Random) -> float | None:
        """Return the seconds until the table's next attempt, None when it is exhausted."""
        if self.tried.later:
            return None
        elapsed_s = (now_ms - self.tried.first_ms) / 1000
        made = len(self.tried.attempts)
        return next_attempt(result.outcome, made, elapsed_s, rng, result.retry_after_s)

    def postponed(
        self, hook: Hook, now_ms: int, rng: Random, retry_after_s: float | None
    ) -> Waiting | None:
        """Return the delivery as it waits for its next attempt by the hook's longer schedule.

        None when there is no further one. Order leaves no room for such an attempt: the later
        events of the call would have gone ahead.
        """
        schedule = () if hook.ordered else hook.retry_schedule
        wait_s = later_attempt(schedule, self.tried.later, rng, retry_after_s)
        if wait_s is None:
            return None
        self.tried = msgspec.structs.replace(self.tried, later=self.tried.later + 1)
        return self.as_waiting(now_ms + int(wait_s * 1000))

    # -- what is recorded of it -----------------------------------------------------------------

    def as_waiting(self, due_ms: int) -> Waiting:
        """Return the delivery as it waits outside the row."""
        return Waiting(
            id=self.id,
            due_ms=due_ms,
            hook_id=self.hook_id,
            cid=self.cid,
            type=self.type,
            event_id=self.event_id,
            epoch=self.position.epoch,
            offset=self.position.offset,
            body=self.body.decode(),
            tried=self.tried,
        )

    def as_dead(self, reason: Reason, now_ms: int) -> DeadLetter:
        """Return the delivery as it is given up."""
        return DeadLetter(
            id=self.id,
            at_ms=now_ms,
            reason=reason,
            hook_id=self.hook_id,
            cid=self.cid,
            type=self.type,
            event_id=self.event_id,
            epoch=self.position.epoch,
            offset=self.position.offset,
            tried=self.tried,
            body=None if reason is Reason.HOOK_BOUND else self.body.decode(),
        )


def interrupted(tried: Tried) -> Tried:
    """Return what another process has recorded, with an attempt it did not see end as lost."""
    if not tried.under_way:
        return tried
    return msgspec.structs.replace(tried, under_way=False, lost=tried.lost + 1)


def is_delivered(result: Result) -> bool:
    """Tell whether the receiver has taken it."""
    return result.outcome is Outcome.DELIVERED
