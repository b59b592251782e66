"""What a process makes of the words it is told."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from relay.errors import Unavailable
from relay.stopping import AT_ONCE, DRAIN, SIGNALS, Stop

pytestmark = pytest.mark.anyio


@pytest.fixture
def _signals() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("supervised", "word"), [(False, AT_ONCE), (True, DRAIN)])
def test_only_where_nobody_else_counts_is_a_second_signal_a_second_word(
    supervised: bool, word: int
) -> None:
    stop = Stop(supervised=supervised)
    stop.heed_signals()
    for number in SIGNALS:
        signal.raise_signal(number)
    assert stop.word == word
    stop.tell(AT_ONCE)
    stop.tell(DRAIN)
    assert stop.word == AT_ONCE


def test_who_comes_to_obey_late_hears_what_was_said_before() -> None:
    stop, heard = Stop(), []
    stop.obeyed_by(lambda: heard.append(stop.word))
    assert heard == []
    stop.tell(DRAIN)
    stop.obeyed_by(lambda: heard.append(-stop.word))
    assert heard == [DRAIN, -DRAIN]


async def test_work_that_nothing_interrupts_is_done() -> None:
    assert await Stop().unless_told(asyncio.sleep(0))


async def test_work_is_given_up_at_a_word_also_one_of_before() -> None:
    stop = Stop()
    asyncio.get_running_loop().call_soon(stop.tell, DRAIN)
    assert not await stop.unless_told(asyncio.Event().wait())
    assert not await stop.unless_told(asyncio.Event().wait())


async def test_what_fails_as_it_is_given_up_does_not_matter_but_otherwise_it_does() -> None:
    stop = Stop()

    async def fail() -> None:
        raise Unavailable("Redis is away")

    with pytest.raises(Unavailable):
        await stop.unless_told(fail())
    stop.tell(DRAIN)
    assert not await stop.unless_told(fail())


async def test_who_is_cancelled_while_nobody_said_a_word_is_cancelled() -> None:
    waiting = asyncio.create_task(Stop().unless_told(asyncio.sleep(60)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
