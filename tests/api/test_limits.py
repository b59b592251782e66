from __future__ import annotations

import pytest

from relay.errors import Unavailable
from tests.edges import KEY, NOW_NS, Edges, counted, edges, token

pytestmark = pytest.mark.anyio

C = "/video/call/default/demo"
JOHN = token("john")
NOW_S = NOW_NS // 1_000_000_000
RESET_S = (NOW_S // 60 + 1) * 60


def limits(headers: object) -> tuple[str, str, str]:
    named = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    return tuple(headers[name] for name in named)  # type: ignore[index, return-value]


async def test_every_answer_tells_what_is_left(relay: Edges) -> None:
    for left in (299, 298):
        response = await relay.post(C, headers=JOHN)
        assert limits(response.headers) == ("300", str(left), str(RESET_S))


async def test_a_refusal_tells_it_too(relay: Edges) -> None:
    response = await relay.post(f"{C}/event", {"custom": 7}, headers=JOHN)
    assert response.status_code == 400
    assert limits(response.headers) == ("300", "299", str(RESET_S))


async def test_one_too_many_waits_for_the_next_minute() -> None:
    async with edges(http_rate=2) as relay:
        before = counted("relay_rate_limited", operation="SendCallEvent")
        for _ in range(2):
            response = await relay.post(f"{C}/event", {"custom": {}}, headers=JOHN)
            assert response.status_code == 201
        response = await relay.post(f"{C}/event", {"custom": {}}, headers=JOHN)
        assert (response.status_code, response.json()["code"]) == (429, 9)
        assert limits(response.headers) == ("2", "0", str(RESET_S))
        assert int(response.headers["retry-after"]) == RESET_S - NOW_S
        assert counted("relay_rate_limited", operation="SendCallEvent") == before + 1
        assert len(await relay.published("default:demo")) == 2
        # Other operations and other users are not the sufferers.
        assert (await relay.post(C, headers=JOHN)).status_code == 201
        response = await relay.post(f"{C}/event", {"custom": {}}, headers=token("jane"))
        assert response.status_code == 201
        relay.clock.forward(RESET_S - NOW_S)
        response = await relay.post(f"{C}/event", {"custom": {}}, headers=JOHN)
        assert response.status_code == 201


async def test_servers_are_exempt_and_told_so() -> None:
    async with edges(http_rate=1) as relay:
        for _ in range(3):
            response = await relay.post(
                f"{C}/event", {"custom": {}, "user_id": "john"}, headers=token()
            )
            assert response.status_code == 201
            assert limits(response.headers) == ("1", "1", str(RESET_S))


async def test_guests_are_limited_by_their_address() -> None:
    async with edges(http_rate=1) as relay:
        for status in (201, 429):
            response = await relay.post("/video/guest", {"user": {"id": f"g{status}"}})
            assert response.status_code == status


async def test_no_limit_is_no_header() -> None:
    async with edges(http_rate=0) as relay:
        response = await relay.post(C, headers=JOHN)
        assert "x-ratelimit-limit" not in response.headers


async def test_requests_go_on_when_they_cannot_be_counted(
    relay: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> int:
        raise Unavailable("Redis is away")

    monkeypatch.setattr(relay.store, "spend", away)
    response = await relay.client.get(
        "/api/v2/video/calltypes", params={"api_key": KEY}, headers=token()
    )
    assert response.status_code == 200
    assert (await relay.post(C, headers=JOHN)).status_code == 201


async def test_a_server_can_ask_for_the_limits(relay: Edges) -> None:
    response = await relay.client.get(
        "/api/v2/rate_limits", params={"api_key": KEY, "endpoints": "GetCall"}, headers=token()
    )
    assert response.json()["web"] == {"GetCall": {"limit": 300, "remaining": 300, "reset": RESET_S}}
