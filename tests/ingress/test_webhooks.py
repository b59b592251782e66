from __future__ import annotations

import base64
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from relay import signing, wire
from relay.broker.rules import CALL_BYTES
from relay.calls import Call, Member
from tests.edges import NOW_NS, OLD_SECRET, Edges, counted, edges, refused, signed

pytestmark = pytest.mark.anyio

WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Edges]:
    file = tmp_path / "sources.toml"
    file.write_text(
        f'[[source]]\nname="billing"\nscheme="standard"\nsecrets=["{WHSEC}"]\ncall="/call"\n'
    )
    async with edges(sources=str(file)) as found:
        yield found


def webhook(**fields: Any) -> bytes:
    body = {"type": "custom", "created_at": NOW_NS, "call_cid": "default:demo", "custom": {"n": 1}}
    return wire.encode(body | fields)


async def post(relay: Edges, body: bytes, **headers: str) -> httpx.Response:
    given = signed(body) | {name.replace("_", "-"): value for name, value in headers.items()}
    return await relay.client.post("/webhooks/stream", content=body, headers=given)


async def test_a_webhook_is_published_and_its_place_is_told(relay: Edges) -> None:
    response = await post(relay, webhook())
    answer = response.json()
    assert response.status_code == 200
    assert (answer["status"], answer["offset"]) == ("published", 1)
    (event,) = await relay.published("default:demo")
    assert {name: event[name] for name in ("event_id", "epoch", "offset")} == {
        name: answer[name] for name in ("event_id", "epoch", "offset")
    }
    assert event["custom"] == {"n": 1}
    assert event["created_at"] == "2027-01-15T08:00:00.000000000Z"


async def test_a_call_too_large_to_be_kept_keeps_no_event_back(relay: Edges) -> None:
    full = Member(
        user_id="anna", created_at=0, updated_at=0, custom={"notes": "x" * (CALL_BYTES - 1000)}
    )
    call = Call(cid="default:demo", created_by="anna", created_at=0, updated_at=0, members=(full,))
    await relay.store.create_call(call)
    said = {"created_by": {"id": "anna"}, "custom": {"notes": "x" * 1000}}
    response = await post(relay, webhook(call=said))
    assert response.json()["status"] == "published"
    assert len(await relay.published("default:demo")) == 1
    assert await relay.store.call("default:demo") == call


async def test_a_repeat_answers_with_the_first_place_and_publishes_nothing(relay: Edges) -> None:
    before = counted("relay_events_duplicate", door="webhook")
    first = (await post(relay, webhook())).json()
    relay.clock.forward(3000)
    again = (await post(relay, webhook(), x_webhook_id="another", x_webhook_attempt="2")).json()
    assert again.pop("status") == "duplicate"
    assert {name: again[name] for name in ("event_id", "epoch", "offset")} == {
        name: first[name] for name in ("event_id", "epoch", "offset")
    }
    assert len(await relay.published("default:demo")) == 1
    assert counted("relay_events_duplicate", door="webhook") == before + 1


async def test_a_replay_is_too_old_before_it_is_forgotten(relay: Edges) -> None:
    body = webhook(created_at=NOW_NS + 59 * 10**9)
    assert (await post(relay, body)).json()["status"] == "published"
    for _ in range(100):
        relay.clock.forward(300)
        response = await post(relay, body)
        assert response.status_code == 400 or response.json()["status"] == "duplicate"
    assert response.json()["code"] == 4


async def test_the_same_webhook_id_with_another_body_is_published_and_counted(relay: Edges) -> None:
    before = counted("relay_event_ids_reused", door="webhook")
    await post(relay, webhook(custom={"n": 1}))
    response = await post(relay, webhook(custom={"n": 2}))
    assert response.json()["status"] == "published"
    assert counted("relay_event_ids_reused", door="webhook") == before + 1


async def test_a_gzipped_webhook_is_the_same_webhook(relay: Edges) -> None:
    body = webhook()
    await post(relay, body)
    response = await relay.client.post(
        "/webhooks/stream",
        content=gzip.compress(body),
        headers=signed(body) | {"content-encoding": "gzip"},
    )
    assert response.json()["status"] == "duplicate"


