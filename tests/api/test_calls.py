from __future__ import annotations

from typing import Any

import pytest

from relay import calls, permissions, wire
from relay.users import Profile
from tests.edges import KEY, NOW_NS, SECRET, Edges, token

pytestmark = pytest.mark.anyio

C = "/video/call/default/demo"
V = "/api/v2/video/call/default/demo"
JOHN = token("john")
ANONYMOUS = {"stream-auth-type": "anonymous"}


async def get(relay: Edges, path: str = C, headers: dict[str, str] = JOHN, **params: str) -> Any:
    return await relay.client.get(path, params={"api_key": KEY} | params, headers=headers)


# -- create and read ----------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "shown"), [(C, wire.rfc3339(NOW_NS)), (V, NOW_NS)])
async def test_a_call_is_created_by_asking_for_it(relay: Edges, path: str, shown: object) -> None:
    response = await relay.post(path, {"data": {"custom": {"a": NOW_NS}}}, headers=JOHN)
    assert response.status_code == 201
    answer = response.json()
    assert answer.keys() == {"call", "created", "duration", "members", "own_capabilities"}
    assert (answer["created"], answer["members"]) == (True, [])
    assert answer["own_capabilities"] == sorted(permissions.BASIC | permissions.MANAGING)
    assert answer["call"]["cid"] == "default:demo"
    assert answer["call"]["created_by"]["id"] == "john"
    assert answer["call"]["created_at"] == answer["call"]["created_by"]["created_at"] == shown
    assert answer["call"]["custom"] == {"a": NOW_NS}


async def test_a_call_that_exists_is_returned_as_it_is(relay: Edges) -> None:
    await relay.post(C, {"data": {"custom": {"a": 1}}}, headers=JOHN)
    relay.clock.forward(60)
    response = await relay.post(C, {"data": {"custom": {"b": 2}}}, headers=token("jane"))
    assert response.status_code == 201
    assert response.json()["created"] is False
    call = response.json()["call"]
    assert (call["custom"], call["created_by"]["id"]) == ({"a": 1}, "john")
    assert call["created_at"] == wire.rfc3339(NOW_NS)


async def test_a_creation_that_could_not_be_announced_is_announced_an_hour_later_and_once(
    relay: Edges,
) -> None:
    relay.broker.away = True
    assert (await relay.post(C, headers=JOHN)).status_code == 503
    relay.broker.away = False
    relay.clock.forward(3600)
    for user_id in ("jane", "john", "john"):
        assert (await relay.post(C, headers=token(user_id))).status_code == 201
    assert await relay.kinds() == ["call.created"]
    relay.broker.away = True
    assert (await relay.post(C, headers=JOHN)).status_code == 201, "known: nobody is asked"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"data":null,"ring":null}'])
async def test_the_body_may_be_absent(relay: Edges, content: bytes) -> None:
    response = await relay.client.post(
        C,
        content=content,
        params={"api_key": KEY},
        headers=JOHN | {"content-type": "application/x-www-form-urlencoded"},
    )
    assert response.status_code == 201


async def test_a_call_is_read_on_both_prefixes(relay: Edges) -> None:
    await relay.post(C, headers=JOHN)
    for path in (C, V):
        response = await get(relay, path)
        assert response.status_code == 200
        assert response.json().keys() == {"call", "duration", "members", "own_capabilities"}
    assert (await relay.client.head(C, params={"api_key": KEY}, headers=JOHN)).status_code == 200


async def test_a_call_that_was_never_created_cannot_be_read(relay: Edges) -> None:
    response = await get(relay)
    assert (response.status_code, response.json()["code"]) == (404, 16)
    await relay.post("/video/call/default/demo/event", {"custom": {}}, headers=JOHN)
    assert (await get(relay)).status_code == 404


async def test_a_creator_who_is_forgotten_is_shown_by_id(relay: Edges) -> None:
    call = calls.Call(cid="default:demo", created_by="ghost", created_at=NOW_NS, updated_at=NOW_NS)
    await relay.store.create_call(call)
    assert (await get(relay)).json()["call"]["created_by"]["id"] == "ghost"


async def test_an_anonymous_user_may_read(relay: Edges) -> None:
    await relay.post(C, headers=JOHN)
    response = await get(relay, headers=ANONYMOUS)
    assert response.status_code == 200
    assert response.json()["own_capabilities"] == ["read-call"]


@pytest.mark.parametrize("asked", ["ring", "notify"])
async def test_who_may_only_read_a_call_rings_for_nobody(relay: Edges, asked: str) -> None:
    await relay.post(C, {"data": {"members": [{"user_id": "jane"}]}}, headers=JOHN)
    body = {"user_id": "jim", "revoke_permissions": ["join-call"]}
    await relay.post(f"{C}/user_permissions", body, headers=JOHN)
    before = await relay.kinds()
    for headers in (ANONYMOUS, token("jim")):
        response = await get(relay, headers=headers, **{asked: "true"})
        assert (response.status_code, response.json()["code"]) == (403, 17)
    response = await relay.post(C, {asked: True}, headers=token("jim"))
    assert response.status_code == 403
    assert await relay.kinds() == before
    assert (await get(relay, headers=token("jim"))).status_code == 200


async def test_an_anonymous_user_with_a_token_reads_what_it_is_for(relay: Edges) -> None:
    await relay.post(C, headers=JOHN)
    for cid, status in (("default:demo", 200), ("default:other", 403)):
        headers = token("!anon", call_cids=[cid]) | ANONYMOUS
        assert (await get(relay, headers=headers)).status_code == status


