"""The sink of all hooks: each type goes its way, and a missing library is said, not raised."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import AsyncIterator

import pytest

from relay.egress.any_sink import AnySink, has_aws
from relay.egress.sinks import Delivery
from relay.forwarded import read_networks
from relay.hooks import AuthType, Hook, HookType
from relay.retry import Outcome
from tests.egress.receiver import receiving, status

pytestmark = pytest.mark.anyio

DELIVERY = Delivery(
    delivery_id="d", event_id="e", cid="default:a", type="custom", body=b"{}", attempt=1
)


@pytest.fixture
async def sink() -> AsyncIterator[AnySink]:
    made = AnySink(
        api_key="key", secret="secret", clock=lambda: 0, networks=read_networks("127.0.0.0/8")
    )
    yield made
    await made.aclose()


def queue(url: str) -> Hook:
    return Hook(
        id="q", hook_type=HookType.SQS, sqs_queue_url=f"{url}/1/q", sqs_region="us-east-1",
        sqs_auth_type=AuthType.KEYS, sqs_key="k", sqs_secret="s", endpoint_url=url,
    )  # fmt: skip


async def test_each_type_of_hook_goes_its_way(sink: AnySink) -> None:
    async with receiving() as receiver:
        webhook = Hook(id="w", hook_type=HookType.WEBHOOK, webhook_url=receiver.url)
        assert (await sink.send(webhook, DELIVERY, 5.0)).outcome is Outcome.DELIVERED
        receiver.answers = [status(403, b'{"__type":"AccessDenied"}')]
        result = await sink.send(queue(receiver.url), DELIVERY, 5.0)
    assert result.outcome is Outcome.REFUSED
    assert b"AccessDenied" in result.answer
    assert "x-webhook-id" in receiver.requests[0].headers
    assert "AmazonSQS.SendMessageBatch" in receiver.requests[1].headers["x-amz-target"]


async def test_without_the_library_a_queue_is_refused_and_says_what_to_install(
    sink: AnySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_aws()
    found = importlib.util.find_spec

    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == "aiobotocore" else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert not has_aws()
    result = await sink.send(queue("http://127.0.0.1:1"), DELIVERY, 5.0)
    assert result.outcome is Outcome.REFUSED
    assert b"install relay[aws]" in result.answer
    assert "install relay[aws]" in ((await sink.check(queue("http://127.0.0.1:1"))).error or "")
