"""Each door an event can come in by, as a function that sends one event through a process."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from relay import signing
from relay.publisher import AsyncPublisher
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import connected

Sender = Callable[[RelayProcess, RedisServer, str, dict[str, Any]], Awaitable[None]]


async def post(
    relay: RelayProcess, path: str, body: object, user_id: str | None = None, **headers: str
) -> httpx.Response:
    """Send a request as a user, or as a server without one."""
    sent = {"authorization": relay.token(user_id), "stream-auth-type": "jwt", **headers}
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as client:
        return await client.post(path, params={"api_key": API_KEY}, json=body, headers=sent)


def event_path(cid: str, root: str = "/api/v2/video") -> str:
    return f"{root}/call/{cid.replace(':', '/')}/event"


async def post_webhook(
    relay: RelayProcess, body: bytes, client: httpx.AsyncClient | None = None
) -> httpx.Response:
    """Send a signed webhook."""
    signature = signing.stream_signature(body, API_SECRET)
    headers = {"x-api-key": API_KEY, "x-signature": signature, "x-webhook-id": "an id"}
    if client is not None:
        return await client.post("/webhooks/stream", content=body, headers=headers)
    async with httpx.AsyncClient(base_url=relay.base_url, timeout=10) as own:
        return await own.post("/webhooks/stream", content=body, headers=headers)


def webhook(cid: str, custom: dict[str, Any]) -> bytes:
    """Return the body of a webhook of now."""
    now_ns = time.time_ns()
    jane = {"id": "jane", "role": "user", "created_at": now_ns, "updated_at": now_ns}
    event = {"type": "custom", "created_at": now_ns, "call_cid": cid, "custom": custom}
    return json.dumps({**event, "user": jane}).encode()


async def by_webhook(relay: RelayProcess, _: RedisServer, cid: str, custom: Any) -> None:
    response = await post_webhook(relay, webhook(cid, custom))
    assert response.status_code == 200, response.text


async def by_server(relay: RelayProcess, _: RedisServer, cid: str, custom: Any) -> None:
    response = await post(relay, event_path(cid), {"custom": custom, "user_id": "jane"})
    assert response.status_code == 201, response.text


async def by_user(relay: RelayProcess, _: RedisServer, cid: str, custom: Any) -> None:
    response = await post(relay, event_path(cid, "/video"), {"custom": custom}, "jane")
    assert response.status_code == 201, response.text


async def by_socket(relay: RelayProcess, _: RedisServer, cid: str, custom: Any) -> None:
    async with connected(relay, "jane") as jane:
        await jane.send(cid, custom)


async def by_xadd(_: RelayProcess, redis: RedisServer, cid: str, custom: Any) -> None:
    event = json.dumps({"call_cid": cid, "custom": custom, "user_id": "jane"})
    with redis.client() as client:
        client.xadd("pair:ingest", {"event": event})


async def by_publish(_: RelayProcess, redis: RedisServer, cid: str, custom: Any) -> None:
    event = json.dumps({"call_cid": cid, "custom": custom, "user_id": "jane"})
    with redis.client() as client:
        assert client.publish("pair:live", event) == 2  # both processes hear it


async def by_publisher(_: RelayProcess, redis: RedisServer, cid: str, custom: Any) -> None:
    async with AsyncPublisher(redis.url, prefix="pair:") as publisher:
        await publisher.publish(cid, custom=custom, user_id="jane")


DOORS: dict[str, Sender] = {
    "webhook": by_webhook,
    "a server's request": by_server,
    "a user's request": by_user,
    "a socket": by_socket,
    "XADD": by_xadd,
    "PUBLISH": by_publish,
    "relay.Publisher": by_publisher,
}
