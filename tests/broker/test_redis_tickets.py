"""Tickets in Redis: what is only there, the death of a process and the keys that are left."""

from __future__ import annotations

import asyncio

import pytest

from relay.broker.tickets import TICKETS_MOST, Ticket
from relay.events import Position
from tests.contract.harness import CID, RedisRig

pytestmark = pytest.mark.anyio


def ticket(node: str) -> Ticket:
    return Ticket(node, {CID: Position("e1", 7)}, exact=False)


async def test_a_process_that_said_nothing_for_a_minute_leaves_nothing(rig: RedisRig) -> None:
    dies, stays = await rig.broker(), await rig.broker()
    dying, staying = rig.tickets(dies, life_s=0.1), rig.tickets(stays, life_s=0.1)
    await dying.mark({CID: Position("e1", 9)}, [])
    for name in ("a", "b"):
        await dying.hold("john", name, ticket(dies.node))
    assert await staying.held("john", [CID]) == {"a": dies.node, "b": dies.node}
    claimed = await staying.claim("john", [CID], ["a"], "new", stays.node)
    assert claimed == {CID: Position("e1", 9)}
    await rig.pass_time(0.15)
    assert await staying.claim("john", [CID], ["b"], "newer", stays.node) == {}
    assert await staying.held("john", [CID]) == {"new": stays.node}


async def test_a_sign_of_life_without_news_is_one(rig: RedisRig) -> None:
    broker = await rig.broker()
    tickets = rig.tickets(broker, life_s=0.1)
    await tickets.mark({CID: Position("e1", 9)}, [])
    await rig.pass_time(0.07)
    await tickets.mark({}, [])
    await rig.pass_time(0.07)
    await tickets.hold("john", "a", ticket(broker.node))
    assert await tickets.claim("john", [CID], ["a"], "new", broker.node) != {}


async def test_no_key_stays_for_ever(rig: RedisRig) -> None:
    broker = await rig.broker()
    tickets = rig.tickets(broker)
    await tickets.mark({CID: Position("e1", 9)}, [])
    await tickets.leave("john", "a", ticket(broker.node))
    with rig.server.client() as client:
        keys = [broker.keyspace.tickets("john"), broker.keyspace.marks(broker.node)]
        assert all(0 < client.pttl(key) <= 86_400_000 for key in keys)
        await tickets.drop("john", "a")
        assert client.exists(keys[0]) == 0


async def test_tickets_that_are_written_at_once_become_one_without_a_loss(rig: RedisRig) -> None:
    broker = await rig.broker()
    tickets = rig.tickets(broker)
    cids = [f"default:{n}" for n in range(3 * TICKETS_MOST)]
    await asyncio.gather(
        *(
            tickets.leave("john", f"s{n}", Ticket(broker.node, {cid: Position("e1", n)}))
            for n, cid in enumerate(cids)
        )
    )
    await tickets.leave("john", "last", ticket(broker.node))
    with rig.server.client() as client:
        assert client.hlen(broker.keyspace.tickets("john")) == TICKETS_MOST + 1
    claimed = await tickets.claim("john", cids, [], "new", broker.node)
    assert claimed == {cid: Position("e1", n) for n, cid in enumerate(cids)}
