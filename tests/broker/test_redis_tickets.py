"""Tickets in Redis: what is only there, the death of a process and the keys that are left."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from relay.broker.tickets import LOST, TICKETS_MOST, Ticket
from relay.events import Position
from tests.contract.harness import CID, OTHER, RedisRig
from tests.edges import counted

pytestmark = pytest.mark.anyio


def ticket(node: str) -> Ticket:
    return Ticket(node, {CID: Position("e1", 7)}, exact=False)


async def test_a_process_that_said_nothing_for_a_minute_leaves_nothing(rig: RedisRig) -> None:
    dies, stays = await rig.broker(), await rig.broker()
    dying, staying = rig.tickets(dies, life_s=2.0), rig.tickets(stays, life_s=2.0)
    await dying.mark({CID: Position("e1", 9)}, [])
    for name in ("a", "b"):
        await dying.hold("john", name, ticket(dies.node))
    assert await staying.held("john", [CID]) == {"a": dies.node, "b": dies.node}
    claimed = await staying.claim("john", [CID], ["a"], "new", stays.node)
    assert claimed == {CID: Position("e1", 9)}
    await rig.pass_time(2.05)
    assert await staying.claim("john", [CID], ["b"], "newer", stays.node) == {}
    assert await staying.held("john", [CID]) == {"new": stays.node}


async def test_a_sign_of_life_without_news_is_one(rig: RedisRig) -> None:
    broker = await rig.broker()
    tickets = rig.tickets(broker, life_s=2.0)
    await tickets.mark({CID: Position("e1", 9)}, [])
    await rig.pass_time(1.2)
    await tickets.mark({}, [])
    await rig.pass_time(1.2)
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


UNREADABLE = [
    b"",
    b"balloons",
    b"0 ",
    b"0 {",
    b"0 \xff\xfe",
    b'soon {"node":"n","positions":{}}',
    b'9999999999999 {"node":7,"positions":{}}',
    b'9999999999999 {"node":"n","positions":{"default:demo":"e1:7"}}',
]


@pytest.mark.parametrize("text", UNREADABLE)
async def test_a_ticket_that_cannot_be_read_keeps_no_other_from_being_claimed(
    rig: RedisRig, text: bytes
) -> None:
    broker = await rig.broker()
    tickets = rig.tickets(broker)
    await tickets.leave("john", "a", ticket(broker.node))
    key = broker.keyspace.tickets("john")
    before = counted("relay_tickets", what="unread")
    with rig.server.client() as client:
        client.hset(key, "broken", text)
        assert await tickets.held("john", [CID]) == {}
        await tickets.hold("john", "b", Ticket(broker.node, {OTHER: Position("e1", 3)}))
        with capture_logs() as lines:
            claimed = await tickets.claim("john", [CID], [], "new", broker.node)
        assert claimed == {CID: Position("e1", 7)}
        assert sorted(client.hkeys(key)) == ["b", "new"]
    assert [(line["event"], line["count"]) for line in lines] == [("tickets cannot be read", 1)]
    assert counted("relay_tickets", what="unread") == before + 1


async def test_what_only_a_ticket_knew_that_cannot_be_read_is_told_once_to_be_lost(
    rig: RedisRig,
) -> None:
    broker = await rig.broker()
    tickets = rig.tickets(broker)
    await tickets.leave("john", "a", ticket(broker.node))
    with rig.server.client() as client:
        client.hset(broker.keyspace.tickets("john"), "broken", "balloons")
    claimed = await tickets.claim("john", [CID, OTHER], [], "new", broker.node)
    assert claimed == {CID: Position("e1", 7), OTHER: LOST}
    assert await tickets.claim("john", [CID, OTHER], [], "newer", broker.node) == {}
    again = await tickets.claim("john", [CID, OTHER], [], "new", broker.node)
    assert again == claimed  # who did not learn of it asks again
