"""Hooks of real relays: from the PATCH to the delivery, round a loop, and through a stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from relay import signing
from tests.egress.receiver import Peer, Receiver, receiving, status
from tests.integration.doors import event_path, post, post_webhook, webhook
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.redis_server import RedisServer, running

pytestmark = pytest.mark.anyio

CID = "default:hooked"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


async def set_hooks(relay: RelayProcess, *hooks: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        response = await client.patch(
            "/api/v2/app",
            params={"api_key": API_KEY},
            json={"event_hooks": hooks},
            headers={"authorization": relay.token(), "stream-auth-type": "jwt"},
        )
    assert response.status_code == 200, response.text


def to(url: str, **fields: Any) -> dict[str, Any]:
    return {"hook_type": "webhook", "webhook_url": url, **fields}


async def publish(relay: RelayProcess, *numbers: int) -> None:
    for n in numbers:
        body = {"custom": {"n": n}, "user_id": "jane"}
        response = await post(relay, event_path(CID), body)
        assert response.status_code == 201, response.text


async def get(relay: RelayProcess, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        return await client.get(path)


def numbers(receiver: Receiver) -> list[int]:
    return [json.loads(request.body)["custom"]["n"] for request in receiver.requests]


@pytest.mark.parametrize("broker", ["memory", "redis"])
async def test_from_the_answer_on_every_event_is_delivered_and_signed(
    broker: str, receiver: Receiver, redis_server: RedisServer
) -> None:
    url = redis_server.url if broker == "redis" else ""
    with RelayProcess(redis_url=url, redis_prefix="hooks:", hook_allow="127.0.0.0/8") as relay:
        await publish(relay, 0)
        await set_hooks(relay, to(receiver.url))
        await publish(relay, *range(1, 21))
        requests = await receiver.until(20)
        assert sorted(numbers(receiver)) == list(range(1, 21))
        for request in requests:
            signing.verify_stream(request.body, request.headers["x-signature"], [API_SECRET])
            assert request.headers["x-webhook-attempt"] == "1"
        metrics = (await get(relay, "/metrics")).text
        assert "relay_hook_delivered_total{" in metrics
        await anyio.to_thread.run_sync(relay.stop)


async def test_a_hook_that_leads_back_to_the_relay_goes_round_once_only(
    receiver: Receiver,
) -> None:
    with RelayProcess(hook_allow="127.0.0.0/8") as relay:
        await set_hooks(
            relay, to(f"{relay.base_url}/webhooks/stream"), to(receiver.url, ordered=True)
        )
        for n in range(5):
            assert (await post_webhook(relay, webhook(CID, {"n": n}))).status_code == 200
        await receiver.until(5)
        for _ in range(100):
            metrics = (await get(relay, "/metrics")).text
            if 'relay_events_duplicate_total{door="webhook"} 5.0' in metrics:
                break
            await asyncio.sleep(0.05)
        assert 'relay_events_duplicate_total{door="webhook"} 5.0' in metrics
        assert 'relay_events_published_total{door="webhook",kind="kept"} 5.0' in metrics
        assert numbers(receiver) == [0, 1, 2, 3, 4]
        await anyio.to_thread.run_sync(relay.stop)


async def test_a_stop_finishes_what_is_under_way_and_another_process_goes_on(
    receiver: Receiver, redis_server: RedisServer
) -> None:
    gate = asyncio.Event()

    async def later(peer: Peer) -> bool:
        await gate.wait()
        return await status(200)(peer)

    receiver.answers = [later]
    settings = {"redis_url": redis_server.url, "redis_prefix": "stop:", "hook_lease": 10}
    with RelayProcess(**settings, hook_allow="127.0.0.0/8") as first:
        await set_hooks(first, to(receiver.url, ordered=True))
        await publish(first, 1, 2)
        await receiver.until(1)
        stopping = asyncio.create_task(anyio.to_thread.run_sync(first.stop))
        await anyio.to_thread.run_sync(first.wait_for_line, "handed over")
        gate.set()
        await stopping
    assert numbers(receiver) == [1]
    with RelayProcess(**settings, hook_allow="127.0.0.0/8") as second:
        await receiver.until(2)
        assert numbers(receiver) == [1, 2]
        assert receiver.requests[1].headers["x-webhook-attempt"] == "1"
        await anyio.to_thread.run_sync(second.stop)


async def test_a_hook_that_keeps_failing_is_shown_and_leaves_the_relay_ready(
    receiver: Receiver,
) -> None:
    receiver.answers = [status(404)]
    with RelayProcess(hook_allow="127.0.0.0/8") as relay:
        await set_hooks(relay, to(receiver.url))
        await publish(relay, *range(30))
        await anyio.to_thread.run_sync(relay.wait_for_line, "hook keeps failing")
        response = await get(relay, "/readyz")
        assert response.status_code == 200
        [shown] = response.json()["warnings"]
        assert "left alone" in shown
        assert "relay_hook_open{" in (await get(relay, "/metrics")).text


async def test_hooks_of_the_file_return_after_redis_has_forgotten_everything(
    receiver: Receiver, tmp_path: Any
) -> None:
    file = tmp_path / "hooks.toml"
    file.write_text(
        f'[[hook]]\nid = "file"\nhook_type = "webhook"\nwebhook_url = "{receiver.url}"\n'
    )
    with running() as server:
        settings = {"redis_url": server.url, "hook_lease": 2, "hooks": str(file)}
        with RelayProcess(**settings, hook_allow="127.0.0.0/8") as relay:
            await publish(relay, 1)
            await receiver.until(1)
            server.kill()
            server.start()
            await anyio.to_thread.run_sync(relay.wait_for_line, "the hooks were forgotten")
            await publish(relay, 2)
            await receiver.until(2)
            assert numbers(receiver) == [1, 2]
            relay.kill()