async def test_a_webhook_about_no_call_is_ignored_and_counted(relay: Edges) -> None:
    before = counted("relay_events_ignored", door="webhook")
    body = wire.encode({"type": "user.updated", "created_at": NOW_NS, "user": {"id": "john"}})
    response = await post(relay, body)
    assert response.status_code == 200
    assert response.json()["status"] == "ignored"
    assert response.json().keys() == {"duration", "status", "event_id"}
    assert counted("relay_events_ignored", door="webhook") == before + 1


async def test_an_older_secret_still_opens(relay: Edges) -> None:
    body = webhook()
    headers = signed(body, OLD_SECRET)
    response = await relay.client.post("/webhooks/stream", content=body, headers=headers)
    assert response.status_code == 200


async def test_times_reach_browsers_as_rfc3339_and_custom_as_it_was(relay: Edges) -> None:
    call = {"created_at": NOW_NS + 7, "session": {"started_at": NOW_NS}, "custom": {"at": NOW_NS}}
    await post(relay, webhook(type="call.updated", call=call, custom={"sent_at": NOW_NS}))
    (event,) = await relay.published("default:demo")
    assert event["call"]["created_at"] == "2027-01-15T08:00:00.000000007Z"
    assert event["call"]["session"]["started_at"] == "2027-01-15T08:00:00.000000000Z"
    assert event["call"]["custom"] == {"at": NOW_NS}
    assert event["custom"] == {"sent_at": NOW_NS}


async def test_while_redis_is_away_the_sender_is_told_to_come_back(relay: Edges) -> None:
    before = refused("webhook", "unavailable")
    relay.broker.away = True
    response = await post(relay, webhook())
    assert (response.status_code, response.json()["code"]) == (503, -1)
    assert response.headers["retry-after"] == "1"
    assert refused("webhook", "unavailable") == before + 1
    relay.broker.away = False
    assert (await post(relay, webhook())).json()["status"] == "published"


async def test_the_ledger_of_the_door_adds_up(relay: Edges) -> None:
    names = ("accepted", "duplicate", "published")

    def ledger() -> list[float]:
        kinds: list[dict[str, str]] = [{}, {}, {"kind": "kept"}]
        return [
            counted(f"relay_events_{name}", door="webhook", **kind)
            for name, kind in zip(names, kinds, strict=True)
        ]

    before = ledger()
    await post(relay, webhook())
    await post(relay, webhook())
    await post(relay, webhook(custom={}))
    await post(relay, b"{}")
    assert [new - old for new, old in zip(ledger(), before, strict=True)] == [3, 1, 2]


async def test_a_source_of_the_file_has_its_own_path(relay: Edges) -> None:
    body = b'{"type":"invoice.paid","call":"default:demo"}'
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW_NS // 10**9),
        "webhook-signature": signing.standard_signature("msg_1", str(NOW_NS // 10**9), body, WHSEC),
    }
    for status in ("published", "duplicate"):
        response = await relay.client.post("/webhooks/billing", content=body, headers=headers)
        assert response.json()["status"] == status
        assert response.json()["event_id"] == "msg_1"
    (event,) = await relay.published("default:demo")
    assert event["custom"] == wire.decode(body)
    assert event["user"]["id"] == "billing"


async def test_a_source_that_is_not_there_is_not_found(relay: Edges) -> None:
    body = webhook()
    response = await relay.client.post("/webhooks/nobody", content=body, headers=signed(body))
    assert (response.status_code, response.json()["code"]) == (404, 16)


async def test_a_refused_webhook_is_logged_without_its_content(relay: Edges) -> None:
    with capture_logs() as lines:
        await post(relay, webhook(custom={"n": "a secret"}), x_signature="0" * 64)
    assert lines == [
        {
            "event": "webhook refused",
            "log_level": "warning",
            "source": "stream",
            "reason": "bad_signature",
        }
    ]


async def test_a_body_is_bounded_as_it_is_sent(relay: Edges) -> None:
    response = await relay.client.post("/webhooks/stream", content=b"x" * 100_001)
    assert (response.status_code, response.json()["code"]) == (413, 22)
