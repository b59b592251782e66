"""Calls that change: updated, ended, deleted, live and backstage, and who may do it."""

from __future__ import annotations

from typing import Any

import pytest

from relay import wire
from relay.users import Profile
from tests.edges import NOW_NS, Edges, edges, token

pytestmark = pytest.mark.anyio

C = "/video/call/default/demo"
V = "/api/v2/video/call/default/demo"
JOHN, JANE = token("john"), token("jane")


@pytest.fixture
async def call(relay: Edges) -> Edges:
    """A call of john's with the members jane and jim."""
    body = {"data": {"custom": {"a": 1}, "members": [{"user_id": "jane"}, {"user_id": "jim"}]}}
    assert (await relay.post(C, body, headers=JOHN)).status_code == 201
    return relay


async def patch(relay: Edges, body: object, headers: dict[str, str] = JOHN, path: str = C) -> Any:
    return await relay.client.patch(
        path, content=wire.encode(body), params={"api_key": "key"}, headers=headers
    )


# -- creation -----------------------------------------------------------------------------------


async def test_a_new_call_is_announced_to_its_members(call: Edges) -> None:
    [created] = await call.published("default:demo")
    assert created["type"] == "call.created"
    assert created["call"]["cid"] == "default:demo"
    assert [member["user_id"] for member in created["members"]] == ["jane", "jim"]
    assert call.announcer.members == [("call.created", ["jane", "jim"])]


async def test_a_call_that_exists_is_announced_to_nobody(call: Edges) -> None:
    assert (await call.post(C, headers=JANE)).json()["created"] is False
    assert await call.kinds() == ["call.created"]


async def test_a_call_that_could_not_be_announced_is_announced_when_its_creator_asks_again(
    relay: Edges,
) -> None:
    relay.broker.away = True
    assert (await relay.post(C, headers=JOHN)).status_code == 503
    relay.broker.away = False
    assert (await relay.post(C, headers=JANE)).status_code == 201
    assert await relay.kinds() == []
    for _ in range(2):
        assert (await relay.post(C, headers=JOHN)).status_code == 201
    assert await relay.kinds() == ["call.created"]


async def test_what_a_call_is_created_with_is_kept(relay: Edges) -> None:
    data = {
        "custom": {"a": 1}, "team": "red", "video": True, "starts_at": NOW_NS,
        "members": [{"user_id": "jane", "role": "host", "custom": {"seat": 7}}],
        "settings_override": {"audio": {"mic_default_on": True}},
    }  # fmt: skip
    answer = (await relay.post(C, {"data": data}, headers=JOHN)).json()
    assert (answer["call"]["team"], answer["call"]["starts_at"]) == ("red", wire.rfc3339(NOW_NS))
    assert answer["call"]["settings"]["audio"]["mic_default_on"] is True
    [member] = answer["members"]
    assert (member["user_id"], member["role"], member["custom"]) == ("jane", "host", {"seat": 7})
    assert (await relay.store.user("jane")) is not None


async def test_the_answer_shows_as_many_members_as_asked_for(call: Edges) -> None:
    response = await call.client.get(
        C, params={"api_key": "key", "members_limit": "1"}, headers=JANE
    )
    assert [member["user_id"] for member in response.json()["members"]] == ["jane"]
    assert response.json()["membership"]["user_id"] == "jane"


@pytest.mark.parametrize(
    ("asked", "kind"), [("ring", "call.ring"), ("notify", "call.notification")]
)
async def test_a_call_rings_for_its_members(call: Edges, asked: str, kind: str) -> None:
    await call.post(C, {asked: True}, headers=JOHN)
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["user"]["id"]) == (kind, "john")
    assert call.announcer.members[-1] == (kind, ["jane", "jim"])


