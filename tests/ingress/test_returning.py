"""A hook may lead back to a relay's own door: what it delivers does not go round."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay import events, signing, wire
from relay.events import Origin, Position
from tests.edges import NOW_NS, Edges, counted, edges, signed

pytestmark = pytest.mark.anyio

CID = "default:demo"
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Edges]:
    file = tmp_path / "sources.toml"
    file.write_text(
        f'[[source]]\nname="own"\nscheme="standard"\nsecrets=["{WHSEC}"]\ncall="/call_cid"\n'
    )
    async with edges(sources=str(file)) as found:
        yield found


async def post(relay: Edges, body: dict[str, Any]) -> dict[str, Any]:
    text = wire.encode(body)
    response = await relay.client.post("/webhooks/stream", content=text, headers=signed(text))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def post_standard(relay: Edges, body: dict[str, Any], webhook_id: str) -> dict[str, Any]:
    text, seconds = wire.encode(body), str(NOW_NS // 10**9)
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": seconds,
        "webhook-signature": signing.standard_signature(webhook_id, seconds, text, WHSEC),
    }
    response = await relay.client.post("/webhooks/own", content=text, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def published_once(relay: Edges, **fields: Any) -> dict[str, Any]:
    """Publish an event and return it as a hook gets it."""
    body = {"type": "custom", "created_at": NOW_NS, "call_cid": CID, "custom": {"n": 1}}
    await post(relay, body | fields)
    (event,) = await relay.published(CID)
    return event


async def test_what_this_relay_delivered_is_a_duplicate(relay: Edges) -> None:
    event = await published_once(relay)
    before = counted("relay_events_duplicate", door="webhook")
    answer = await post(relay, event)
    assert {name: answer[name] for name in ("status", "event_id", "epoch", "offset")} == {
        "status": "duplicate",
        "event_id": event["event_id"],
        "epoch": event["epoch"],
        "offset": event["offset"],
    }
    await post(relay, event | {"created_at": NOW_NS})  # in the other dialect
    assert len(await relay.published(CID)) == 1
    assert counted("relay_events_duplicate", door="webhook") == before + 2


async def test_what_another_relay_delivered_is_published_once_under_its_id(relay: Edges) -> None:
    body = {
        "type": "custom", "created_at": NOW_NS, "call_cid": CID, "custom": {"n": 1},
        "event_id": "theirs", "epoch": "elsewhere", "offset": 7,
    }  # fmt: skip
    assert (await post(relay, body))["status"] == "published"
    (event,) = await relay.published(CID)
    assert (event["event_id"], event["offset"]) == ("theirs", 1)
    assert event["epoch"] != "elsewhere"
    # It comes back from there, published anew, in the other dialect of times.
    again = event | {"epoch": "elsewhere", "offset": 8, "created_at": NOW_NS}
    reused = counted("relay_event_ids_reused", door="webhook")
    assert (await post(relay, again))["status"] == "duplicate"
    assert len(await relay.published(CID)) == 1
    assert counted("relay_event_ids_reused", door="webhook") == reused


async def test_what_a_door_would_wrap_is_known_inside_its_wrapping(relay: Edges) -> None:
    event = await published_once(relay)
    wrapped = {
        "type": "custom", "call_cid": CID, "custom": event, "event_id": "b", "epoch": "x",
        "offset": 3,
    }  # fmt: skip
    assert (await post_standard(relay, event, "id-1"))["status"] == "duplicate"
    assert (await post_standard(relay, wrapped, "id-2"))["status"] == "duplicate"
    assert (await post_standard(relay, wrapped | {"custom": {}}, "id-3"))["status"] == "published"


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": None}, {"offset": "1"}, {"event_id": 5}, {"call_cid": "no call"},
        {"call_cid": None},
    ],
)  # fmt: skip
def test_a_body_without_a_place_has_no_origin(change: dict[str, Any]) -> None:
    body = {"call_cid": CID, "event_id": "e", "epoch": "k", "offset": 1}
    assert events.origins(body) == (Origin(CID, "e", Position("k", 1)),)
    assert events.origins(body | change) == ()


def test_origins_are_found_at_every_level() -> None:
    body: dict[str, Any] = {"custom": {"deep": 1}}
    for n in range(3):
        body = {"call_cid": CID, "event_id": f"e{n}", "epoch": "k", "offset": n, "custom": body}
    assert [origin.event_id for origin in events.origins({"custom": body})] == ["e2", "e1", "e0"]
