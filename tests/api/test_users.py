from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import httpx
import pytest

from relay import users
from relay.errors import Unavailable
from relay.users import Profile, User
from tests.edges import NOW_NS, Edges, edges, token

pytestmark = pytest.mark.anyio

UPSERT = "/api/v2/users"


async def patch(relay: Edges, *patches: dict[str, Any]) -> httpx.Response:
    return await relay.client.patch(
        UPSERT, json={"users": patches}, params={"api_key": "key"}, headers=token()
    )


# -- upsert -------------------------------------------------------------------------------------


async def test_a_server_describes_users(relay: Edges) -> None:
    described = {
        "john": {"id": "john", "name": "John", "image": "j.png", "role": "admin"},
        "jane": {"id": "jane", "custom": {"a": 1}, "invisible": True},
    }
    response = await relay.post(UPSERT, {"users": described}, headers=token())
    answer = response.json()
    assert response.status_code == 201
    assert answer.keys() == {"duration", "membership_deletion_task_id", "users"}
    john, jane = await relay.store.user("john"), await relay.store.user("jane")
    assert john is not None
    assert jane is not None
    assert answer["users"] == {"john": users.full(john), "jane": users.full(jane)}
    assert (john.name, john.role, jane.custom, john.created_at) == (
        "John",
        "admin",
        {"a": 1},
        NOW_NS,
    )


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_users_hear_side_by_side_that_they_have_changed(
    relay: Edges, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose sockets are slow to be found keeps nobody else waiting."""
    ids = ("jane", "john", "max")
    await relay.post(UPSERT, {"users": {id_: {"id": id_} for id_ in ids[:2]}}, headers=token())
    both, told = asyncio.Barrier(2), []

    async def tell(user_ids: Collection[str], kind: str, fields: Mapping[str, Any]) -> None:
        await both.wait()
        told.append((kind, *user_ids, fields["user"]["name"]))

    monkeypatch.setattr(relay.announcer, "tell", tell)
    if method == "POST":
        body: Any = {"users": {id_: {"id": id_, "name": "New"} for id_ in ids}}
    else:
        body = {"users": [{"id": id_, "set": {"name": "New"}} for id_ in ids[:2]]}
    async with asyncio.timeout(5):
        response = await relay.client.request(
            method, UPSERT, json=body, params={"api_key": "key"}, headers=token()
        )
    assert response.is_success
    assert sorted(told) == [("user.updated", "jane", "New"), ("user.updated", "john", "New")]


async def test_a_revocation_that_was_cut_off_is_made_by_the_repeat(
    relay: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the sockets that the old tokens have opened would stay."""
    await relay.post(UPSERT, {"users": {"jane": {"id": "jane"}}}, headers=token())
    revoking = {"id": "jane", "set": {"revoke_tokens_issued_before": NOW_NS}}

    async def away(user_id: str | None, before_s: float) -> None:
        raise Unavailable("Redis is away")

    with monkeypatch.context() as changed:
        changed.setattr(relay.watches, "revoke", away)
        assert (await patch(relay, revoking)).status_code == 503
    assert (await patch(relay, revoking)).status_code == 200
    assert relay.watches.revoked == [("jane", NOW_NS / 1e9)]


async def test_patches_of_one_user_at_once_all_happen(relay: Edges) -> None:
    await relay.store.save_user("anna", Profile(custom={"old": 1}), NOW_NS)
    change, met = relay.store.change_user, asyncio.Barrier(2)

    async def change_together(*args: Any) -> User | None:
        await met.wait()  # both have read what was there before
        return await change(*args)

    relay.store.change_user = change_together  # type: ignore[method-assign]
    patches = ({"set": {"score": 5}}, {"set": {"name": "Anna"}, "unset": ["custom.old"]})
    answers = await asyncio.gather(*(patch(relay, {"id": "anna", **said}) for said in patches))
    assert [answer.status_code for answer in answers] == [200, 200]
    user = await relay.store.user("anna")
    assert user is not None
    assert (user.name, user.custom) == ("Anna", {"score": 5})


async def test_nobody_is_written_when_one_is_wrong(relay: Edges) -> None:
    described: dict[str, Any] = {"john": {"id": "john"}, "jane": {"id": "jane", "name": 7}}
    response = await relay.post(UPSERT, {"users": described}, headers=token())
    assert response.status_code == 400
    assert response.json()["message"].startswith("users.jane.name ")
    assert await relay.store.user("john") is None


@pytest.mark.parametrize(
    ("described", "field"),
    [
        ({"john": "John"}, "users.john"),
        ({"john": {"id": "jane"}}, "users.john.id"),
        ({"john": {}}, "users.john.id"),
        ({"john": {"id": "john", "role": ""}}, "users.john.role"),
        ({"a b": {"id": "a b"}}, "users.a b.id"),
        ([], "users"),
        ({str(n): {"id": str(n)} for n in range(101)}, "users"),
    ],
)
async def test_a_wrong_user_is_named_by_its_path(
    relay: Edges, described: object, field: str
) -> None:
    response = await relay.post(UPSERT, {"users": described}, headers=token())
    assert (response.status_code, response.json()["code"]) == (400, 4)
    assert response.json()["message"].startswith(field + " ")


async def test_only_a_server_describes_users(relay: Edges) -> None:
    for headers in (token("john"), {"stream-auth-type": "anonymous"}):
        response = await relay.post(UPSERT, {"users": {"john": {"id": "john"}}}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, 17)


# -- guests -------------------------------------------------------------------------------------

ANONYMOUS = {"stream-auth-type": "anonymous"}


@pytest.mark.parametrize("path", ["/video/guest", "/api/v2/guest"])
async def test_a_guest_gets_an_id_of_its_own_and_a_token_that_works(
    relay: Edges, path: str
) -> None:
    said = {"id": "anna", "name": "Anna", "type": "guest", "role": "admin", "teams": ["staff"]}
    body = {"user": said}
    response = await relay.post(path, body, headers=ANONYMOUS)
    assert response.status_code == 201
    user = response.json()["user"]
    assert user["teams"] == []
    assert re.fullmatch(r"guest-[0-9a-f]{8}-anna", user["id"])
    assert (user["name"], user["role"]) == ("Anna", "guest")
    headers = {"authorization": response.json()["access_token"], "stream-auth-type": "jwt"}
    event = await relay.post("/video/call/a/b/event", {"custom": {}}, headers=headers)
    assert event.status_code == 201
    (published,) = await relay.published("a:b")
    assert published["user"]["id"] == user["id"]
    assert published["user"]["role"] == "guest"


async def test_two_guests_of_one_name_are_two(relay: Edges) -> None:
    ids = set()
    for _ in range(2):
        response = await relay.post("/video/guest", {"user": {"id": "anna"}}, headers=ANONYMOUS)
        ids.add(response.json()["user"]["id"])
    assert len(ids) == 2


async def test_a_guests_token_ends_after_a_day(relay: Edges) -> None:
    response = await relay.post("/video/guest", {"user": {"id": "anna"}})
    payload = response.json()["access_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert claims["exp"] == NOW_NS // 10**9 + 24 * 3600


async def test_a_guests_token_is_for_the_key_it_came_with(relay: Edges) -> None:
    params = {"api_key": "other-key"}
    response = await relay.post("/video/guest", {"user": {"id": "anna"}}, params=params)
    headers = {"authorization": response.json()["access_token"]}
    for key, status in (("other-key", 201), ("key", 401)):
        event = await relay.post(
            "/video/call/a/b/event", {"custom": {}}, headers=headers, params={"api_key": key}
        )
        assert event.status_code == status


@pytest.mark.parametrize(
    ("user", "field"),
    [
        ({"id": "a b"}, "user.id"),
        ({"id": "x" * 241}, "user.id"),
        ({"id": "anna", "name": 7}, "user.name"),
        ({}, "user.id"),
        (None, "user"),
    ],
)
async def test_a_wrong_guest_is_refused_by_name(relay: Edges, user: object, field: str) -> None:
    response = await relay.post("/video/guest", {"user": user}, headers=ANONYMOUS)
    assert (response.status_code, response.json()["code"]) == (400, 4)
    assert response.json()["message"].startswith(field + " ")


async def test_the_longest_id_of_a_guest_fits(relay: Edges) -> None:
    response = await relay.post("/video/guest", {"user": {"id": "x" * 240}})
    assert response.status_code == 201


async def test_guests_need_a_key_that_is_known(relay: Edges) -> None:
    response = await relay.post(
        "/video/guest", {"user": {"id": "anna"}}, params={"api_key": "nobody"}
    )
    assert (response.status_code, response.json()["code"]) == (401, 2)


async def test_guests_can_be_turned_away() -> None:
    async with edges(guests=False) as relay:
        response = await relay.post("/video/guest", {"user": {"id": "anna"}})
        assert (response.status_code, response.json()["code"]) == (403, 17)
