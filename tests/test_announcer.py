"""What the relay announces: published for who watches, told to members who do not."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest

from relay import wire
from relay.announcer import Announcer
from relay.broker import Limits
from relay.broker.memory import MemoryBroker
from relay.errors import Unavailable
from relay.events import Event, Position, Publication
from tests.contract.harness import CID, OTHER, Recorder, until

pytestmark = pytest.mark.anyio

NOW_NS = 1_800_000_000_000_000_000
NOW = "2027-01-15T08:00:00.000000000Z"


class Muted(MemoryBroker):
    """A broker that cannot tell anybody anything while ``muted``."""

    muted = False

    async def tell(self, user_ids: Collection[str], cid: str | None, body: bytes) -> None:
        if self.muted:
            raise Unavailable("away")
        await super().tell(user_ids, cid, body)


class Away(MemoryBroker):
    """A broker that cannot publish."""

    async def publish(self, event: Event) -> Publication:
        raise Unavailable("away")


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def broker(recorder: Recorder) -> AsyncIterator[Muted]:
    broker = Muted(Limits(), lambda: NOW_NS, "node")
    broker.receive(recorder)
    await broker.start(recorder, recorder.on_live)
    await broker.subscribe(CID)
    yield broker
    await broker.aclose()


@pytest.fixture
def announcer(broker: Muted) -> Announcer:
    numbers = itertools.count(1)
    return Announcer(broker, clock=lambda: NOW_NS, new_id=lambda: f"minted-{next(numbers)}")


def told(recorder: Recorder) -> list[tuple[list[str], str | None, dict[str, Any]]]:
    return [(users, cid, wire.decode(body)) for users, cid, body in recorder.told]


async def test_it_is_published_in_streams_shape(announcer: Announcer, recorder: Recorder) -> None:
    fields = {"call": {"cid": CID, "created_at": NOW_NS, "custom": {"at": NOW_NS}}}
    publication = await announcer.announce(CID, "call.created", fields)
    await until(lambda: recorder.publications, "it arrives")
    [(cid, position, body)] = recorder.publications
    assert position == publication.position
    assert cid == CID
    assert wire.decode(body) == {
        "type": "call.created", "created_at": NOW, "call_cid": CID, "event_id": "minted-1",
        "call": {"cid": CID, "created_at": NOW, "custom": {"at": NOW_NS}},
        "epoch": position.epoch, "offset": 1,
    }  # fmt: skip
    assert recorder.told == []


async def test_members_are_told_the_same_bytes_with_the_position(
    announcer: Announcer, recorder: Recorder
) -> None:
    await announcer.announce(CID, "call.ended", {"call": {}}, members=["ann", "bob"])
    await until(lambda: recorder.told, "they are told")
    assert recorder.told == [(["ann", "bob"], CID, recorder.publications[0][2])]


async def test_the_same_id_again_is_announced_once(
    announcer: Announcer, recorder: Recorder
) -> None:
    said: dict[str, Any] = {"members": ["ann"], "event_id": "the same"}
    first = await announcer.announce(CID, "call.ended", {"call": {}}, **said)
    again = await announcer.announce(CID, "call.ended", {"call": {"later": True}}, **said)
    assert (again.position, again.duplicate, again.reused) == (first.position, True, False)
    await announcer.announce(CID, "call.ended", {"call": {}})
    await until(lambda: len(recorder.publications) == 2, "the other one")
    assert len(recorder.told) == 1


async def test_it_knows_what_it_has_announced_and_only_that(
    announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.announcer.REMEMBERED", 2)
    assert not announcer.has_announced(CID, "a")
    for event_id in ("a", "b", "a", "c"):
        await announcer.announce(CID, "call.ended", {"call": {}}, event_id=event_id)
    await announcer.announce(CID, "call.ended", {"call": {}})
    assert [announcer.has_announced(CID, each) for each in "abc"] == [False, True, True]
    assert not announcer.has_announced(OTHER, "c")


async def test_what_could_not_be_announced_is_not_known() -> None:
    announcer = Announcer(Away(Limits(), lambda: NOW_NS, "node"), clock=lambda: 1, new_id=str)
    with pytest.raises(Unavailable):
        await announcer.announce(CID, "call.ended", {"call": {}}, event_id="a")
    assert not announcer.has_announced(CID, "a")


async def test_users_are_told_what_concerns_no_call(
    announcer: Announcer, recorder: Recorder
) -> None:
    await announcer.tell(["ann"], "user.updated", {"user": {"id": "ann", "updated_at": NOW_NS}})
    await until(lambda: recorder.told, "she is told")
    user = {"id": "ann", "updated_at": NOW}
    body = {"type": "user.updated", "created_at": NOW, "user": user}
    assert told(recorder) == [(["ann"], None, body)]
    assert recorder.publications == []


async def test_what_is_published_stays_so_when_members_cannot_be_told(
    announcer: Announcer, recorder: Recorder, broker: Muted
) -> None:
    broker.muted = True
    publication = await announcer.announce(CID, "call.ended", {"call": {}}, members=["ann"])
    assert publication.position == Position(publication.position.epoch, 1)
    await announcer.tell(["ann"], "user.updated", {})
    assert recorder.told == []
