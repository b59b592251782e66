"""Hostile requests over real HTTP, on either broker: refused by name, and nothing comes of them.

tests/api/test_fuzz.py tries far more of them, on the same edges without a process around them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from relay import wire
from tests.conformance.required import check_answer
from tests.hostile import CALL_URL, CID, GOOD, OWNER, RAW, Operation, assert_refused, corrupted
from tests.processes import API_KEY, RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import Client, connected

pytestmark = pytest.mark.anyio

OPERATIONS = [
    Operation(method, f"{root}{below}", (method, below))
    for method, below in GOOD
    for root in ["/api/v2" if below == "/users" else "/video"]
]


@pytest.fixture(scope="module", params=["memory", "redis"])
def relay(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """A relay that lets a user ask as often as it likes."""
    settings: dict[str, Any] = {"http_rate": 0, "redis_prefix": "hostile:"}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        settings["redis_url"] = server.url
    with RelayProcess(**settings) as process:
        yield process


@pytest.fixture
async def client(relay: RelayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=relay.base_url, params={"api_key": API_KEY}, timeout=10
    ) as client:
        yield client


async def ask(
    relay: RelayProcess,
    client: httpx.AsyncClient,
    operation: Operation,
    content: bytes,
    sock: Client,
) -> httpx.Response:
    """Ask as whoever may."""
    token = relay.token(OWNER if operation.by_user else None)
    params = {"connection_id": sock.connection_id} if operation.path.endswith("/join") else {}
    response = await client.request(
        operation.method,
        operation.url,
        content=content,
        params={**client.params, **params},
        headers={"authorization": token, "stream-auth-type": "jwt"},
    )
    check_answer(operation.method, operation.url, response.status_code, response.json())
    return response


async def state(relay: RelayProcess, client: httpx.AsyncClient) -> Any:
    """Return what the relay says of the call and of its users."""
    headers = {"authorization": relay.token(), "stream-auth-type": "jwt"}
    found = [
        (await client.get(CALL_URL, headers=headers)).json(),
        (await client.get("/api/v2/users", headers=headers)).json(),
    ]
    return [{name: value for name, value in one.items() if name != "duration"} for one in found]


async def test_hostile_bodies_are_refused_and_change_nothing(
    relay: RelayProcess, client: httpx.AsyncClient
) -> None:
    async with connected(relay, OWNER) as john:
        create = Operation("POST", "/video/call/{type}/{id}", ("POST", "/call/{type}/{id}"))
        data = {"data": {"members": [{"user_id": "jane"}, {"user_id": "ben"}]}}
        created = await ask(relay, client, create, wire.encode(data), john)
        assert created.status_code == 201, created.text
        await john.watch(CID)
        before, heard = await state(relay, client), len(john.events)
        for operation in OPERATIONS:
            for path, body in corrupted(operation.key, GOOD[operation.key]):
                assert_refused(await ask(relay, client, operation, wire.encode(body), john), path)
            for content in RAW.values():
                assert_refused(await ask(relay, client, operation, content, john), "body")
        assert await state(relay, client) == before
        renew = Operation("PATCH", CALL_URL, ("PATCH", "/call/{type}/{id}"))
        assert (await ask(relay, client, renew, b'{"custom":{}}', john)).status_code == 200
        await john.send(CID, {"n": 1})
        events = await john.until_count(heard + 2)
        assert [event["type"] for event in events[heard:]] == ["call.updated", "custom"]
