"""Messages between processes: to users, to all, questions. Two processes: test_redis_two."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from relay.broker import Broker
from relay.errors import BadInput, Unavailable
from tests.contract.harness import CID, Recorder, Rig, event, on_several_servers, until

pytestmark = pytest.mark.anyio


async def test_what_is_told_comes_with_its_users_and_its_bytes_as_they_are(
    broker: Broker, recorder: Recorder
) -> None:
    body = '{"type":"call.created",\n"call_cid":"ü"}'.encode()
    await broker.tell({"ann"}, CID, body)
    await broker.tell(["ann", "böb"], None, b"")
    await until(lambda: len(recorder.told) == 2, "both arrive")
    assert recorder.told == [(["ann"], CID, body), (["ann", "böb"], None, b"")]


async def test_a_notice_comes_after_what_was_published_before_it(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.subscribe(CID)
    await broker.publish(event("before"))
    await broker.broadcast(b"one\ntwo")
    await until(lambda: recorder.notices, "the notice arrives")
    if on_several_servers(broker):  # what two say comes in any order
        await until(recorder.contents, "what was published arrives")
    assert recorder.notices == [b"one\ntwo"]
    assert recorder.contents() == ["before"]


async def test_nothing_is_handed_over_from_inside_a_task(
    broker: Broker, recorder: Recorder
) -> None:
    await broker.tell(["ann"], None, b"{}")
    await broker.broadcast(b"notice")
    await until(lambda: recorder.told and recorder.notices, "both arrive")
    assert not recorder.inside_a_task


async def test_a_process_answers_itself(broker: Broker) -> None:
    assert await broker.ask(broker.node, b"who\nare you") == b"you said who\nare you"


async def test_an_unknown_process_does_not_answer(broker: Broker) -> None:
    broker._desk.answer_s = 0.05  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        await broker.ask(uuid4().hex, b"anybody?")


async def test_an_answer_that_takes_too_long_is_none(broker: Broker, recorder: Recorder) -> None:
    broker._desk.answer_s = 0.05  # type: ignore[attr-defined]
    recorder.answering = asyncio.Event()
    with pytest.raises(Unavailable):
        await broker.ask(broker.node, b"well?")


async def test_a_refused_answer_is_none(broker: Broker, recorder: Recorder) -> None:
    recorder.refusal = BadInput("I do not understand")
    with pytest.raises(Unavailable, match="I do not understand"):
        await broker.ask(broker.node, b"well?")


async def test_without_a_receiver_messages_are_dropped(rig: Rig) -> None:
    broker = await rig.broker()
    recorder = Recorder()
    broker.receive(recorder)
    await broker.aclose()
    with pytest.raises(Unavailable):
        await broker.ask(broker.node, b"still there?")
    assert recorder.questions == []
