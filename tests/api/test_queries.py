"""Finding calls and users, and watching what was found."""

from __future__ import annotations

from typing import Any

import pytest

from relay import wire
from tests.edges import KEY, Edges, edges, token

pytestmark = pytest.mark.anyio

JOHN = token("john")
CONNECTION = {"connection_id": "node-1-mac"}


@pytest.fixture
async def calls(relay: Edges) -> Edges:
    """Five calls of john's, a second apart; jane is a member of two."""
    for number in range(5):
        members = [{"user_id": "jane"}] if number in (1, 3) else []
        data = {"custom": {"n": number}, "members": members}
        await relay.post(f"/video/call/default/c{number}", {"data": data}, headers=JOHN)
        relay.clock.forward(1)
    return relay


async def find(relay: Edges, body: Any, status: int = 201, **options: Any) -> Any:
    options.setdefault("headers", JOHN)
    response = await relay.post("/video/calls", body, **options)
    assert response.status_code == status
    return response.json()


def ids(answer: Any) -> list[str]:
    return [found["call"]["id"] for found in answer["calls"]]


async def test_calls_are_found_the_newest_first(calls: Edges) -> None:
    answer = await find(calls, {})
    assert ids(answer) == ["c4", "c3", "c2", "c1", "c0"]
    assert answer["calls"][0].keys() == {"call", "members", "own_capabilities"}


async def test_calls_are_found_by_what_the_application_put_into_them(calls: Edges) -> None:
    assert ids(await find(calls, {"filter_conditions": {"custom.n": {"$gte": 3}}})) == ["c4", "c3"]


async def test_calls_are_found_by_a_member(calls: Edges) -> None:
    answer = await find(calls, {"filter_conditions": {"members": {"$in": ["jane"]}}})
    assert ids(answer) == ["c3", "c1"]
    assert [member["user_id"] for member in answer["calls"][0]["members"]] == ["jane"]


async def test_pages_follow_each_other_both_ways(calls: Edges) -> None:
    query = {"sort": [{"field": "created_at", "direction": 1}], "limit": 2}
    first = await find(calls, query)
    second = await find(calls, {**query, "next": first["next"]})
    third = await find(calls, {**query, "next": second["next"]})
    assert [ids(page) for page in (first, second, third)] == [["c0", "c1"], ["c2", "c3"], ["c4"]]
    assert "next" not in third
    assert ids(await find(calls, {**query, "prev": second["prev"]})) == ["c0", "c1"]


async def test_a_connection_watches_what_was_found_when_asked_to(calls: Edges) -> None:
    wanted = ["default:c1", "default:c3"]
    body = {"watch": True, "filter_conditions": {"cid": {"$in": wanted}}}
    assert ids(await find(calls, body, params=CONNECTION)) == ["c3", "c1"]
    assert sorted(calls.watches.attached) == [
        ("node-1-mac", "john", "default:c1"),
        ("node-1-mac", "john", "default:c3"),
    ]


OF_AN_SDK: dict[str, Any] = {
    "watch": True,
    "filter_conditions": {"cid": {"$in": ["default:c1"]}},
}


@pytest.mark.parametrize(
    ("change", "returning"),
    [
        ({}, True),
        ({"sort": []}, True),
        ({"limit": 10}, False),
        ({"sort": [{"field": "created_at", "direction": 1}]}, False),
        ({"filter_conditions": {"cid": "default:c1"}}, False),
        ({"filter_conditions": {"cid": {"$in": ["default:c1"], "$ne": "default:c2"}}}, False),
        ({"filter_conditions": {"cid": {"$in": ["default:c1"]}, "type": "default"}}, False),
        ({"filter_conditions": {"$and": [OF_AN_SDK["filter_conditions"]]}}, False),
    ],
)
async def test_an_sdk_that_is_back_is_known_by_how_it_asks(
    calls: Edges, change: dict[str, Any], returning: bool
) -> None:
    assert ids(await find(calls, OF_AN_SDK | change, params=CONNECTION)) == ["c1"]
    assert calls.watches.returning == [returning]


async def test_who_gets_a_call_is_not_taken_for_one_that_is_back(calls: Edges) -> None:
    await calls.post("/video/call/default/c1", headers=JOHN, params=CONNECTION)
    assert calls.watches.returning == [False]


@pytest.mark.parametrize("body", [{}, {"watch": False}])
async def test_it_does_not_watch_unasked(calls: Edges, body: Any) -> None:
    await find(calls, body, params=CONNECTION)
    assert calls.watches.attached == []


async def test_a_list_of_calls_is_not_cut(relay: Edges) -> None:
    many = [f"default:m{number}" for number in range(130)]
    for cid in many:
        await relay.post(f"/video/call/default/{cid.partition(':')[2]}", headers=JOHN)
    body = {"watch": True, "filter_conditions": {"cid": {"$in": many}}}
    assert len(ids(await find(relay, body, params=CONNECTION))) == 130
    assert len(relay.watches.attached) == 130


