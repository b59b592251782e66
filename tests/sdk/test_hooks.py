"""What hooks get is what the helpers of Stream's SDKs verify and parse."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import getstream.webhook as helpers
import msgspec
import pytest
from getstream import Stream
from getstream.models import EventHook

from relay import events, users, wire
from relay.broker import Limits
from relay.broker.memory import MemoryBroker, MemoryOutbox
from relay.egress.any_sink import AnySink
from relay.egress.sinks import Delivery
from relay.forwarded import read_networks
from relay.hooks import Hook, HookType, Timestamps
from relay.retry import Outcome
from relay.users import Profile
from tests.cloud import Cloud
from tests.egress.receiver import receiving
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.redis_server import RedisServer
from tests.sdk.driver import FOLDER, node

pytestmark = [
    pytest.mark.anyio,
    # Its model of users wants fields that events' users have neither here nor at Stream.
    pytest.mark.filterwarnings("ignore:Missing value of non-optional type:RuntimeWarning"),
]

NOW_NS: Final = 1_795_348_800_123_456_789
CUSTOM: Final = {"render-animation": "balloons", "at": "2026-11-22T12:00:00Z", "n": [1, 2.5, None]}
DIALECTS: Final = [Timestamps.RFC3339, Timestamps.NANOSECONDS]


@pytest.fixture
async def sink() -> AsyncIterator[AnySink]:
    made = AnySink(
        api_key=API_KEY, secret=API_SECRET, clock=lambda: NOW_NS,
        networks=read_networks("127.0.0.0/8"),
    )  # fmt: skip
    yield made
    await made.aclose()


async def published() -> Delivery:
    """Return a custom event as the broker published it."""
    limits = Limits()
    broker = MemoryBroker(
        limits, lambda: NOW_NS, "node", outbox=MemoryOutbox(lambda: NOW_NS, limits)
    )
    user = users.changed(None, "john", Profile(name="John"), NOW_NS)
    event = events.custom_event(
        cid="default:demo", custom=wire.encode(CUSTOM), user=users.encoded(user), event_id="e1",
        now_ns=NOW_NS, sender="user:john", minted=False, volatile=False,
    )  # fmt: skip
    await broker.publish(event)
    [entry] = (await broker.history("default:demo", 0)).entries
    await broker.aclose()
    return Delivery(
        delivery_id="0d6c2b44-8f4e-4a39-bb0a-1a2b3c4d5e6f", event_id="e1", cid="default:demo",
        type="custom", body=entry.body, attempt=1,
    )  # fmt: skip


def forms(hook: Hook) -> list[Hook]:
    """Return a hook in both dialects, compressed and not."""
    return [
        msgspec.structs.replace(hook, timestamps=dialect, gzip=packed)
        for dialect in DIALECTS
        for packed in (False, True)
    ]


def by_node(deliveries: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Return what the helpers of both JavaScript SDKs make of deliveries."""
    done = subprocess.run(
        [node(), str(FOLDER / "webhook_helpers.mjs"), API_KEY, API_SECRET],
        input=json.dumps(deliveries), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, dict[str, Any]]] = json.loads(done.stdout)
    return found


def check_event(looked: dict[str, Any]) -> None:
    assert (looked["type"], looked["call_cid"]) == ("custom", "default:demo")
    assert looked["custom"] == CUSTOM
    assert looked["created_ms"] == pytest.approx(NOW_NS / 1e6, abs=1)


def check_python(event: Any) -> None:
    assert type(event).__name__ == "CustomVideoEvent"
    assert (event.type, event.call_cid, event.custom) == ("custom", "default:demo", CUSTOM)
    assert event.created_at.timestamp() == pytest.approx(NOW_NS / 1e9, abs=0.001)
    assert event.user.name == "John"


# -- webhooks -------------------------------------------------------------------------------------