async def test_a_servers_token_makes_no_server_of_an_anonymous_user(relay: Edges) -> None:
    response = await relay.post(C, {"data": {"created_by_id": "john"}}, headers=token() | ANONYMOUS)
    assert (response.status_code, response.json()["code"]) == (403, 17)


async def test_an_anonymous_user_brings_a_good_token_or_none(relay: Edges) -> None:
    response = await get(relay, headers={"authorization": "x"} | ANONYMOUS)
    assert response.status_code == 401
    assert (await get(relay, headers=ANONYMOUS, api_key="nobody")).json()["code"] == 2


# -- who creates --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "creator",
    [{"created_by_id": "jane"}, {"created_by": {"id": "jane", "name": "Jane"}}],
)
async def test_a_server_says_who_creates(relay: Edges, creator: dict[str, Any]) -> None:
    response = await relay.post(V, {"data": creator}, headers=token())
    assert response.json()["call"]["created_by"]["id"] == "jane"
    jane = await relay.store.user("jane")
    assert jane is not None
    assert jane.name == creator.get("created_by", {}).get("name", "")


async def test_a_server_must_say_who_creates(relay: Edges) -> None:
    response = await relay.post(V, headers=token())
    assert (response.status_code, response.json()["code"]) == (400, 4)
    assert "data.created_by_id" in response.json()["message"]
    assert await relay.store.call("default:demo") is None


async def test_a_user_creates_as_itself(relay: Edges) -> None:
    for given, status in (("john", 201), ("jane", 403)):
        response = await relay.post(C, {"data": {"created_by_id": given}}, headers=JOHN)
        assert response.status_code == status


async def test_a_users_profile_stays_when_it_creates(relay: Edges) -> None:
    await relay.store.save_user("john", Profile(name="John"), NOW_NS)
    response = await relay.post(C, headers=JOHN)
    assert response.json()["call"]["created_by"]["name"] == "John"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"data": {"custom": {"n": "x" * 6000}}}, "data.custom"),
        ({"data": {"created_by": {"id": "a b"}}}, "data.created_by.id"),
        ({"data": {"created_by": {"id": "a", "name": 1}}}, "data.created_by.name"),
        ({"data": {"created_by": {"id": "a", "role": 1}}}, "data.created_by.role"),
        ({"data": {"created_by": {"id": "a"}, "created_by_id": "b"}}, "data.created_by_id"),
        ({"data": {"created_by": 1}}, "data.created_by"),
        ({"data": {"created_by_id": "a b"}}, "data.created_by_id"),
    ],
)
async def test_a_wrong_field_is_named_by_its_path(
    relay: Edges, body: dict[str, Any], field: str
) -> None:
    response = await relay.post(V, body, headers=token())
    assert response.status_code in (400, 413)
    assert response.json()["message"].startswith(field + " ")
    assert await relay.store.call("default:demo") is None


# -- watching -----------------------------------------------------------------------------------

CONNECTION = "node-1-mac"


@pytest.mark.parametrize("path", [C, V])
async def test_a_connection_in_the_query_watches(relay: Edges, path: str) -> None:
    params = {"connection_id": CONNECTION, "user_id": "john"}
    assert (await relay.post(path, headers=JOHN, params=params)).status_code == 201
    assert (await get(relay, path, JOHN, **params)).status_code == 200
    assert relay.watches.attached == [(CONNECTION, "john", "default:demo")] * 2


@pytest.mark.parametrize(
    ("params", "body", "watches"),
    [
        ({"connection_id": CONNECTION, "watch": "true"}, {"watch": True}, True),
        ({"connection_id": CONNECTION, "watch": "false"}, {}, False),
        ({"connection_id": CONNECTION}, {"watch": False}, False),
        ({"connection_id": ""}, {"watch": True}, False),
        ({}, {"watch": True}, False),
    ],
)
async def test_watching_needs_a_connection_and_can_be_declined(
    relay: Edges, params: dict[str, str], body: dict[str, Any], *, watches: bool
) -> None:
    response = await relay.post(C, body, headers=JOHN, params=params)
    assert response.status_code == 201
    assert bool(relay.watches.attached) == watches


async def test_reading_without_watching_is_possible_too(relay: Edges) -> None:
    await relay.post(C, headers=JOHN)
    assert (await get(relay, connection_id=CONNECTION, watch="false")).status_code == 200
    assert relay.watches.attached == []


async def test_another_users_connection_cannot_be_made_to_watch(relay: Edges) -> None:
    response = await relay.post(C, headers=token("jane"), params={"connection_id": CONNECTION})
    assert (response.status_code, response.json()["code"]) == (400, 46)


async def test_a_call_that_is_not_there_is_not_watched(relay: Edges) -> None:
    assert (await get(relay, connection_id=CONNECTION)).status_code == 404
    assert relay.watches.attached == []


async def test_an_owner_that_does_not_answer_is_a_503(relay: Edges) -> None:
    relay.watches.away = True
    response = await relay.post(C, headers=JOHN, params={"connection_id": CONNECTION})
    assert (response.status_code, response.json()["code"]) == (503, -1)


async def test_events_are_not_watched_by_a_connection_in_the_query(relay: Edges) -> None:
    # The JavaScript client adds it to every request.
    params = {"connection_id": CONNECTION}
    await relay.post(f"{C}/event", {"custom": {}}, headers=JOHN, params=params)
    assert relay.watches.attached == []


async def test_a_405_names_every_method_of_the_path(relay: Edges) -> None:
    response = await relay.client.put(C)
    assert {part.strip() for part in response.headers["allow"].split(",")} == {
        "GET", "HEAD", "PATCH", "POST",
    }  # fmt: skip
    assert SECRET not in response.text
