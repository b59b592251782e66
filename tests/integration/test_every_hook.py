"""One event, every type of hook: a real relay, a receiver, moto's SQS and SNS."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import getstream.webhook as helpers
import httpx
import pytest

from relay.hooks import Hook
from tests.cloud import Cloud
from tests.egress.receiver import receiving
from tests.integration.doors import event_path, post
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

CALLS: Final = ["default:one", "default:two", "default:three"]
EVENTS: Final = 30


@pytest.fixture(params=["memory", "redis"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayProcess]:
    """A relay that may deliver to this machine, with a hook of a file."""
    server: RedisServer = request.getfixturevalue("redis_server")
    path = tmp_path / "hooks.toml"
    path.write_text(
        '[[hook]]\nid = "fixed"\nhook_type = "webhook"\n'
        'webhook_url = "http://127.0.0.1:9/"\nevent_types = ["call.never"]\n'
    )
    with RelayProcess(
        redis_url=server.url if request.param == "redis" else "",
        redis_prefix="hooks:",
        hook_allow="127.0.0.0/8",
        hooks=path,
        workers=2 if request.param == "redis" else 1,
    ) as relay:
        yield relay


async def configure(relay: RelayProcess, *hooks: dict[str, Any]) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        response = await client.patch(
            "/api/v2/app",
            params={"api_key": API_KEY},
            headers={"authorization": relay.token()},
            json={"event_hooks": list(hooks)},
        )
    assert response.status_code == 200, response.text
    listed: list[dict[str, Any]] = response.json()["app"]["event_hooks"]
    return listed


def to_aws(hook: Hook, **fields: object) -> dict[str, Any]:
    name = hook.hook_type.value
    target = "sqs_queue_url" if name == "sqs" else "sns_topic_arn"
    return {
        "hook_type": name, target: hook.aws.target, f"{name}_key": "AKIA",
        f"{name}_secret": "secret", "endpoint_url": hook.endpoint_url, **fields,
    }  # fmt: skip


async def test_every_hook_gets_every_event(own: RelayProcess, cloud: Cloud) -> None:
    queue = await cloud.queue(f"every-{time.time_ns()}.fifo")
    behind = await cloud.queue(f"behind-{time.time_ns()}")
    topic = await cloud.topic(f"every-{time.time_ns()}", behind)
    async with receiving() as receiver:
        listed = await configure(
            own,
            {"hook_type": "webhook", "webhook_url": receiver.url, "compression": True},
            to_aws(queue, timestamps="nanoseconds"),
            to_aws(topic),
        )
        assert listed[0]["id"] == "fixed"
        for number in range(EVENTS):
            body = {"custom": {"n": number}, "user_id": "jane"}
            response = await post(own, event_path(CALLS[number % 3]), body)
            assert response.status_code == 201, response.text
        requests = await receiver.until(EVENTS)
        queued = await cloud.messages(queue, EVENTS, tries=100)
        notified = await cloud.messages(behind, EVENTS, tries=100)
    check_webhooks([(request.body, request.headers) for request in requests])
    check_queue([message["Body"] for message in queued])
    texts = [json.loads(message["Body"])["Message"] for message in notified]
    assert numbers([json.loads(base64.b64decode(text)) for text in texts]) == set(range(EVENTS))


def numbers(events: list[dict[str, Any]]) -> set[int]:
    assert len(events) == EVENTS
    return {event["custom"]["n"] for event in events}


def check_webhooks(requests: list[tuple[bytes, dict[str, str]]]) -> None:
    bodies = [gzip.decompress(body) for body, _ in requests]
    assert numbers([json.loads(body) for body in bodies]) == set(range(EVENTS))
    for body, (_, headers) in zip(bodies, requests, strict=True):
        assert helpers.verify_signature(body, headers["x-signature"], API_SECRET)
    assert len({headers["x-webhook-id"] for _, headers in requests}) == EVENTS


def check_queue(texts: list[str]) -> None:
    events = [json.loads(base64.b64decode(text)) for text in texts]
    assert numbers(events) == set(range(EVENTS))
    assert all(isinstance(event["created_at"], int) for event in events)
    for cid in CALLS:  # a FIFO queue has each call's events in their order
        offsets = [event["offset"] for event in events if event["call_cid"] == cid]
        assert offsets == sorted(offsets)
