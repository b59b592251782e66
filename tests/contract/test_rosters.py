"""Who watches: what a process says of itself can be read back. Other processes: test_redis_two."""

from __future__ import annotations

import pytest

from relay.broker import Broker, Roster
from tests.contract.harness import CID, OTHER, Recorder, caught_up

pytestmark = pytest.mark.anyio

ANN = {"id": "ann", "name": "Ann Ü", "image": ""}


async def test_a_roster_can_be_read_back(broker: Broker) -> None:
    await broker.set_roster(CID, Roster(3, (ANN,)))
    assert await broker.rosters(CID) == {broker.node: Roster(3, (ANN,))}
    assert await broker.rosters(OTHER) == {}


async def test_the_last_roster_counts(broker: Broker) -> None:
    await broker.set_roster(CID, Roster(3, (ANN,)))
    await broker.set_roster(CID, Roster(1))
    assert await broker.rosters(CID) == {broker.node: Roster(1)}


async def test_a_count_of_zero_removes_the_roster(broker: Broker) -> None:
    await broker.set_roster(CID, Roster(3, (ANN,)))
    await broker.set_roster(CID, Roster(0))
    assert await broker.rosters(CID) == {}


async def test_a_process_is_not_told_of_its_own_roster(broker: Broker, recorder: Recorder) -> None:
    await broker.subscribe(CID)
    await broker.set_roster(CID, Roster(3, (ANN,)))
    await caught_up(broker, recorder)
    assert recorder.rosters == []
    assert recorder.contents() == []


async def test_a_process_is_among_those_alive(broker: Broker) -> None:
    assert broker.node in await broker.nodes()


async def test_a_node_has_no_dash_in_its_name(broker: Broker) -> None:
    assert "-" not in broker.node


async def test_how_many_sockets_a_user_has_is_told_by_process(broker: Broker) -> None:
    assert await broker.set_connections("ann", 3) == {broker.node: 3}
    assert await broker.set_connections("böb", 1) == {broker.node: 1}
    assert await broker.set_connections("ann", 2) == {broker.node: 2}
    assert await broker.set_connections("ann", 0) == {}
