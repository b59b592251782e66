"""Stream's Python SDK, unmodified, as a backend, blocking and not: base_url is all that changes."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from getstream import AsyncStream, Stream
from getstream.exceptions import StreamApiException, StreamRateLimitException
from getstream.models import (
    CallRequest,
    MemberRequest,
    QueryUsersPayload,
    SortParamRequest,
    UpdateUserPartialRequest,
    UserRequest,
)
from getstream.webhook import verify_and_parse_webhook, verify_signature

from relay import signing, users
from relay.users import User
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.relay_client import connected
from tests.sdk.front import Front

pytestmark = pytest.mark.anyio

AnyStream = Stream | AsyncStream


async def done(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the data of the SDK's answer, whether it blocks or is awaited."""
    if inspect.iscoroutinefunction(function):
        answer = await function(*args, **kwargs)
    else:
        answer = await anyio.to_thread.run_sync(lambda: function(*args, **kwargs))
        answer = await answer if inspect.isawaitable(answer) else answer
    return answer.data


@asynccontextmanager
async def opened(kind: type[AnyStream], relay: Front, **who: str) -> AsyncIterator[AnyStream]:
    """Give a client that has a secret or a token."""
    client = kind(API_KEY, base_url=relay.base_url, **who)
    if isinstance(client, AsyncStream):
        async with client:
            yield client
    else:
        with client:
            yield client


@pytest.fixture(params=[Stream, AsyncStream])
async def stream(request: pytest.FixtureRequest, relay: Front) -> AsyncIterator[AnyStream]:
    async with opened(request.param, relay, api_secret=API_SECRET) as client:
        yield client


async def test_it_sends_an_event_that_watchers_get(
    relay: Front, stream: AnyStream, cid: str
) -> None:
    call = stream.video.call(*cid.split(":"))
    async with connected(relay, "john") as john:
        await john.watch(cid)
        await done(call.send_call_event, user_id="jane", custom={"render-animation": "balloons"})
        [event] = await john.until_count(1)
    assert event["type"] == "custom"
    assert event["call_cid"] == cid
    assert event["custom"] == {"render-animation": "balloons"}
    assert event["user"]["id"] == "jane"


async def test_it_upserts_users_and_creates_calls_with_times_it_can_read(
    stream: AnyStream, cid: str
) -> None:
    jane = UserRequest(id="jane", name="Jane", role="admin")
    known = (await done(stream.upsert_users, jane)).users
    assert (known["jane"].name, known["jane"].role) == ("Jane", "admin")
    call = stream.video.call(*cid.split(":"))
    data = CallRequest(created_by_id="jane", custom={"topic": "tea"})
    created = await done(call.get_or_create, data=data)
    assert created.created is True
    assert created.call.cid == cid
    assert created.call.created_by.name == "Jane"
    assert abs(created.call.created_at.timestamp() - time.time()) < 60
    again = await done(call.get_or_create, data=CallRequest(created_by_id="jane"))
    assert again.created is False
    assert (await done(call.get)).call.custom == {"topic": "tea"}


async def test_it_finds_users_and_changes_single_fields(stream: AnyStream, cid: str) -> None:
    team = cid.partition(":")[2]
    people = [UserRequest(id=f"{team}-{n}", name=f"N{n}", custom={"team": team}) for n in range(3)]
    await done(stream.upsert_users, *people)
    change = UpdateUserPartialRequest(id=f"{team}-1", set={"role": "admin"}, unset=["name"])
    changed = (await done(stream.update_users_partial, users=[change])).users
    assert (changed[f"{team}-1"].role, changed[f"{team}-1"].name) == ("admin", "")
    payload = QueryUsersPayload(
        filter_conditions={"custom.team": team, "role": {"$ne": "admin"}},
        sort=[SortParamRequest(field="id", direction=-1)],
    )
    found = (await done(stream.query_users, payload=payload)).users
    assert [user.id for user in found] == [f"{team}-2", f"{team}-0"]


