"""Letting the sockets go: who is told when, in batches that form no herd."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Opcode

from relay.errors import Close
from relay.gateway import drain
from relay.gateway.drain import TICK_S, Plan, let_go, plan
from tests.gateway.conftest import Gateway, closed
from tests.gateway.fakes import turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio


class Leaver:
    """Writes down when it was told and when it was closed, by loop time since its making."""

    def __init__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self.told: list[tuple[float, int]] = []
        self.ended: list[tuple[float, Close]] = []

    def _now(self) -> float:
        return round(asyncio.get_running_loop().time() - self._began, 3)

    def announce_end(self, within_ms: int) -> None:
        self.told.append((self._now(), within_ms))

    def end(self, code: Close, reason: str, why: str) -> None:
        assert (reason, why) == (drain.REASON, "drained")
        self.ended.append((self._now(), code))


async def leave(count: int, how: Plan) -> list[Leaver]:
    leavers = [Leaver() for _ in range(count)]
    gone = asyncio.Event()
    leaving = asyncio.create_task(let_go(leavers, how, gone))
    await asyncio.sleep(60)
    assert not leaving.done(), "it waits for those who have not left"
    gone.set()
    await leaving
    return leavers


async def test_each_is_told_once_and_closed_once_after_the_time_it_was_told() -> None:
    for leaver in await leave(1000, plan(1000, 10.0, handover=True)):
        [(told, within_ms)] = leaver.told
        [(ended, code)] = leaver.ended
        assert code is Close.SERVICE_RESTART
        assert within_ms == 3000
        assert ended - told == pytest.approx(3.0, abs=0.01)


async def test_every_batch_is_small_and_the_batches_fill_the_time() -> None:
    leavers = await leave(2000, plan(2000, 10.0, handover=True))
    times = [leaver.told[0][0] for leaver in leavers]
    for second in range(6):
        assert sum(second <= time < second + 1 for time in times) == pytest.approx(333, abs=20)
    assert max(leaver.ended[0][0] for leaver in leavers) < 9.1


async def test_where_there_is_nowhere_to_go_nobody_is_told() -> None:
    for leaver in await leave(10, plan(10, 10.0, handover=False)):
        assert leaver.told == []
        assert leaver.ended == [(0.0, Close.SERVICE_RESTART)]


async def test_it_is_over_as_soon_as_all_have_left() -> None:
    gone = asyncio.Event()
    leaver = Leaver()
    leaving = asyncio.create_task(let_go([leaver], plan(1, 10.0, handover=True), gone))
    await asyncio.sleep(1)
    gone.set()
    await turns()
    assert leaving.done()
    assert leaver.ended == []


@given(
    sockets=st.integers(1, 100_000), time_s=st.floats(0.01, 3600), handover=st.booleans()
)  # fmt: skip
def test_a_plan_ends_within_its_time_and_leaves_some(
    sockets: int, time_s: float, handover: bool
) -> None:
    made = plan(sockets, time_s, handover=handover)
    assert made.batches >= 1
    assert (made.lead > 0) == handover
    assert made.batches * TICK_S + made.handover_s <= 0.9 * time_s + 2 * TICK_S
    assert made.handover_s <= drain.LONGEST_HANDOVER_S + TICK_S


def test_few_need_not_wait_for_their_turn() -> None:
    assert plan(5, 600.0, handover=True).batches == 1
    assert plan(1000, 600.0, handover=True).batches == 100


async def test_who_has_logged_in_is_told_and_then_closed(gateway: Gateway) -> None:
    john = await Peer(gateway).log_in()
    stranger = Peer(gateway).connect()
    before = closed("drained")
    draining = asyncio.create_task(gateway.sockets.drain(10.0, handover=True))
    await asyncio.sleep(2)
    assert john.texts[-1] == {"type": "connection.draining", "reconnect_within_ms": 3000}
    assert stranger.texts == []
    assert john.close is stranger.close is None
    await asyncio.sleep(1.5)
    for peer in (john, stranger):
        assert peer.close == (Close.SERVICE_RESTART, drain.REASON)
        peer.raw(peer.frame(Opcode.CLOSE, b"\x03\xf4"))
    await asyncio.wait_for(draining, 1)
    assert closed("drained") == before + 2


async def test_a_drain_that_is_cut_short_closes_whoever_is_left(gateway: Gateway) -> None:
    john = await Peer(gateway).log_in()
    draining = asyncio.create_task(gateway.sockets.drain(10.0, handover=True))
    await asyncio.sleep(1)
    draining.cancel()
    gateway.sockets.dismiss()
    assert john.close == (Close.GOING_AWAY, "the relay is shutting down")


async def test_without_sockets_there_is_nothing_to_wait_for(gateway: Gateway) -> None:
    await asyncio.wait_for(gateway.sockets.drain(10.0, handover=True), 0.001)
