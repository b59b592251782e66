from __future__ import annotations

import pytest

from tests.edges import Edges

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "path", ["/video/call_client_event", "/api/v2/video/call_client_event?api_key=nobody"]
)
@pytest.mark.parametrize("content", [b'{"events":[]}', b"", b"no json"])
async def test_telemetry_is_taken_from_anyone_and_forgotten(
    relay: Edges, path: str, content: bytes
) -> None:
    response = await relay.client.post(path, content=content)
    assert response.status_code == 201
    assert response.json().keys() == {"duration"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_browser_learns_where_the_relay_is(relay: Edges, method: str) -> None:
    response = await relay.client.request(method, "/hint", headers={"origin": "https://x.example"})
    assert response.status_code == 200
    assert response.headers["x-amz-cf-pop"] == "relay"
    assert "X-Amz-Cf-Pop" in response.headers["access-control-expose-headers"]
