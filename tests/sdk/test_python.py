"""Stream's Python SDK, unmodified, as a backend: base_url is all that changes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anyio
import pytest
from getstream import AsyncStream, Stream
from getstream.exceptions import StreamApiException
from getstream.models import CallRequest, UserRequest

from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.relay_client import connected

pytestmark = pytest.mark.anyio


@pytest.fixture
def stream(relay: RelayProcess) -> Iterator[Stream]:
    with Stream(API_KEY, API_SECRET, base_url=relay.base_url) as client:
        yield client


async def test_it_sends_an_event_that_watchers_get(relay: RelayProcess, stream: Stream) -> None:
    call = stream.video.call("default", "python")
    async with connected(relay, "john") as john:
        await john.watch("default:python")

        def send() -> None:
            call.send_call_event(user_id="jane", custom={"render-animation": "balloons"})

        await anyio.to_thread.run_sync(send)
        [event] = await john.until_count(1)
    assert event["type"] == "custom"
    assert event["call_cid"] == "default:python"
    assert event["custom"] == {"render-animation": "balloons"}
    assert event["user"]["id"] == "jane"


async def test_its_asyncio_twin_does_the_same(relay: RelayProcess) -> None:
    async with (
        AsyncStream(API_KEY, API_SECRET, base_url=relay.base_url) as client,
        connected(relay, "john") as john,
    ):
        await john.watch("default:python-async")
        call = client.video.call("default", "python-async")
        await call.send_call_event(user_id="jane", custom={"n": 1})
        [event] = await john.until_count(1)
    assert event["custom"] == {"n": 1}


def test_it_upserts_users_and_creates_calls_with_times_it_can_read(stream: Stream) -> None:
    users = stream.upsert_users(UserRequest(id="jane", name="Jane", role="admin")).data.users
    assert (users["jane"].name, users["jane"].role) == ("Jane", "admin")
    call = stream.video.call("default", "python-created")
    created = call.get_or_create(data=CallRequest(created_by_id="jane", custom={"topic": "tea"}))
    assert created.data.created is True
    assert created.data.call.cid == "default:python-created"
    assert created.data.call.created_by.name == "Jane"
    assert abs(created.data.call.created_at.timestamp() - time.time()) < 60
    again = call.get_or_create(data=CallRequest(created_by_id="jane"))
    assert again.data.created is False
    assert call.get().data.call.custom == {"topic": "tea"}


async def test_a_token_it_makes_opens_a_socket(relay: RelayProcess, stream: Stream) -> None:
    async with connected(relay, "john", stream.create_token("john")) as john:
        assert (await john.watch("default:python-token"))["type"] == "call.watching"


def test_a_refusal_becomes_its_own_exception(relay: RelayProcess, stream: Stream) -> None:
    with pytest.raises(StreamApiException) as refused:
        stream.video.call("default", "python").send_call_event(custom={})
    assert refused.value.api_error.code == 4
    with (
        Stream(API_KEY, "another secret of at least 32 bytes", base_url=relay.base_url) as stranger,
        pytest.raises(StreamApiException) as refused,
    ):
        stranger.video.call("default", "python").send_call_event(user_id="jane", custom={})
    assert refused.value.api_error.code == 43