# -- update -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [C, V])
async def test_a_call_is_updated_and_the_watchers_hear_of_it(call: Edges, path: str) -> None:
    call.clock.forward(1)
    body = {"custom": {"b": 2}, "settings_override": {"audio": {"hifi_audio_enabled": True}}}
    response = await patch(call, body, path=path)
    assert response.status_code == 200
    shown = response.json()["call"]
    assert shown["custom"] == {"b": 2}
    assert shown["settings"]["audio"]["hifi_audio_enabled"] is True
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["call"]["custom"]) == ("call.updated", {"b": 2})
    assert event["call"]["updated_at"] > event["call"]["created_at"]
    assert "update-call" in event["capabilities_by_role"]["host"]


async def test_what_is_not_said_stays(call: Edges) -> None:
    await patch(call, {"settings_override": {"audio": {"mic_default_on": True}}})
    response = await patch(call, {"starts_at": wire.rfc3339(NOW_NS + 5)})
    shown = response.json()["call"]
    assert shown["custom"] == {"a": 1}
    assert shown["starts_at"] == wire.rfc3339(NOW_NS + 5)
    assert shown["settings"]["audio"]["mic_default_on"] is True


async def test_who_does_not_manage_the_call_cannot_change_it(call: Edges) -> None:
    for headers in (JANE, token("nobody")):
        response = await patch(call, {"custom": {}}, headers)
        assert (response.status_code, response.json()["code"]) == (403, 17)
        assert "update-call" in response.json()["message"]
    assert await call.kinds() == ["call.created"]


async def test_a_server_changes_what_it_likes(call: Edges) -> None:
    assert (await patch(call, {"custom": {}}, token(), V)).status_code == 200


async def test_a_call_that_is_not_there_cannot_be_changed(relay: Edges) -> None:
    for path in ("mark_ended", "delete", "members", "block", "unblock", "kick", "go_live"):
        response = await relay.post(f"{V}/{path}", {"user_id": "x"}, headers=token())
        assert (response.status_code, response.json()["code"]) == (404, 16)
    assert (await patch(relay, {"custom": {}}, token(), V)).json()["code"] == 16


# -- end and delete -----------------------------------------------------------------------------


async def test_an_ended_call_says_when_and_by_whom(call: Edges) -> None:
    await call.joins.join("default:demo", (await call.store.users(["jane"]))["jane"], "user")
    response = await call.post(f"{C}/mark_ended", headers=JOHN)
    assert response.status_code == 201
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["user"]["id"]) == ("call.ended", "john")
    assert event["call"]["ended_at"] == wire.rfc3339(NOW_NS)
    assert call.announcer.members[-1] == ("call.ended", ["jane", "jim"])
    assert call.joins.running == {}


async def test_ending_an_ended_call_announces_nothing(call: Edges) -> None:
    for _ in range(2):
        assert (await call.post(f"{V}/mark_ended", headers=token())).status_code == 201
    assert await call.kinds() == ["call.created", "call.ended"]


@pytest.mark.parametrize("action", ["mark_ended", "delete"])
async def test_an_end_that_could_not_be_announced_is_announced_by_its_repeat(
    call: Edges, action: str
) -> None:
    call.broker.away = True
    assert (await call.post(f"{V}/{action}", headers=token())).status_code == 503
    call.broker.away = False
    assert (await call.post(f"{V}/{action}", headers=token())).status_code == 201
    kind = "call.ended" if action == "mark_ended" else "call.deleted"
    assert await call.kinds() == ["call.created", kind]
    assert call.announcer.members[-1] == (kind, ["jane", "jim"])


async def test_an_old_end_is_not_announced_again(call: Edges) -> None:
    """The ids of what was announced are forgotten at some time."""
    await call.post(f"{V}/mark_ended", headers=token())
    call.announcer.known.clear()  # another process is asked
    call.clock.forward(7201)
    call.broker.away = True
    assert (await call.post(f"{V}/mark_ended", headers=token())).status_code == 201


