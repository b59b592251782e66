"""Stream's video client logs in, is refused, loses its token or its server, and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import httpx
import pytest

from tests.integration.doors import by_server, post
from tests.processes import API_KEY, RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import connected
from tests.sdk.conftest import BOTH, Opens
from tests.sdk.driver import Failed, in_node
from tests.sdk.front import Front

pytestmark = pytest.mark.anyio


@BOTH
async def test_a_guest_logs_in_watches_and_sends(relay: Front, opens: Opens, cid: str) -> None:
    async with opens(relay) as anna, connected(relay, "jane") as jane:
        user_id = await anna.connect({"id": "anna", "name": "Anna", "type": "guest"})
        assert user_id.startswith("guest-")
        assert user_id.endswith("-anna")
        await jane.watch(cid)
        await anna.watch(cid)
        await anna.send({"n": 1})
        event = await jane.until(lambda frame: frame["type"] == "custom")
        await anna.events(1)
    assert event["user"]["id"] == user_id


@BOTH
async def test_an_anonymous_user_reads_and_does_nothing_else(
    relay: Front, opens: Opens, cid: str
) -> None:
    await post(relay, f"/video/call/{cid.replace(':', '/')}", {}, "jane")
    async with opens(relay) as somebody:
        await somebody.connect({"type": "anonymous"})
        get = "client.call('default', id).get().then(({ call }) => call.cid)"
        assert await somebody.run(get, id=cid.partition(":")[2]) == cid
        with pytest.raises(Failed, match="anonymous") as refused:
            await somebody.run(
                "client.call('default', id).sendCustomEvent({})", id=cid.partition(":")[2]
            )
        assert refused.value.code == 17


# -- tokens that end ------------------------------------------------------------------------------


@BOTH
async def test_a_token_that_ends_is_refreshed_by_the_provider_and_calls_are_watched_again(
    relay: Front, opens: Opens, redis_server: RedisServer, cid: str
) -> None:
    async with opens(relay) as john:
        await john.connect("john", relay.token("john", 6), relay.token("john"))
        await john.watch(cid)
        searched = relay.count("POST", "/video/calls")
        await john.until(lambda: john.count("token_asked") == 2, "a new token")
        await again(relay, searched)
        await by_server(relay, redis_server, cid, {"n": 1})
        await john.events(1)


async def again(relay: Front, searched: int) -> None:
    """Wait until the client has asked to watch its calls again."""
    with anyio.fail_after(20):
        while relay.count("POST", "/video/calls") == searched:
            await anyio.sleep(0.02)


async def test_a_request_with_a_token_that_has_ended_is_repeated_with_a_new_one(
    relay: Front, cid: str
) -> None:
    first = relay.token("john", 6)
    async with in_node(relay) as john:
        await john.connect("john", first, relay.token("john"))
        await john.watch(cid)
        await ended(relay, first)
        await john.send({"n": 1})
        assert john.count("token_asked") == 2


async def ended(relay: Front, token: str) -> None:
    """Wait until a token is refused."""
    params, headers = {"api_key": API_KEY}, {"authorization": token, "stream-auth-type": "jwt"}
    async with httpx.AsyncClient(base_url=relay.base_url, params=params, headers=headers) as client:
        with anyio.fail_after(20):
            while (await client.post("/video/calls")).status_code != 401:
                await anyio.sleep(0.05)


async def test_a_static_token_that_ends_takes_the_client_offline(
    memory_front: Front, cid: str
) -> None:
    async with in_node(memory_front) as john:
        await john.connect("john", memory_front.token("john", 5))
        await john.watch(cid)
        before = memory_front.kinds.count("connection.error")
        await john.connection(online=False)
    assert memory_front.kinds.count("connection.error") == before + 1  # it does not insist


async def test_a_revoked_token_ends_the_session_and_opens_no_other(relay: Front, cid: str) -> None:
    user = cid.partition(":")[2]
    async with in_node(relay, maxConnectUserRetries=1) as john:
        old = relay.token(user)
        await john.connect(user, old, old)
        await john.watch(cid)
        await revoke(relay, user)
        await john.until(lambda: john.count("token_asked") >= 2, "a question for a new token")
    async with in_node(relay, maxConnectUserRetries=1) as john:
        with pytest.raises(Failed, match="revoked"):
            await john.connect(user, old)


async def revoke(relay: Front, user_id: str) -> None:
    """Make the tokens worthless that a user has by now."""
    headers = {"authorization": relay.token(), "stream-auth-type": "jwt"}
    now = "2099-01-01T00:00:00Z"
    body = {"users": [{"id": user_id, "set": {"revoke_tokens_issued_before": now}}]}
    async with httpx.AsyncClient(base_url=relay.base_url, headers=headers) as client:
        response = await client.patch("/api/v2/users", params={"api_key": API_KEY}, json=body)
    assert response.status_code == 200, response.text


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api_key", "token", "code"),
    [("nobody", "good", 2), (API_KEY, "forged", 43), (API_KEY, "expired", 40)],
)
async def test_a_login_is_refused_with_the_code_that_says_why(
    memory_front: Front, api_key: str, token: str, code: int
) -> None:
    tokens = {
        "good": memory_front.token("john"),
        "forged": memory_front.token("john")[:-3] + "AAA",
        "expired": memory_front.token("john", -60),
    }
    async with in_node(memory_front, api_key=api_key, maxConnectUserRetries=1) as john:
        with pytest.raises(Failed) as refused:
            await john.connect("john", tokens[token])
        assert f'"code":{code},' in str(refused.value).replace(" ", "")
    memory_front.check()


@BOTH
async def test_a_call_token_is_good_for_its_calls_and_gives_its_role(
    relay: Front, opens: Opens, cid: str
) -> None:
    await post(relay, f"/video/call/{cid.replace(':', '/')}", {}, "jane")
    async with opens(relay) as john:
        await john.connect("john", relay.token("john", call_cids=[cid], role="host"))
        await john.watch(cid)
        await john.run("call.update({custom: {topic: 'tea'}})")
        await john.state("call.state.custom", {"topic": "tea"})
        with pytest.raises(Failed) as refused:
            await john.run("client.call('default', 'another').getOrCreate()")
        assert (refused.value.code, refused.value.status) == (17, 403)


@pytest.fixture(params=["memory", "two on redis"])
def slow_relay(request: pytest.FixtureRequest) -> Iterator[Front]:
    """A relay where a user may ask for each thing three times a minute."""
    settings: dict[str, Any] = {"http_rate": 3}
    if request.param == "memory":
        with RelayProcess(**settings) as process, Front(process) as front:
            yield front
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    settings |= {"redis_url": server.url, "redis_prefix": "slow:"}
    with RelayProcess(**settings) as process, Front(process) as front:
        yield front


async def test_too_many_requests_are_an_error_that_says_when_to_come_back(
    slow_relay: Front, browser_opens: Opens, cid: str
) -> None:
    async with browser_opens(slow_relay) as john:
        await john.connect("john", slow_relay.token("john"))
        await john.watch(cid)
        # The page is of another origin: it sees the headers because CORS lets it.
        tries = "Array.from({length: 8}, () => call.sendCustomEvent({}).catch((error) => error))"
        told = await john.run(
            f"Promise.all({tries}).then((all) => all.filter((one) => one.code).map((error) =>"
            " [error.code, error.status, error.response.headers['retry-after'],"
            " error.response.headers['x-ratelimit-limit']]))"
        )
    assert 2 <= len(told) <= 5  # the minute may have turned in between
    for code, status, retry_after, limit in told:
        assert (code, status, limit) == (9, 429, "3")
        assert 1 <= int(retry_after) <= 60
    assert slow_relay.count("POST", "/event") == 8


# -- servers that end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broker", "end", "opens"),
    [
        ("memory", RelayProcess.kill, "node"),
        ("redis", RelayProcess.kill, "chromium"),
        ("redis", RelayProcess.stop, "node"),
    ],
    indirect=["opens"],
    ids=["memory killed", "redis killed", "redis stopped"],
)
async def test_calls_are_watched_again_after_the_server_has_ended(
    broker: str,
    end: Callable[[RelayProcess], None],
    opens: Opens,
    redis_server: RedisServer,
    cid: str,
) -> None:
    settings: dict[str, Any] = {"redis_prefix": f"{cid}:"}
    if broker == "redis":
        settings["redis_url"] = redis_server.url
    with ExitStack() as processes:
        first = processes.enter_context(RelayProcess(**settings))
        relay = processes.enter_context(Front(first))
        async with opens(relay) as john:
            await john.connect("john", relay.token("john"))
            await john.watch(cid)
            await john.watch(f"{cid}-more")
            searched = relay.count("POST", "/video/calls")
            await anyio.to_thread.run_sync(end, first)
            second = RelayProcess(**settings)
            await anyio.to_thread.run_sync(processes.enter_context, second)
            relay.http = relay.sockets = second
            await again(relay, searched)
            await by_server(relay, redis_server, cid, {"n": 1})
            await by_server(relay, redis_server, f"{cid}-more", {"n": 2})
            events = await john.events(2)
    assert [event["custom"]["n"] for event in events] == [1, 2]