async def test_a_token_for_some_calls_finds_only_those(calls: Edges) -> None:
    limited = token("john", call_cids=["default:c2"])
    assert ids(await find(calls, {}, headers=limited)) == ["c2"]


async def test_an_anonymous_user_finds_calls_and_watches_none(calls: Edges) -> None:
    headers = {"stream-auth-type": "anonymous"}
    assert len(ids(await find(calls, {}, headers=headers))) == 5
    await find(calls, {"watch": True}, 403, headers=headers, params=CONNECTION)


async def test_a_server_finds_calls_in_its_dialect(calls: Edges) -> None:
    response = await calls.post("/api/v2/video/calls", {"limit": 1}, headers=token())
    [found] = response.json()["calls"]
    assert isinstance(found["call"]["created_at"], int)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"filter_conditions": []}, "filter_conditions"),
        ({"filter_conditions": {"colour": "red"}}, "filter_conditions.colour"),
        ({"filter_conditions": {"$and": [{"type": {"$near": 1}}]}}, "filter_conditions.$and[0]"),
        ({"filter_conditions": {"created_at": {"$gt": "soon"}}}, "filter_conditions.created_at"),
        ({"sort": {"field": "cid"}}, "sort"),
        ({"sort": [{"field": "cid", "direction": 7}]}, "sort[0]"),
        ({"limit": -1}, "limit"),
        ({"limit": 101}, "limit"),
        ({"limit": 10**30}, "limit"),
        ({"next": 7}, "next"),
        ({"next": "x"}, "next"),
        ({"watch": "yes"}, "watch"),
    ],
)
async def test_a_wrong_query_is_refused_by_its_path(relay: Edges, body: Any, field: str) -> None:
    answer = await find(relay, body, 400)
    assert answer["code"] == 4
    assert answer["message"].startswith(field)


# -- users --------------------------------------------------------------------------------------


async def users(relay: Edges, payload: Any, status: int = 200) -> Any:
    params = {"api_key": KEY, "payload": wire.encode(payload).decode()}
    response = await relay.client.get("/api/v2/users", params=params, headers=token())
    assert response.status_code == status
    return response.json()


async def test_users_are_found(relay: Edges) -> None:
    described = {
        name: {"id": name, "custom": {"team": team}}
        for name, team in (("ann", "red"), ("bob", "blue"), ("cid", "red"))
    }
    await relay.post("/api/v2/users", {"users": described}, headers=token())
    query = {
        "filter_conditions": {"custom.team": "red"},
        "sort": [{"field": "id", "direction": 1}],
    }
    answer = await users(relay, query)
    assert [user["id"] for user in answer["users"]] == ["ann", "cid"]
    answer = await users(relay, {"filter_conditions": {"id": {"$in": ["bob", "nobody"]}}})
    assert [user["id"] for user in answer["users"]] == ["bob"]


async def test_a_wrong_query_of_users_is_refused(relay: Edges) -> None:
    answer = await users(relay, {"filter_conditions": {"password": "x"}}, 400)
    assert answer["message"].startswith("filter_conditions.password")
    response = await relay.client.get(
        "/api/v2/users", params={"api_key": KEY, "payload": "{"}, headers=token()
    )
    assert (response.status_code, response.json()["code"]) == (400, 4)


async def test_calls_that_nobody_created_are_watched_where_a_list_of_cids_says_so(
    calls: Edges,
) -> None:
    """After a restart of the embedded broker an SDK asks this way for calls that are forgotten."""
    asked = ["default:c1", "default:forgotten", "no cid", "default:other"]
    listed = {"cid": {"$in": asked}}
    headers = token("john", call_cids=["default:c1", "default:forgotten"])
    body = {"watch": True, "filter_conditions": listed}
    found = await find(calls, body, headers=headers, params=CONNECTION)
    assert [shown["call"]["cid"] for shown in found["calls"]] == ["default:c1"]
    watched = [cid for _, _, cid in calls.watches.attached]
    assert watched == ["default:c1", "default:forgotten"]
    calls.watches.attached.clear()
    narrower = {"watch": True, "filter_conditions": listed | {"type": "default"}}
    await find(calls, narrower, headers=headers, params=CONNECTION)
    assert [cid for _, _, cid in calls.watches.attached] == ["default:c1"]


async def test_strict_relays_watch_only_what_was_created() -> None:
    async with edges(strict_calls=True) as relay:
        body = {"watch": True, "filter_conditions": {"cid": {"$in": ["default:forgotten"]}}}
        await find(relay, body, params=CONNECTION)
        assert relay.watches.attached == []
