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


async def test_a_blocked_member_hears_nothing_of_the_call(relay: Edges) -> None:
    members = {"members": [{"user_id": "jane"}, {"user_id": "jim"}]}
    await relay.post(C, {"data": members}, headers=JOHN)
    await relay.post(f"{C}/block", {"user_id": "jane"}, headers=JOHN)
    told = len(relay.announcer.members)
    await relay.post(f"{C}/ring", {}, headers=JOHN)
    await relay.post(f"{C}/members", {"update_members": [{"user_id": "zoe"}]}, headers=JOHN)
    await relay.post(f"{C}/accept", {}, headers=token("jim"))
    await relay.post(f"{C}/mark_ended", {}, headers=JOHN)
    await relay.post(f"{C}/members", {"remove_members": ["jane"]}, headers=JOHN)
    await relay.post(f"{C}/delete", {}, headers=JOHN)
    heard = relay.announcer.members[told:]
    assert [kind for kind, _ in heard] == [
        "call.ring", "call.member_added", "call.accepted", "call.ended", "call.member_removed",
        "call.deleted",
    ]  # fmt: skip
    assert all("jim" in user_ids and "jane" not in user_ids for _, user_ids in heard)


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


async def test_nobody_is_told_of_a_kick_that_is_refused(call: Edges) -> None:
    body = {"user_id": "jim", "revoke_permissions": ["block-users"]}
    await call.post(f"{C}/user_permissions", body, headers=token())
    for headers in (token("jim", role="moderator"), JOHN):
        before = await call.kinds()
        who = "john" if headers is JOHN else "jane"
        response = await call.post(f"{C}/kick", {"user_id": who, "block": True}, headers=headers)
        assert response.status_code in (400, 403)
        assert await call.kinds() == before


async def test_who_may_not_read_the_call_any_more_is_put_out(call: Edges) -> None:
    body = {"user_id": "jane", "revoke_permissions": ["read-call"]}
    for _ in range(2):  # the repeat as well: the first one may have been cut off
        await call.post(f"{C}/user_permissions", body, headers=JOHN)
    assert call.watches.expelled == [("jane", "default:demo")] * 2
    body = {"user_id": "jane", "grant_permissions": ["read-call"]}
    await call.post(f"{C}/user_permissions", body, headers=JOHN)
    assert len(call.watches.expelled) == 2


async def test_only_who_manages_the_call_moderates(call: Edges) -> None:
    for path in ("block", "unblock", "kick"):
        response = await call.post(f"{C}/{path}", {"user_id": "john"}, headers=JANE)
        assert (response.status_code, response.json()["code"]) == (403, 17)
    assert call.watches.expelled == []