async def test_an_end_is_announced_by_a_repeat_that_comes_an_hour_later(call: Edges) -> None:
    await call.joins.join("default:demo", (await call.store.users(["jane"]))["jane"], "user")
    call.broker.away = True
    assert (await call.post(f"{V}/mark_ended", headers=token())).status_code == 503
    call.broker.away = False
    call.clock.forward(3600)
    assert (await call.post(f"{V}/mark_ended", headers=token())).status_code == 201
    assert await call.kinds() == ["call.created", "call.ended"]
    assert call.joins.running == {}


@pytest.mark.parametrize(("later_s", "kinds"), [(99, ["call.ended"]), (101, [])])
async def test_a_repeat_is_recognised_for_as_long_as_ids_are_remembered(
    later_s: float, kinds: list[str]
) -> None:
    async with edges(repeats_s=100.0) as relay:
        await relay.post(C, headers=JOHN)
        relay.broker.away = True
        assert (await relay.post(f"{V}/mark_ended", headers=token())).status_code == 503
        relay.broker.away = False
        relay.clock.forward(later_s)
        assert (await relay.post(f"{V}/mark_ended", headers=token())).status_code == 201
        assert await relay.kinds() == ["call.created", *kinds]


async def test_a_session_of_an_ended_call_is_ended_whenever_that_is_asked(call: Edges) -> None:
    """The request that ended the call may have been cut off before its session."""
    await call.post(f"{V}/mark_ended", headers=token())
    call.clock.forward(7201)
    await call.joins.join("default:demo", (await call.store.users(["jane"]))["jane"], "user")
    assert (await call.post(f"{V}/mark_ended", headers=token())).status_code == 201
    assert call.joins.running == {}


async def test_a_deleted_call_is_gone(call: Edges) -> None:
    response = await call.post(f"{V}/delete", {"hard": True}, headers=token())
    assert response.json()["call"]["cid"] == "default:demo"
    assert (await call.kinds())[-1] == "call.deleted"
    assert (await call.post(f"{V}/delete", headers=token())).status_code == 404
    assert await call.store.call("default:demo") is None


async def test_a_call_goes_live_and_back(call: Edges) -> None:
    assert (await call.post(f"{C}/stop_live", headers=JOHN)).json()["call"]["backstage"] is True
    assert (await call.post(f"{C}/go_live", headers=JOHN)).json()["call"]["backstage"] is False
    assert await call.kinds() == [
        "call.created", "call.updated", "call.live_started", "call.updated",
    ]  # fmt: skip


# -- permissions --------------------------------------------------------------------------------


async def test_a_capability_is_granted_to_one_user(call: Edges) -> None:
    body = {"user_id": "jane", "grant_permissions": ["update-call"], "revoke_permissions": []}
    assert (await call.post(f"{V}/user_permissions", body, headers=token())).status_code == 201
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["user"]["id"]) == ("call.permissions_updated", "jane")
    assert "update-call" in event["own_capabilities"]
    assert (await patch(call, {"custom": {}}, JANE)).status_code == 200
    assert (await patch(call, {"custom": {}}, token("jim"))).status_code == 403


async def test_a_capability_is_taken_away(call: Edges) -> None:
    body = {"user_id": "jane", "revoke_permissions": ["create-reaction"]}
    await call.post(f"{V}/user_permissions", body, headers=token())
    response = await call.post(f"{C}/reaction", {"type": "wave"}, headers=JANE)
    assert (response.status_code, response.json()["code"]) == (403, 17)


async def test_a_user_asks_for_a_capability(call: Edges) -> None:
    body = {"permissions": ["send-audio"]}
    assert (await call.post(f"{C}/request_permission", body, headers=JANE)).status_code == 201
    event = (await call.published("default:demo"))[-1]
    assert (event["type"], event["permissions"]) == ("call.permission_request", ["send-audio"])


async def test_a_role_of_the_users_own_counts(call: Edges) -> None:
    await call.store.save_user("jim", Profile(role="admin"), NOW_NS)
    assert (await patch(call, {"custom": {}}, token("jim"))).status_code == 200


