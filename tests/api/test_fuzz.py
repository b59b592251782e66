"""Whatever is sent to whatever endpoint: it is served, or refused by name and without a trace.

The endpoints are read off the API's routes. ``SOAK`` is a factor on how much is tried at random.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from relay import filters, wire
from relay.filters import Sort
from tests.edges import KEY, Edges, edges, token
from tests.hostile import (
    CALL_URL,
    CID,
    CONNECTION,
    GOOD,
    NAMES,
    OWNER,
    QUERIES,
    RAW,
    URLS,
    Operation,
    assert_refused,
    changed_at,
    corrupted,
    operations,
)

pytestmark = pytest.mark.anyio

TRIES = int(os.environ.get("SOAK", "1"))
OWNERS = token(OWNER)
SERVERS = token()


async def _served() -> list[Operation]:
    async with edges() as relay:
        app: Any = relay.app
        return operations(route for route in app.app.routes if isinstance(route, Route))


OPERATIONS = anyio.run(_served)
READING = list({one.key: one for one in OPERATIONS if one.key in GOOD}.values())
"""One of those that differ in their dialect only."""


async def send(relay: Edges, operation: Operation, content: bytes, **params: str) -> httpx.Response:
    """Ask as whoever may, on a call that exists."""
    headers = OWNERS if operation.by_user else SERVERS
    if operation.path.endswith("/join"):
        params = {"connection_id": CONNECTION, **params}
    return await relay.client.request(
        operation.method,
        operation.url,
        content=content,
        params={"api_key": KEY, **params},
        headers=headers,
    )


async def with_call(relay: Edges) -> None:
    data = {"custom": {"topic": "tea"}, "members": [{"user_id": "jane"}, {"user_id": "ben"}]}
    response = await relay.post(
        f"/video/call/{CID.replace(':', '/')}", {"data": data}, headers=OWNERS
    )
    assert response.status_code == 201, response.text


async def everything(relay: Edges) -> dict[str, Any]:
    """Return all that a request can change."""
    order = [Sort("created_at")]
    calls = await relay.store.query_calls(
        filters.read_query({"limit": 100}, filters.CALLS, default_sort=order)
    )
    users = await relay.store.query_users(
        filters.read_query({"limit": 100}, filters.USERS, default_sort=order)
    )
    return {
        "calls": calls.items,
        "users": users.items,
        "published": await relay.published(CID),
        "told": list(relay.announcer.told),
        "attached": list(relay.watches.attached),
        "expelled": list(relay.watches.expelled),
        "revoked": list(relay.watches.revoked),
        "joined": dict(relay.joins.running),
    }


async def check_nothing_came_of(relay: Edges, before: Any) -> None:
    """Assert that a refused request changed nothing and holds nothing up."""
    assert await everything(relay) == before
    with anyio.fail_after(5):
        response = await relay.client.patch(
            CALL_URL, params={"api_key": KEY}, json={"custom": {"n": 1}}, headers=OWNERS
        )
    assert response.status_code == 200, response.text


# -- field by field -----------------------------------------------------------------------------


def test_every_operation_that_reads_a_body_is_known_here() -> None:
    """What is new has to be entered in ``hostile.GOOD`` to be corrupted field by field."""
    assert {operation.key for operation in READING} == set(GOOD)
    assert len(OPERATIONS) > 60


@pytest.mark.parametrize("operation", READING, ids=str)
async def test_a_good_body_is_taken(operation: Operation) -> None:
    async with edges(http_rate=0) as relay:
        await with_call(relay)
        response = await send(relay, operation, wire.encode(GOOD[operation.key]))
    if operation.path.endswith("/join"):
        assert "no media server" in response.json()["message"]
    else:
        assert response.status_code < 300, response.text


@pytest.mark.parametrize("operation", READING, ids=str)
async def test_one_wrong_field_is_refused_by_its_path_and_changes_nothing(
    operation: Operation,
) -> None:
    for path, body in corrupted(operation.key, GOOD[operation.key]):
        async with edges(http_rate=0) as relay:
            await with_call(relay)
            before = await everything(relay)
            response = await send(relay, operation, wire.encode(body))
            assert_refused(response, path)
            await check_nothing_came_of(relay, before)


@pytest.mark.parametrize("operation", READING, ids=str)
async def test_a_body_that_is_no_json_object_is_refused(operation: Operation) -> None:
    async with edges(http_rate=0) as relay:
        await with_call(relay)
        before = await everything(relay)
        for content in RAW.values():
            assert_refused(await send(relay, operation, content), "body")
        assert_refused(await send(relay, operation, b"[" * 200_000), "body")
        await check_nothing_came_of(relay, before)


@pytest.mark.parametrize(("url", "params", "field"), QUERIES)
async def test_a_wrong_parameter_of_the_url_is_refused_by_its_name(
    url: str, params: dict[str, str], field: str
) -> None:
    async with edges(http_rate=0) as relay:
        await with_call(relay)
        before = await everything(relay)
        response = await relay.client.get(url, params={"api_key": KEY, **params}, headers=OWNERS)
        assert_refused(response, field, codes=(4, 46))
        await check_nothing_came_of(relay, before)


async def test_a_hostile_path_is_refused_or_unknown() -> None:
    async with edges(http_rate=0) as relay:
        await with_call(relay)
        before = await everything(relay)
        for operation, url in itertools.product(OPERATIONS, URLS):
            filled = operation.path.replace("{type}", url).replace("{id}", url)
            if filled == operation.path:
                continue
            response = await relay.client.request(
                operation.method, filled, params={"api_key": KEY}, headers=SERVERS
            )
            assert response.status_code in (400, 404, 405), response.text
        await check_nothing_came_of(relay, before)


# -- at random ----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**64), 10**30, 0, -1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from([*NAMES, "x" * 6000, CID, OWNER, "1970-01-01T00:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("batch", range(TRIES))
@given(
    operation=st.sampled_from(OPERATIONS),
    changes=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(NAMES), JSON), max_size=3),
)
@settings(max_examples=150, deadline=None)
async def test_a_body_with_anything_in_it_is_served_or_refused_without_a_trace(
    batch: int, operation: Operation, changes: list[tuple[int, str, Any]]
) -> None:
    body = GOOD.get(operation.key, {})
    for place, name, value in changes:
        body = changed_at(body, place, name, value)
    async with edges(http_rate=0) as relay:
        await with_call(relay)
        before = await everything(relay)
        response = await send(relay, operation, wire.encode(body))
        assert response.status_code < 500, f"{body}: {response.text}"
        if response.status_code in (400, 413):
            assert response.json()["code"] in (4, 22), response.text
            await check_nothing_came_of(relay, before)


# -- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1, -1])
async def test_following_next_ends_and_coming_back_by_prev_does_too(direction: int) -> None:
    async with edges(http_rate=0) as relay:
        for number in range(7):
            await relay.post(f"/video/call/default/c{number}", headers=OWNERS)
        asked = {"sort": [{"field": "type", "direction": direction}], "limit": 2}
        for way in ("next", "prev"):
            seen, cursor = [], {}
            for _ in range(8):
                page = (await relay.post("/video/calls", asked | cursor, headers=OWNERS)).json()
                seen += [shown["call"]["cid"] for shown in page["calls"]]
                if way not in page:
                    break
                cursor = {way: page[way]}
            assert len(seen) == len(set(seen))
            assert way not in page
            asked |= {"next": page["next"]} if way == "prev" else {}


async def test_a_cursor_is_good_for_its_own_query_and_way_alone() -> None:
    async with edges(http_rate=0) as relay:
        for number in range(3):
            await relay.post(f"/video/call/default/c{number}", headers=OWNERS)
        page = (await relay.post("/video/calls", {"limit": 1}, headers=OWNERS)).json()
        for body, field in (
            ({"limit": 1, "prev": page["next"]}, "prev"),
            ({"limit": 1, "next": page["next"], "sort": [{"field": "cid"}]}, "next"),
            ({"limit": 1, "next": page["next"], "prev": page["next"]}, "next and prev"),
            ({"limit": 1, "next": page["next"][:-2]}, "next"),
            ({"next": page["next"], "filter_conditions": {"type": "default"}}, "next"),
        ):
            assert_refused(await relay.post("/video/calls", body, headers=OWNERS), field)
        wanted = {"type": "default", "id": "c1", "limit": 1, "next": page["next"]}
        assert_refused(await relay.post("/video/call/members", wanted, headers=OWNERS), "next")