async def test_webhooks_are_verified_and_parsed(sink: AnySink) -> None:
    delivery = await published()
    async with receiving() as receiver:
        for hook in forms(Hook(id="h", hook_type=HookType.WEBHOOK, webhook_url=receiver.url)):
            await sink.send(hook, delivery, 5.0)
    listed = []
    for number, request in enumerate(receiver.requests):
        packed = request.headers.get("content-encoding") == "gzip"
        plain = gzip.decompress(request.body) if packed else request.body
        signature = request.headers["x-signature"]
        assert packed == bool(number % 2)
        assert helpers.verify_signature(plain, signature, API_SECRET)
        if number >= 2:  # its typed parser takes no RFC 3339
            check_python(helpers.verify_and_parse_webhook(request.body, signature, API_SECRET))
        listed.append(
            {
                "kind": "webhook",
                "body": base64.b64encode(request.body).decode(),
                "plain": base64.b64encode(plain).decode(),
                "signature": signature,
            }
        )
    for looked in by_node(listed):
        for sdk in ("node", "chat"):
            check_event(looked[sdk])
            assert (looked[sdk]["verified"], looked[sdk]["forged"]) == (True, False)


# -- SQS and SNS ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqs", "sns"])
async def test_messages_are_parsed(sink: AnySink, cloud: Cloud, kind: str) -> None:
    delivery = await published()
    queue = await cloud.queue(f"sdk-{kind}")
    hook = queue if kind == "sqs" else await cloud.topic("sdk", queue)
    texts = []
    for form in forms(hook):
        assert (await sink.send(form, delivery, 5.0)).outcome is Outcome.DELIVERED
        [message] = await cloud.messages(queue, 1)
        texts.append(message["Body"])
    parse = helpers.parse_sqs if kind == "sqs" else helpers.parse_sns
    for text in texts[2:]:  # its typed parser takes no RFC 3339
        check_python(parse(text))
    for looked in by_node([{"kind": kind, "text": text} for text in texts]):
        check_event(looked["node"])
        check_event(looked["chat"])


# -- the app's settings ---------------------------------------------------------------------------


def test_the_python_sdk_configures_hooks(relay: RelayProcess) -> None:
    with Stream(API_KEY, API_SECRET, base_url=relay.base_url) as stream:
        mine = EventHook(
            hook_type="webhook", webhook_url="https://app.example/events", enabled=True,
            event_types=["custom"],
        )  # fmt: skip
        stream.update_app(event_hooks=[mine], enable_hook_payload_compression=True)
        [hook] = stream.get_app().data.app.event_hooks
        assert hook.id
        assert (hook.webhook_url, hook.event_types) == ("https://app.example/events", ["custom"])
        assert hook.created_at is not None
        again = stream.get_app().data.app.event_hooks
        again[0].enabled = False
        stream.update_app(event_hooks=[*again, mine])
        found = stream.get_app().data.app.event_hooks
        assert [(one.id == hook.id, one.enabled) for one in found] == [(True, False), (False, True)]
        stream.update_app(event_hooks=[])
        assert stream.get_app().data.app.event_hooks == []


async def test_the_node_sdk_configures_hooks_and_checks_a_queue(
    cloud: Cloud, redis_server: RedisServer
) -> None:
    queue = await cloud.queue("checked-by-node")
    with RelayProcess(redis_url=redis_server.url, hook_allow="127.0.0.0/8") as relay:
        done = await anyio.run_process(
            [node(), str(FOLDER / "hooks_by_node.mjs"), relay.base_url, API_KEY, API_SECRET,
             queue.sqs_queue_url],
        )  # fmt: skip
    told = json.loads(done.stdout)
    assert [hook.get("event_types") for hook in told["first"]] == [[], ["custom"]]
    [second] = told["second"]
    assert (second["id"], second["enabled"]) == (told["first"][0]["id"], False)
    assert told["left"] == []
    assert (told["found"]["status"], told["missing"]["status"]) == ("ok", "error")
    assert "NonExistentQueue" in told["missing"]["error"]
    assert told["refused"]["code"] == 4
    assert "event_hooks[0].webhook_url" in told["refused"]["message"]
