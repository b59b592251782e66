"""The atomic step: positions, repeats, what is kept, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker import Broker, Limits
from relay.events import Position, placed
from tests.contract.harness import CID, OTHER, Recorder, Rig, caught_up, content, event

pytestmark = pytest.mark.anyio


async def test_offsets_count_from_one_without_holes_in_one_epoch(broker: Broker) -> None:
    positions = [(await broker.publish(event(n))).position for n in range(5)]
    assert [position and position.offset for position in positions] == [1, 2, 3, 4, 5]
    assert len({position and position.epoch for position in positions}) == 1


async def test_a_publication_names_its_event(broker: Broker) -> None:
    publication = await broker.publish(event(1, identity="mine"))
    assert (publication.cid, publication.event_id) == (CID, "mine")
    assert not publication.duplicate
    assert not publication.reused


async def test_each_call_counts_for_itself(broker: Broker) -> None:
    await broker.publish(event(1))
    publication = await broker.publish(event(2, cid=OTHER))
    assert publication.position is not None
    assert publication.position.offset == 1


async def test_watchers_and_history_get_exactly_the_placed_body(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    # What a careless codec on the way would change: [] and {}, a large integer, unicode, escapes.
    sent = event({"a": [], "b": {}, "n": 2**53 + 1, "t": 'ü"\\\n\u0000💈', "f": 1.50})
    publication = await broker.publish(sent)
    assert publication.position is not None
    body = placed(sent.body, publication.position)
    await caught_up(broker, recorder)
    assert (CID, publication.position, body) in recorder.publications
    assert [entry.body for entry in (await broker.history(CID, 0)).entries] == [body]


@pytest.mark.parametrize("volatile", [False, True])
async def test_what_is_published_at_once_is_published_as_ever_or_not_at_all(
    broker: Broker, recorder: Recorder, volatile: bool
) -> None:
    await broker.subscribe(CID)
    sent = event("at once", identity="x", volatile=volatile)
    at_once = broker.publish_now(sent)
    assert recorder.contents() == [], "the loop hands over, not the publisher"
    publication = await broker.publish(sent)
    assert publication.duplicate is (at_once is not None)
    if at_once is not None:
        assert not at_once.duplicate
        assert at_once.position == publication.position
    assert (publication.position is None) is volatile
    await caught_up(broker, recorder)
    assert recorder.contents() == ["at once"]


async def test_events_are_published_in_the_order_in_which_they_are_given(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    tasks = [asyncio.create_task(broker.publish(event(n))) for n in range(300)]
    publications = await asyncio.gather(*tasks)
    assert [p.position and p.position.offset for p in publications] == list(range(1, 301))
    await caught_up(broker, recorder)
    assert recorder.contents() == list(range(300))
    assert recorder.offsets() == list(range(1, 301))


async def test_kept_and_volatile_events_keep_their_order(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    given = [event(n, volatile=n % 2 == 1, identity=None if n % 4 == 1 else "") for n in range(40)]
    await asyncio.gather(*[asyncio.create_task(broker.publish(each)) for each in given])
    await caught_up(broker, recorder)
    assert recorder.contents() == list(range(40))


async def test_a_repeat_returns_the_first_position_and_is_not_shown_again(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    first = await broker.publish(event(1, identity="x"))
    await broker.publish(event(2))
    again = await broker.publish(event(1, identity="x"))
    assert again.duplicate
    assert not again.reused
    assert again.position == first.position
    await caught_up(broker, recorder)
    assert recorder.contents() == [1, 2]
    assert (await broker.positions([CID]))[0].offset == 2


async def test_repeats_given_at_once_are_published_once(broker: Broker) -> None:
    publications = await asyncio.gather(
        *[broker.publish(event(1, identity="x")) for _ in range(20)]
    )
    assert sum(not publication.duplicate for publication in publications) == 1
    assert {p.position and p.position.offset for p in publications} == {1}


@pytest.mark.parametrize("other", [{"sender": "api:bob"}, {"cid": OTHER}, {"identity": "y"}])
async def test_an_id_belongs_to_its_sender_and_call(broker: Broker, other: dict[str, str]) -> None:
    await broker.publish(event(1, identity="x"))
    publication = await broker.publish(event(1, **{"identity": "x", **other}))
    assert not publication.duplicate
    assert not publication.reused


async def test_ids_and_senders_that_read_alike_together_are_apart(broker: Broker) -> None:
    await broker.publish(event(1, sender="api:a", identity="b:c"))
    publication = await broker.publish(event(1, sender="api:a:b", identity="c"))
    assert not publication.duplicate


async def test_a_repeat_with_other_content_is_reported_and_not_published(broker: Broker) -> None:
    first = await broker.publish(event(1, identity="x"))
    again = await broker.publish(event("other", identity="x"))
    assert again.duplicate
    assert again.reused
    assert again.position == first.position


async def test_an_alias_decides_nothing_but_its_reuse_is_reported(broker: Broker) -> None:
    first = await broker.publish(event(1, alias="webhook-1"))
    assert not first.reused
    reused = await broker.publish(event(2, alias="webhook-1"))
    assert reused.reused
    assert not reused.duplicate
    assert reused.position is not None
    assert reused.position.offset == 2


async def test_an_alias_with_the_same_content_is_no_reuse(broker: Broker) -> None:
    await broker.publish(event(1, alias="webhook-1"))
    assert not (await broker.publish(event(1, alias="webhook-1"))).reused


async def test_a_repeat_under_a_reused_alias_is_reported_too(broker: Broker) -> None:
    await broker.publish(event(1, identity="x", alias="webhook-1"))
    await broker.publish(event(2, identity="y", alias="webhook-2"))
    again = await broker.publish(event(2, identity="y", alias="webhook-1"))
    assert again.duplicate
    assert again.reused


async def test_an_alias_is_no_identity(broker: Broker) -> None:
    await broker.publish(event(1, identity="x", alias="y"))
    publication = await broker.publish(event(1, identity="y"))
    assert not publication.duplicate


async def test_a_volatile_event_is_shown_and_not_kept(broker: Broker, recorder: Recorder) -> None:
    await broker.subscribe(CID)
    sent = event("now", volatile=True)
    publication = await broker.publish(sent)
    assert publication.position is None
    await caught_up(broker, recorder)
    assert (CID, None, sent.body) in recorder.publications
    history = await broker.history(CID, 0)
    assert (history.top.offset, history.entries) == (0, ())


async def test_a_volatile_event_with_an_identity_is_shown_once(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    await broker.publish(event(1, identity="x", volatile=True))
    again = await broker.publish(event(1, identity="x", volatile=True))
    assert again.duplicate
    assert again.position is None
    await caught_up(broker, recorder)
    assert recorder.contents() == [1]


async def test_a_volatile_event_without_an_identity_cannot_repeat(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    for _ in range(2):
        assert not (await broker.publish(event(1, identity=None, volatile=True))).duplicate
    await caught_up(broker, recorder)
    assert recorder.contents() == [1, 1]


async def test_a_kept_event_without_an_identity_has_a_position(broker: Broker) -> None:
    positions = [(await broker.publish(event(1, identity=None))).position for _ in range(2)]
    assert [position and position.offset for position in positions] == [1, 2]


async def test_events_with_minted_ids_are_published(broker: Broker) -> None:
    publication = await broker.publish(event(1, minted=True))
    assert publication.position is not None
    assert not publication.duplicate


async def test_nothing_is_handed_over_from_inside_publish(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    publishing = broker.publish(event(1))
    publishing.send(None)  # up to its first await
    assert recorder.publications == []
    publishing.close()
    await caught_up(broker, recorder)
    assert recorder.contents() == [1]
    assert not recorder.inside_a_task


async def test_positions_of_repeats_survive_the_trimming_of_history(rig: Rig) -> None:
    broker = await rig.broker(Limits(history_count=2))
    first = await broker.publish(event(1, identity="x"))
    for n in range(5):
        await broker.publish(event(n))
    again = await broker.publish(event(1, identity="x"))
    assert again.position == first.position == Position(first.position.epoch, 1)


async def test_a_large_event_survives(broker: Broker, recorder: Recorder) -> None:
    await broker.subscribe(CID)
    text = "x" * 900_000
    await broker.publish(event(text))
    await caught_up(broker, recorder)
    assert content(recorder.publications[0][2]) == text
