"""The ingest stream: read by one process, settled entry by entry, taken over when that one ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from relay.broker import InboxEntry, Limits
from relay.broker.redis import RedisInbox
from relay.errors import Unavailable
from tests.contract.harness import RedisRig, until

pytestmark = pytest.mark.anyio

Write = Callable[..., str]


@pytest.fixture
def write(rig: RedisRig) -> Write:
    def write(**fields: str) -> str:
        with rig.server.client() as client:
            return str(client.xadd(f"{rig.prefix}ingest", dict(fields)))

    return write


@pytest.fixture
async def closing_inboxes() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def inbox(
    rig: RedisRig, stack: AsyncExitStack, *, lease_s: float = 10.0, wait_s: float = 0.05
) -> RedisInbox:
    made = RedisInbox(await rig.broker(), lease_s=lease_s, wait_s=wait_s)
    stack.push_async_callback(made.aclose)
    return made


async def test_entries_come_oldest_first_with_what_was_written(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    ids = [write(event='{"n":1}'), write(other="x"), write(more="y", event="Ü")]
    box = await inbox(rig, closing_inboxes)
    assert await box.take() == [
        InboxEntry(ids[0], b'{"n":1}'),
        InboxEntry(ids[1], b""),
        InboxEntry(ids[2], "Ü".encode()),
    ]


async def test_entries_stay_until_they_are_settled(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    first, second = write(event="1"), write(event="2")
    box = await inbox(rig, closing_inboxes)
    assert [entry.id for entry in await box.take()] == [first, second]
    await box.settle([first])
    assert [entry.id for entry in await box.take()] == [second]
    await box.settle([second])
    await box.settle([])
    assert await box.take() == []
    with rig.server.client() as client:
        assert client.xlen(f"{rig.prefix}ingest") == 0


async def test_at_most_a_hundred_come_at_once(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    ids = [write(event=str(n)) for n in range(130)]
    box = await inbox(rig, closing_inboxes)
    assert [entry.id for entry in await box.take()] == ids[:100]


async def test_taking_waits_for_the_first_entry(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    box = await inbox(rig, closing_inboxes, wait_s=20.0)
    started = time.monotonic()
    taking = asyncio.create_task(box.take())
    # Others use the broker's connection meanwhile.
    await until(lambda: box._reading.is_connected, "it waits")
    name = write(event="1")
    assert [entry.id for entry in await taking] == [name]
    assert time.monotonic() - started < 15


async def test_one_process_at_a_time_reads(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    name = write(event="1")
    holder = await inbox(rig, closing_inboxes)
    other = await inbox(rig, closing_inboxes)
    assert [entry.id for entry in await holder.take()] == [name]
    assert await other.take() == []
    assert [entry.id for entry in await holder.take()] == [name]


async def test_one_that_ends_is_followed_at_once(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    name = write(event="1")
    holder = await inbox(rig, closing_inboxes)
    other = await inbox(rig, closing_inboxes)
    await holder.take()
    await holder.aclose()
    assert [entry.id for entry in await other.take()] == [name]


async def test_one_that_dies_is_followed_when_its_lease_has_run_out(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    name = write(event="1")
    holder = await inbox(rig, closing_inboxes, lease_s=0.3)
    other = await inbox(rig, closing_inboxes)  # it keeps the lease that it gets
    await holder.take()
    while not (entries := await other.take()):
        pass  # each try takes 50 ms
    assert [entry.id for entry in entries] == [name]
    assert await holder.take() == []


async def test_the_lease_is_renewed_with_every_take(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    write(event="1")
    box = await inbox(rig, closing_inboxes, lease_s=5.0)
    await box.take()
    with rig.server.client() as client:
        client.pexpire(f"{rig.prefix}ingest:lease", 1000)
        await box.take()
        assert client.pttl(f"{rig.prefix}ingest:lease") > 4000


async def test_closing_leaves_the_lease_of_another_alone(
    rig: RedisRig, write: Write, closing_inboxes: AsyncExitStack
) -> None:
    write(event="1")
    box = await inbox(rig, closing_inboxes)
    await box.take()
    with rig.server.client() as client:
        client.set(f"{rig.prefix}ingest:lease", "another")
        await box.aclose()
        assert client.get(f"{rig.prefix}ingest:lease") == "another"


async def test_taking_is_unavailable_while_redis_is_away_and_goes_on_afterwards(
    own_rig: RedisRig,
) -> None:
    broker = await own_rig.broker(Limits(publish_timeout_s=2.0))
    box = RedisInbox(broker, wait_s=0.05)
    assert await box.take() == []
    own_rig.server.kill()
    with pytest.raises(Unavailable):
        await box.take()
    with pytest.raises(Unavailable):
        await box.settle(["1-1"])
    own_rig.server.start()
    with own_rig.server.client() as client:
        client.xadd(f"{own_rig.prefix}ingest", {"event": "1"})
    deadline = time.monotonic() + 10
    entries: list[InboxEntry] = []
    while not entries:
        assert time.monotonic() < deadline
        try:
            entries = await box.take()
        except Unavailable:
            continue
    assert [entry.text for entry in entries] == [b"1"]
    await box.aclose()
