"""Relays for transcripts: one for each broker and set of settings, started when first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.transcripts import Transcript
from tests.processes import RelayProcess
from tests.redis_server import RedisServer


class Stages:
    """Gives each transcript the relay it asks for; what is ``alone`` is shared with no other."""

    def __init__(self, running: ExitStack) -> None:
        self._running = running
        self._redis: RedisServer | None = None
        self._relays: dict[object, RelayProcess] = {}

    def of(self, transcript: Transcript, broker: str) -> tuple[RelayProcess, RedisServer | None]:
        """Return a running relay, and its Redis unless ``broker`` is ``memory``."""
        alone = "alone" in transcript.flags
        redis = None if broker == "memory" else self._redis_server(alone)
        settings = {**transcript.settings, "redis_url": redis.url if redis else ""}
        key = None if alone else (broker, *sorted(settings.items()))
        if key not in self._relays:
            relay = self._running.enter_context(RelayProcess(**settings))
            if key is None:
                return relay, redis
            self._relays[key] = relay
        return self._relays[key], redis

    def _redis_server(self, alone: bool) -> RedisServer:
        if alone:
            return self._running.enter_context(RedisServer())
        if self._redis is None:
            self._redis = self._running.enter_context(RedisServer())
        return self._redis


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    with ExitStack() as running:
        yield Stages(running)
