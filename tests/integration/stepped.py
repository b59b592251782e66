"""A relay that reads the queue up to a step: ``python -m tests.integration.stepped STEP``.

It is ``relay serve`` in every other respect. At the named step it says so and stands still, to be
killed there. What stops it stands around the relay's own parts, not in them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from relay import ingress, server, settings
from relay.ingress import Queue, Source
from relay.ingress.sources import Accepted
from relay.ingress.sqs_door import Message, Reader
from relay.settings import Settings
from tests.processes import RelayProcess

RECEIVED, SOME_PUBLISHED, ALL_PUBLISHED, SOME_DELETED = STEPS = (
    "received", "some published", "all published", "some deleted",
)  # fmt: skip
SOME: Final = 4
"""Messages of a batch of ten."""
VISIBLE_S: Final = 2
"""After how long others get what this process received: a minute is long for a test."""


class SteppedRelay(RelayProcess):
    """A relay that stands still at a step of its work on the queue."""

    module = "tests.integration.stepped"

    def __init__(self, step: str, **more: object) -> None:
        super().__init__(step, **more)
        self.step = step

    def wait_for_step(self) -> None:
        """Return once it is there."""
        self.wait_for_line(f"at {self.step}")


class _Step:
    """Where the process stops."""

    def __init__(self, name: str) -> None:
        self._name = name

    def reached(self, name: str) -> None:
        if name == self._name:
            print(f"at {name}", flush=True)
            while True:
                signal.pause()


class _SteppedQueue:
    """The queue, with the steps at which a reader may die."""

    def __init__(self, queue: Queue, step: _Step) -> None:
        self._queue = queue
        self._step = step
        self.retention_s = queue.retention_s
        self.receipts_most = queue.receipts_most
        self.hold = queue.hold
        self.aclose = queue.aclose

    async def receive(self, visible_s: int) -> list[Message]:
        messages = await self._queue.receive(VISIBLE_S)
        if messages:
            self._step.reached(RECEIVED)
        return messages

    async def delete(self, messages: Sequence[Message]) -> None:
        self._step.reached(ALL_PUBLISHED)
        await self._queue.delete(messages[:SOME])
        self._step.reached(SOME_DELETED)
        await self._queue.delete(messages[SOME:])


def _stepped(read: Reader, step: _Step) -> Reader:
    """Return a reader that stops before the message after ``SOME``: those are published by then."""
    count = 0

    def read_on(raw: bytes, now_ns: int) -> Accepted:
        nonlocal count
        count += 1
        if count > SOME:
            step.reached(SOME_PUBLISHED)
        return read(raw, now_ns)

    return read_on


def serve(step: _Step) -> int:
    """Run ``relay serve`` with the settings of the environment, up to the step."""
    open_queue, queue_reader = ingress.open_queue, ingress.queue_reader

    def stepped_queue(chosen: Settings) -> Queue:
        return _SteppedQueue(open_queue(chosen), step)

    def stepped_reader(sources: Mapping[str, Source], api_key: str, freshness_s: float) -> Reader:
        return _stepped(queue_reader(sources, api_key, freshness_s), step)

    ingress.open_queue, ingress.queue_reader = stepped_queue, stepped_reader
    return server.run(settings.read(os.environ))


if __name__ == "__main__":
    sys.exit(serve(_Step(sys.argv[1])))
