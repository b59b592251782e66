"""One socket's commands: worked off in order, answered under their ids, bounded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs
from websockets.frames import Opcode

from relay.calls import Call, Permissions
from relay.errors import Close
from relay.gateway.bounds import CLOSE_TIMEOUT_S, NOISE_LIMIT, SILENCE_S, SLICE_BYTES
from relay.users import Profile
from tests.gateway.conftest import Gateway, MakeGateway, closed, counted, refused, token
from tests.gateway.fakes import CID, turns
from tests.gateway.peer import Peer

pytestmark = pytest.mark.anyio


async def test_replies_carry_the_id_and_come_in_order(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={"a": 1})
    peer.say(type="call.send", id=3, call_cid=CID, custom={"a": 1}, volatile=True)
    peer.say(type="token.refresh", id=4, token=token())
    peer.say(type="call.unwatch", id=5, call_cid=CID)
    await turns(30)
    replies = [(text["type"], text["id"]) for text in peer.texts if "id" in text]
    assert replies == [
        ("call.watching", 1), ("call.sent", 2), ("call.sent", 3), ("token.refreshed", 4),
        ("call.unwatched", 5),
    ]  # fmt: skip
    assert [text["type"] for text in peer.texts if text["type"] in ("custom", "volatile")] != []


async def test_the_reply_to_a_watch_comes_before_what_is_watched(gateway: Gateway) -> None:
    gateway.broker.lose(3)
    peer = await Peer(gateway).log_in()
    peer.say(type="call.watch", id=1, call_cid=CID, since={"epoch": "e1", "offset": 1})
    await turns(5)
    gateway.broker.send()
    await asyncio.sleep(1)
    relevant = [t for t in peer.texts if t["type"] in ("call.watching", "custom")]
    assert relevant[0] == {
        "type": "call.watching", "id": 1, "call_cid": CID, "epoch": "e1",
        "offset": relevant[0]["offset"], "recovered": True,
    }  # fmt: skip
    assert [text["offset"] for text in relevant[1:]] == [2, 3, 4]


async def test_a_refused_publish_is_counted_once(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    before = (refused("unavailable"), counted("relay_events_accepted_total", door="socket"))
    gateway.broker.away["publish"] = 1
    peer.say(type="call.send", id=7, call_cid=CID, custom={})
    await turns()
    assert peer.texts[-1]["id"] == 7
    assert peer.texts[-1]["error"]["StatusCode"] == 503
    assert refused("unavailable") == before[0] + 1
    assert counted("relay_events_accepted_total", door="socket") == before[1] + 1


async def test_commands_that_redis_does_not_answer_are_refused_in_time_from_when_they_came(
    gateway: Gateway,
) -> None:
    """Those that waited for the first one have waited as long, and nothing is asked for them."""
    peer = await Peer(gateway).log_in()
    before = (refused("unavailable"), counted("relay_events_failed_total", door="socket"))
    gateway.broker.gates["publish"] = asyncio.Event()
    for number in range(3):
        peer.say(type="call.send", id=number, call_cid=CID, custom={})
    await asyncio.sleep(2.9)
    assert not [text for text in peer.texts if text["type"] == "error"]
    await asyncio.sleep(0.2)
    errors = [text for text in peer.texts if text["type"] == "error"]
    assert [error["id"] for error in errors] == [0, 1, 2]
    assert {error["error"]["StatusCode"] for error in errors} == {503}
    assert refused("unavailable") == before[0] + 3
    assert counted("relay_events_failed_total", door="socket") >= before[1] + 1


async def test_what_the_broker_takes_at_once_is_answered_at_once(gateway: Gateway) -> None:
    gateway.broker.at_once = True
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    tasks = len(gateway.sockets.tasks)
    peer.say(type="call.send", id=1, call_cid=CID, custom={})
    assert (peer.texts[-1]["type"], peer.texts[-1]["offset"]) == ("call.sent", 1)
    assert len(gateway.sockets.tasks) == tasks, "no task for this"
    await turns()
    assert gateway.broker.asked("publish") == []
    assert peer.types[-2:] == ["call.sent", "custom"]


async def test_what_comes_behind_a_waiting_command_waits_too(gateway: Gateway) -> None:
    gateway.broker.at_once = True
    gate = gateway.broker.gates["subscribe"] = asyncio.Event()
    peer = await Peer(gateway).log_in()
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={})
    await turns()
    assert gateway.broker.asked("publish_now") == []
    gate.set()
    await turns(20)
    assert [text["id"] for text in peer.texts if "id" in text] == [1, 2]
    peer.say(type="call.send", id=3, call_cid=CID, custom={})
    assert peer.texts[-1]["id"] == 3


async def test_a_publish_that_is_refused_at_once_is_counted_once(gateway: Gateway) -> None:
    gateway.broker.at_once = True
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    before = (refused("unavailable"), counted("relay_events_accepted_total", door="socket"))
    gateway.broker.away["publish"] = 1
    peer.say(type="call.send", id=7, call_cid=CID, custom={})
    assert (peer.texts[-1]["id"], peer.texts[-1]["error"]["StatusCode"]) == (7, 503)
    assert refused("unavailable") == before[0] + 1
    await turns()
    assert counted("relay_events_accepted_total", door="socket") == before[1] + 1


async def test_a_fault_of_ours_in_a_publish_at_once_closes_the_socket(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.broker.at_once = True
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    gateway.broker.calls = None  # type: ignore[assignment]
    peer.say(type="call.send", id=7, call_cid=CID, custom={})
    assert peer.close is not None
    assert peer.close[0] == Close.INTERNAL_ERROR
    assert "command failed" in capsys.readouterr().out
    gateway.broker.calls = {}


async def test_a_refused_watch_is_told_and_counted(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    before = refused("unavailable")
    gateway.broker.away["subscribe"] = 1
    peer.say(type="call.watch", id=7, call_cid=CID)
    await turns()
    assert peer.texts[-1]["error"]["code"] == -1
    assert refused("unavailable") == before + 1
    assert (await peer.watch(CID))["offset"] == 0


async def test_a_call_that_was_never_created_is_refused_where_that_is_the_rule(
    make_gateway: MakeGateway,
) -> None:
    gateway = make_gateway(strict_calls=True)
    gateway.broker.at_once = True  # the store has to be asked all the same
    peer = await Peer(gateway).log_in()
    before = refused("not_found")
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={})
    await turns(20)
    assert [text["error"]["code"] for text in peer.texts[1:]] == [16, 16]
    assert refused("not_found") == before + 2


async def blocked(gateway: Gateway, *user_ids: str) -> None:
    """Let the call exist, with some users blocked in it."""
    call = Call(cid=CID, created_by="ann", created_at=1, updated_at=1, blocked=user_ids)
    await gateway.store.create_call(call)


async def test_a_blocked_user_neither_watches_nor_sends(gateway: Gateway) -> None:
    gateway.broker.at_once = True
    await blocked(gateway, "john")
    peer = await Peer(gateway).log_in()
    before = refused("blocked")
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={})
    await turns(20)
    assert [text["error"]["code"] for text in peer.texts[1:]] == [17, 17]
    assert refused("blocked") == before + 2
    assert gateway.broker.asked("publish_now") == []


async def test_who_is_blocked_while_it_is_asked_whether_it_may_send_does_not(
    gateway: Gateway,
) -> None:
    await blocked(gateway)
    peer = await Peer(gateway).log_in()
    read, gate = gateway.store.call, asyncio.Event()

    async def read_late(cid: str) -> Call | None:
        found = await read(cid)
        await gate.wait()
        return found

    gateway.store.call = read_late  # type: ignore[method-assign]
    peer.say(type="call.send", id=1, call_cid=CID, custom={})
    await turns(20)
    await gateway.sockets.expel("john", CID)
    await turns(20)
    gate.set()
    await turns(20)
    assert (peer.texts[-1]["id"], peer.texts[-1]["error"]["code"]) == (1, 17)
    assert not peer.connection.cleared


async def test_who_may_not_read_a_call_neither_watches_nor_sends(gateway: Gateway) -> None:
    await blocked(gateway)
    revoked = {"john": Permissions(revoked=("read-call",))}
    await gateway.store.change_call(CID, lambda call: structs.replace(call, permissions=revoked))
    peer = await Peer(gateway).log_in()
    peer.say(type="call.watch", id=1, call_cid=CID)
    peer.say(type="call.send", id=2, call_cid=CID, custom={})
    await turns(20)
    assert [text["error"]["code"] for text in peer.texts[1:]] == [17, 17]


async def test_who_is_blocked_while_sending_is_asked_again(gateway: Gateway) -> None:
    gateway.broker.at_once = True
    await blocked(gateway)
    peer = await Peer(gateway).log_in()
    for number in (1, 2):
        peer.say(type="call.send", id=number, call_cid=CID, custom={})
        await turns(20)
    assert [text["type"] for text in peer.texts[1:]] == ["call.sent", "call.sent"]
    await gateway.store.change_call(CID, lambda call: structs.replace(call, blocked=("john",)))
    await gateway.sockets.expel("john", CID)
    await turns(20)
    peer.say(type="call.send", id=3, call_cid=CID, custom={})
    await turns(20)
    assert (peer.texts[-1]["id"], peer.texts[-1]["error"]["code"]) == (3, 17)


async def test_a_revoked_token_logs_nobody_in(gateway: Gateway) -> None:
    now_ns = gateway.sockets.now_ns()
    await gateway.store.save_user("john", Profile(revoked_before=now_ns + 10**9), now_ns)
    peer = await Peer(gateway).log_in()
    assert (peer.texts[0]["type"], peer.texts[0]["error"]["code"]) == ("connection.error", 40)
    assert peer.close is not None
    assert peer.close[0] == Close.REFUSED


async def test_a_revoked_token_refreshes_nothing_and_ends_the_socket(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    now_ns = gateway.sockets.now_ns()
    await gateway.store.save_user("john", Profile(revoked_before=now_ns + 10**9), now_ns)
    peer.say(type="token.refresh", id=4, token=token())
    await turns(20)
    assert peer.close is not None
    assert peer.close[0] == Close.TOKEN_EXPIRED


async def test_a_socket_has_a_limit_of_watches(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(limits={"watch_limit": 2})
    peer = await Peer(gateway).log_in()
    await peer.watch("default:1")
    await peer.watch("default:2")
    await peer.watch("default:2")
    peer.say(type="call.watch", id=3, call_cid="default:3")
    await turns()
    assert "at most 2 calls" in peer.texts[-1]["error"]["message"]


async def test_a_token_for_fewer_calls_ends_the_watches_of_the_others(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    await peer.watch(CID)
    await peer.watch("default:other")
    peer.say(type="token.refresh", id=4, token=token(call_cids=[CID]))
    await turns()
    assert peer.connection.calls == {CID}
    gateway.broker.send(1, "default:other")
    gateway.broker.send(1, CID)
    await turns()
    assert peer.types.count("custom") == 1


async def test_a_token_that_ends_sooner_is_watched_from_its_refresh_on(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.say(type="token.refresh", id=4, token=token(exp=gateway.now_ns() // 10**9 + 5))
    await asyncio.sleep(8)
    assert peer.close is not None
    assert peer.close[0] == Close.TOKEN_EXPIRED


async def test_a_command_that_fails_for_a_reason_nobody_foresaw_closes_the_socket(
    gateway: Gateway,
) -> None:
    peer = await Peer(gateway).log_in()

    async def broken(_: object) -> Any:
        raise ValueError("a bug")

    gateway.broker.publish = broken  # type: ignore[method-assign, assignment]
    peer.say(type="call.send", id=1, call_cid=CID, custom={})
    await turns()
    assert peer.close == (Close.INTERNAL_ERROR, "internal error")


async def test_too_many_waiting_commands_stop_the_reading(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(rules={"command_rate": 0})
    peer = await Peer(gateway).log_in()
    gateway.broker.gates["positions"] = asyncio.Event()
    watch = peer.frame(Opcode.TEXT, json.dumps(
        {"type": "call.watch", "call_cid": CID}).encode())  # fmt: skip
    peer.raw(watch * 99)
    assert peer.transport.reading
    peer.raw(watch * 2)
    assert not peer.transport.reading
    await asyncio.sleep(SILENCE_S + 30)
    assert not peer.transport.closing, "it was us who did not listen"
    gateway.broker.gates["positions"].set()
    await turns(500)
    assert peer.transport.reading
    answered = [kind for kind in peer.types if kind in ("call.watching", "error")]
    assert len(answered) == 101


async def test_a_flood_is_told_then_closed_and_no_longer_read(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    before = closed("flood")
    unwatch = peer.frame(Opcode.TEXT, json.dumps(
        {"type": "call.unwatch", "call_cid": CID}).encode())  # fmt: skip
    peer.raw(unwatch * 5000)
    assert peer.types.count("error") == 100
    assert peer.close is not None
    assert peer.close[0] == Close.FLOOD
    assert not peer.transport.reading
    assert closed("flood") == before + 1
    await asyncio.sleep(CLOSE_TIMEOUT_S + 2)
    assert peer.transport.aborted


@pytest.mark.parametrize("kind", ["ping", "pong", "fragment"])
async def test_a_flood_of_frames_without_a_message_is_closed(gateway: Gateway, kind: str) -> None:
    peer = await Peer(gateway).log_in()
    if kind == "fragment":
        peer.raw(peer.frame(Opcode.TEXT, b"", fin=False))
        one = peer.frame(Opcode.CONT, b"", fin=False)
    else:
        one = peer.frame(Opcode.PING if kind == "ping" else Opcode.PONG)
    peer.raw(one * 20_000)
    assert peer.close is not None
    assert peer.close[0] == Close.FLOOD
    assert len(peer.frames) < NOISE_LIMIT + SLICE_BYTES // 6 + 10
    assert not peer.transport.reading


async def test_pings_at_a_decent_pace_are_no_flood(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    for _ in range(100):
        peer.raw(peer.frame(Opcode.PING) * (NOISE_LIMIT // 30))
        await asyncio.sleep(1)
    assert peer.close is None


async def test_noise_after_the_close_is_cut_off(gateway: Gateway) -> None:
    peer = await Peer(gateway).log_in()
    peer.raw(peer.frame(Opcode.BINARY, b"x"))
    peer.raw(peer.frame(Opcode.TEXT, b"x") * (NOISE_LIMIT + 10))
    assert peer.transport.aborted
