"""A primary that sentinels watch over: found, followed when it is replaced, never guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from relay.broker import Limits
from relay.broker.redis_url import Place
from relay.broker.sentinels import Sentinels
from relay.errors import Unavailable
from tests.broker.fake_redis import faking
from tests.contract.harness import CID, Recorder, RedisRig, closing, content, event, until
from tests.redis_shapes import Watched

pytestmark = pytest.mark.anyio

PATIENT = Limits(publish_timeout_s=20.0)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """Return a primary with sentinels whose primary these tests replace."""
    with Watched() as made:
        yield made


@pytest.fixture
async def rig(watched: Watched) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(watched)) as made:
        yield made


def sentinels(url: str) -> Sentinels:
    place = Place.parse(url)
    return Sentinels(place.addresses, place.primary, place.login)


async def test_a_primary_that_is_replaced_is_followed(
    rig: RedisRig, watched: Watched, recorder: Recorder
) -> None:
    broker = await rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    first = await broker.publish(event(1))
    await until(lambda: recorder.contents() == [1], "it arrives")
    await anyio.to_thread.run_sync(watched.failover)
    # The old primary lives on for seconds: only that it was announced makes the relay leave it.
    await until(lambda: recorder.interruptions == [{CID}], "the loss is told")
    second = await broker.publish(event(2))
    assert first.position is not None
    assert second.position is not None
    # Another primary: a new epoch, in which counting goes on.
    assert second.position.offset == 2
    assert second.position.epoch != first.position.epoch
    history = await broker.history(CID, 0)
    assert [content(entry.body) for entry in history.entries] == [1, 2]
    assert history.is_good(first.position)
    await broker.publish(event(3))
    await until(lambda: recorder.contents()[-1] == 3, "events go on")


async def test_events_given_during_a_failover_are_published_once_and_in_order(
    rig: RedisRig, watched: Watched, recorder: Recorder
) -> None:
    broker = await rig.broker(PATIENT, recorder)
    await broker.subscribe(CID)
    moving = asyncio.create_task(anyio.to_thread.run_sync(watched.failover))
    tasks = []
    while not moving.done():
        tasks.append(asyncio.create_task(broker.publish(event(len(tasks)))))
        await asyncio.sleep(0.005)
    published = await asyncio.gather(*tasks)
    await until(lambda: recorder.interruptions, "the loss is told")
    last = await broker.publish(event(len(tasks)))
    assert last.position is not None
    history = await broker.history(CID, 0)
    kept = [content(entry.body) for entry in history.entries]
    # What the old primary took in its last moments may be lost: nothing else, and it shows.
    assert kept == sorted(set(kept))
    assert kept[-1] == len(tasks)
    for number, publication in enumerate(published):
        assert publication.position is not None
        assert (number in kept) == history.is_good(publication.position)


async def test_sentinels_that_are_down_or_know_nothing_are_passed_over(watched: Watched) -> None:
    up = watched.sentinels[1].port
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{up}/main"
    assert (await sentinels(url).find()).port == watched.primary.port
    with pytest.raises(Unavailable, match="knows no 'other'"):
        await sentinels(url.replace("/main", "/other")).find()


async def test_a_server_that_is_no_primary_is_not_used() -> None:
    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"SENTINEL":
            port = str(Place.parse(fake.url).login.port).encode()
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%b\r\n" % (len(port), port)
        return b"$10\r\nrole:slave\r\n"

    async with faking(answer) as fake:
        way = sentinels(fake.url.replace("redis:", "redis+sentinel:").replace("/0", "/main"))
        with pytest.raises(Unavailable, match="is not the primary"):
            await way.open("test")
