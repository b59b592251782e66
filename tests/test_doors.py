"""The ledger of a door: accepted = published + duplicate + failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from relay import metrics
from relay.broker import Limits, Unavailable
from relay.broker.memory import MemoryBroker
from relay.doors import Door
from relay.errors import NotAllowed
from relay.events import Event, Publication, custom_event

pytestmark = pytest.mark.anyio

NAMES = {
    "accepted": ("relay_events_accepted_total", {}),
    "kept": ("relay_events_published_total", {"kind": "kept"}),
    "volatile": ("relay_events_published_total", {"kind": "volatile"}),
    "duplicate": ("relay_events_duplicate_total", {}),
    "failed": ("relay_events_failed_total", {}),
    "reused": ("relay_event_ids_reused_total", {}),
    "unavailable": ("relay_refused_total", {"reason": "unavailable"}),
    "not_allowed": ("relay_refused_total", {"reason": "not_allowed"}),
}


class Ledger:
    """What a door counted since it was opened."""

    def __init__(self, door: str) -> None:
        self._door = door
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        metrics.settle()
        return {
            name: REGISTRY.get_sample_value(metric, {"door": self._door, **labels}) or 0.0
            for name, (metric, labels) in NAMES.items()
        }

    def entries(self) -> dict[str, int]:
        now = self._now()
        changes = {name: int(now[name] - self._before[name]) for name in NAMES}
        return {name: change for name, change in changes.items() if change}


class Failing(MemoryBroker):
    async def publish(self, event: Event) -> Publication:
        raise Unavailable("away")

    def publish_now(self, event: Event) -> Publication:
        raise Unavailable("away")


class Remote(MemoryBroker):
    """One that has to be waited for."""

    def publish_now(self, event: Event) -> None:  # type: ignore[override]
        return None


def event(event_id: str = "e-1", custom: bytes = b"{}", **more: Any) -> Event:
    return custom_event(
        cid="default:door", custom=custom, user=b"{}", event_id=event_id, now_ns=0,
        sender="user:john", minted=False, **more,
    )  # fmt: skip


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(Limits(), lambda: 1, "node")


async def test_a_publication_is_counted_by_its_kind(broker: MemoryBroker) -> None:
    door, ledger = Door("test", broker), Ledger("test")
    publication = await door.publish(event("a"))
    assert publication.position is not None
    assert publication.position.offset == 1
    await door.publish(event("b", volatile=True))
    assert ledger.entries() == {"accepted": 2, "kept": 1, "volatile": 1}


async def test_a_repeat_is_a_duplicate(broker: MemoryBroker) -> None:
    door, ledger = Door("test", broker), Ledger("test")
    await door.publish(event())
    assert (await door.publish(event())).duplicate
    assert ledger.entries() == {"accepted": 2, "kept": 1, "duplicate": 1}


async def test_an_id_with_other_content_is_reported(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    door, ledger = Door("test", broker), Ledger("test")
    await door.publish(event())
    await door.publish(event(custom=b'{"other":1}'))
    assert ledger.entries() == {"accepted": 2, "kept": 1, "duplicate": 1, "reused": 1}
    logged = capsys.readouterr().out
    assert "event id reused" in logged
    assert "other" not in logged, "a log never shows a payload"


async def test_what_the_broker_could_not_take_is_refused() -> None:
    door, ledger = Door("test", Failing(Limits(), lambda: 1, "node")), Ledger("test")
    with pytest.raises(Unavailable):
        await door.publish(event())
    assert ledger.entries() == {"accepted": 1, "failed": 1, "unavailable": 1}


async def test_what_is_published_at_once_is_counted_alike(broker: MemoryBroker) -> None:
    door, ledger = Door("test", broker), Ledger("test")
    for each in (event("a"), event("b", volatile=True), event("a"), event("b", b'{"other":1}')):
        assert door.publish_now(each) is not None
    assert ledger.entries() == {
        "accepted": 4, "kept": 1, "volatile": 1, "duplicate": 2, "reused": 1,
    }  # fmt: skip


async def test_what_could_not_be_taken_at_once_is_refused() -> None:
    door, ledger = Door("test", Failing(Limits(), lambda: 1, "node")), Ledger("test")
    with pytest.raises(Unavailable):
        door.publish_now(event())
    assert ledger.entries() == {"accepted": 1, "failed": 1, "unavailable": 1}


def test_what_has_to_be_waited_for_is_not_counted_yet() -> None:
    door, ledger = Door("test", Remote(Limits(), lambda: 1, "node")), Ledger("test")
    assert door.publish_now(event()) is None
    assert ledger.entries() == {}


def test_what_was_refused_before_is_counted_under_its_reason(broker: MemoryBroker) -> None:
    door, ledger = Door("test", broker), Ledger("test")
    door.refused(NotAllowed("no"))
    assert ledger.entries() == {"not_allowed": 1}


async def test_an_event_whose_sender_did_not_wait_is_counted_too() -> None:
    class Waiting(MemoryBroker):
        async def publish(self, event: Event) -> Publication:
            await asyncio.Event().wait()
            raise AssertionError

    door, ledger = Door("test", Waiting(Limits(), lambda: 1, "node")), Ledger("test")
    publishing = asyncio.create_task(door.publish(event()))
    await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert ledger.entries() == {"accepted": 1, "failed": 1}