async def test_a_calls_token_can_carry_a_role(call: Edges) -> None:
    host = token("jim", call_cids=["default:demo"], role="host")
    assert (await patch(call, {"custom": {}}, host)).status_code == 200
    other = token("jim", call_cids=["default:other"], role="host")
    assert (await patch(call, {"custom": {}}, other)).status_code == 403


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("", {"data": {"members": {}}}, "data.members "),
        ("", {"data": {"members": ["jane"]}}, "data.members[0] "),
        ("", {"data": {"members": [{"user_id": "a b"}]}}, "data.members[0].user_id "),
        ("", {"data": {"members": [{"user_id": "a", "role": 7}]}}, "data.members[0].role "),
        ("", {"data": {"members": [{"user_id": "a", "custom": []}]}}, "data.members[0].custom "),
        ("", {"data": {"members": [{"user_id": str(n)} for n in range(101)]}}, "data.members has"),
        ("", {"data": {"starts_at": "soon"}}, "data.starts_at "),
        ("", {"data": {"team": 7}}, "data.team "),
        ("", {"data": {"video": "yes"}}, "data.video "),
        ("", {"data": {"settings_override": []}}, "data.settings_override "),
        ("", {"ring": 7}, "ring "),
        ("", {"notify": "true"}, "notify "),
        ("", {"members_limit": -1}, "members_limit "),
        ("", {"members_limit": 10**30}, "members_limit "),
        ("/members", {"update_members": [{"role": "x"}]}, "update_members[0].user_id "),
        ("/members", {"remove_members": [7]}, "remove_members[0] "),
        ("/members", {"remove_members": "jane"}, "remove_members "),
        (
            "/members",
            {"update_members": [{"user_id": "a"}], "remove_members": ["a"]},
            "remove_members and update_members ",
        ),
        ("/block", {}, "user_id "),
        ("/block", {"user_id": ["x"]}, "user_id "),
        ("/block", {"user_id": "john"}, "user_id "),
        ("/unblock", {"user_id": 7}, "user_id "),
        ("/kick", {"user_id": "a b"}, "user_id "),
        ("/kick", {"user_id": "jane", "block": 1}, "block "),
        (
            "/user_permissions",
            {"user_id": "x", "grant_permissions": ["fly"]},
            "grant_permissions[0]",
        ),
        ("/user_permissions", {"user_id": "x", "revoke_permissions": 7}, "revoke_permissions "),
        (
            "/user_permissions",
            {"user_id": "x", "grant_permissions": ["end-call"], "revoke_permissions": ["end-call"]},
            "revoke_permissions and grant_permissions ",
        ),
        ("/delete", {"hard": "very"}, "hard "),
    ],
)
async def test_a_wrong_field_is_refused_by_its_path_and_changes_nothing(
    call: Edges, path: str, body: dict[str, Any], field: str
) -> None:
    before = await call.store.call("default:demo")
    if path == "":
        body = {**body, "data": {"created_by_id": "john", **body.get("data", {})}}
    response = await call.post(f"{V}{path}", body, headers=token())
    assert (response.status_code, response.json()["code"]) == (400, 4)
    assert response.json()["message"].startswith(field)
    assert await call.store.call("default:demo") == before
    assert await call.kinds() == ["call.created"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"custom": 7}, "custom "),
        ({"starts_at": True}, "starts_at "),
        ({"settings_override": {"audio": {"mic_default_on": "on"}}}, "settings_override.audio."),
    ],
)
async def test_a_wrong_field_of_an_update_too(
    call: Edges, body: dict[str, Any], field: str
) -> None:
    before = await call.store.call("default:demo")
    response = await patch(call, body)
    assert (response.status_code, response.json()["code"]) == (400, 4)
    assert response.json()["message"].startswith(field)
    assert await call.store.call("default:demo") == before
