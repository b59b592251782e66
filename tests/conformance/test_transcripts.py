"""What docs/protocol.md shows is what the relay does, with either broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance import transcripts
from tests.conformance.conftest import Stages
from tests.conformance.player import Player
from tests.conformance.transcripts import Transcript

pytestmark = pytest.mark.anyio


def _plays() -> Iterator[object]:
    for transcript in transcripts.read(transcripts.PAGE.read_text()):
        for broker in ("memory", "redis"):
            if broker == "redis" or "redis" not in transcript.flags:
                yield pytest.param(transcript, broker, id=f"{transcript}, {broker}")


@pytest.mark.parametrize(("transcript", "broker"), list(_plays()))
async def test_a_transcript_is_what_happens(
    transcript: Transcript, broker: str, stages: Stages
) -> None:
    relay, redis = stages.of(transcript, broker)
    await Player(relay, redis).play(transcript)
