from __future__ import annotations

import pytest

from tests.edges import Edges, token

pytestmark = pytest.mark.anyio

C = "/video/call/default/demo"
V = "/api/v2/video/call/default/demo"
JOHN, JANE = token("john"), token("jane")
CONNECTION = "node-1-mac"


@pytest.fixture
async def call(relay: Edges) -> Edges:
    assert (await relay.post(C, headers=JOHN)).status_code == 201
    await relay.post(f"{C}/reaction", {"type": "wave"}, headers=JANE)
    return relay


async def test_a_blocked_user_is_told_and_put_out(call: Edges) -> None:
    assert (await call.post(f"{C}/block", {"user_id": "jane"}, headers=JOHN)).status_code == 201
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["user"]["id"]) == ("call.blocked_user", "jane")
    assert event["blocked_by_user"]["id"] == "john"
    assert call.announcer.members[-1] == ("call.blocked_user", ["jane"])
    assert call.watches.expelled == [("jane", "default:demo")]


async def test_a_blocked_user_can_do_nothing_in_the_call(call: Edges) -> None:
    await call.post(f"{V}/block", {"user_id": "jane"}, headers=token())
    call.watches.open[CONNECTION] = "jane"
    params = {"connection_id": CONNECTION}
    for method, path, body in (
        ("GET", C, None),
        ("POST", C, {}),
        ("POST", f"{C}/event", {"custom": {}}),
        ("POST", f"{C}/reaction", {"type": "x"}),
        ("POST", f"{C}/join", {"location": "x"}),
        ("POST", "/video/call/members", {"type": "default", "id": "demo"}),
        ("POST", f"{C}/members", {"remove_members": ["jane"]}),
    ):
        response = await call.client.request(
            method, path, json=body, params={"api_key": "key"} | params, headers=JANE
        )
        assert (response.status_code, response.json()["code"]) == (403, 17), path
        assert "blocked" in response.json()["message"]
    assert call.watches.attached == []
    found = await call.post("/video/calls", {}, headers=JANE)
    assert found.json()["calls"] == []


async def test_an_unblocked_user_is_back(call: Edges) -> None:
    await call.post(f"{C}/block", {"user_id": "jane"}, headers=JOHN)
    await call.post(f"{C}/unblock", {"user_id": "jane"}, headers=JOHN)
    assert (await call.kinds())[-1] == "call.unblocked_user"
    assert (await call.post(C, headers=JANE)).status_code == 201


async def test_a_kicked_user_may_come_back(call: Edges) -> None:
    await call.post(f"{C}/kick", {"user_id": "jane"}, headers=JOHN)
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["kicked_by_user"]["id"]) == ("call.kicked_user", "john")
    assert call.watches.expelled == [("jane", "default:demo")]
    assert (await call.post(C, headers=JANE)).status_code == 201


async def test_a_kicked_user_may_be_kept_out(call: Edges) -> None:
    body = {"user_id": "jane", "block": True, "kicked_by_id": "mod"}
    await call.post(f"{V}/kick", body, headers=token())
    assert (await call.kinds())[-2:] == ["call.kicked_user", "call.blocked_user"]
    assert (await call.post(C, headers=JANE)).status_code == 403


async def test_only_who_manages_the_call_moderates(call: Edges) -> None:
    for path in ("block", "unblock", "kick"):
        response = await call.post(f"{C}/{path}", {"user_id": "john"}, headers=JANE)
        assert (response.status_code, response.json()["code"]) == (403, 17)
    assert call.watches.expelled == []