async def test_it_manages_a_call_from_its_members_to_its_end(
    relay: Front, stream: AnyStream, cid: str
) -> None:
    call = stream.video.call(*cid.split(":"))
    members = [MemberRequest(user_id="john", role="host"), MemberRequest(user_id="ann")]
    await done(call.get_or_create, data=CallRequest(created_by_id="jane", members=members))
    async with connected(relay, "ann") as ann:
        await done(
            call.update, custom={"topic": "cake"}, starts_at=datetime(2030, 1, 1, tzinfo=UTC)
        )
        found = await done(
            stream.video.query_calls,
            filter_conditions={"cid": cid, "members": {"$in": ["ann"]}, "custom.topic": "cake"},
        )
        assert [state.call.cid for state in found.calls] == [cid]
        assert found.calls[0].call.starts_at.year == 2030
        await done(call.update_call_members, update_members=[MemberRequest(user_id="ben")])
        await done(call.update_call_members, remove_members=["ann"])
        await ann.until(lambda frame: frame["type"] == "call.member_removed")
        page = await done(
            stream.video.query_call_members,
            id=call.id, type=call.call_type,
            filter_conditions={"user_id": {"$in": ["ann", "ben", "john"]}},
            sort=[SortParamRequest(field="user_id", direction=1)], limit=1,
        )  # fmt: skip
        assert [member.user_id for member in page.members] == ["ben"]
        assert page.next
        await done(call.block_user, user_id="eve")
        await done(call.unblock_user, user_id="eve")
        await done(call.kick_user, user_id="ben", kicked_by_id="jane")
        await done(call.update_user_permissions, user_id="ben", grant_permissions=["send-audio"])
        await done(call.end)
        assert (await done(call.get)).call.ended_at is not None
        await done(call.delete, hard=True)
    with pytest.raises(StreamApiException) as refused:
        await done(call.get)
    assert refused.value.api_error.code == 16


async def test_its_tokens_open_sockets(relay: Front, stream: AnyStream, cid: str) -> None:
    async with connected(relay, "john", stream.create_token("john", expiration=60)) as john:
        assert (await john.watch(cid))["type"] == "call.watching"
    token = stream.create_call_token("john", call_cids=[cid], role="host")
    async with connected(relay, "john", token) as john:
        assert (await john.watch(cid))["type"] == "call.watching"


async def test_a_refusal_becomes_its_own_exception(
    relay: Front, stream: AnyStream, cid: str
) -> None:
    call = stream.video.call(*cid.split(":"))
    for function, code in ((call.send_call_event, 4), (call.start_recording, 16)):
        kwargs = {"recording_type": "composite"} if code == 16 else {"custom": {}}
        with pytest.raises(StreamApiException) as refused:
            await done(function, **kwargs)
        assert refused.value.api_error.code == code
    secret = "another secret of at least 32 bytes"
    async with opened(type(stream), relay, api_secret=secret) as stranger:
        call = stranger.video.call(*cid.split(":"))
        with pytest.raises(StreamApiException) as refused:
            await done(call.get)
    assert refused.value.api_error.code == 43


@pytest.fixture(scope="module")
def slow_relay() -> Iterator[Front]:
    with RelayProcess(http_rate=2) as process, Front(process) as front:
        yield front


@pytest.mark.parametrize("kind", [Stream, AsyncStream])
async def test_too_many_requests_say_when_to_come_back(
    slow_relay: Front, kind: type[AnyStream], cid: str
) -> None:
    async with opened(kind, slow_relay, token=slow_relay.token(kind.__name__)) as user:
        call = user.video.call(*cid.split(":"))

        async def send_many() -> None:
            for _ in range(5):  # the minute may turn in between
                await done(call.send_call_event, custom={"n": 1})

        with pytest.raises(StreamRateLimitException) as refused:
            await send_many()
    assert refused.value.api_error.code == 9
    assert timedelta() < refused.value.retry_after <= timedelta(minutes=1)
    assert refused.value.rate_limit_info.limit == 2


def test_its_webhook_helpers_verify_what_the_relay_signs() -> None:
    now_ns = time.time_ns()
    jane = users.response(User(id="jane", created_at=now_ns, updated_at=now_ns))
    event = {
        "type": "custom", "created_at": now_ns, "call_cid": "default:demo",
        "custom": {"n": 1}, "user": jane | {"shadow_banned": False, "invisible": False},
    }  # fmt: skip
    body = json.dumps(event).encode()
    signature = signing.stream_signature(body, API_SECRET)
    assert verify_signature(body, signature, API_SECRET)
    assert not verify_signature(body + b" ", signature, API_SECRET)
    assert verify_and_parse_webhook(body, signature, API_SECRET).custom == {"n": 1}
