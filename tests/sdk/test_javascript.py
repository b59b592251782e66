"""Stream's video client, unmodified, in Node and in a page of another origin: events both ways."""

from __future__ import annotations

import time
from datetime import datetime

import anyio
import pytest
from getstream import Stream

from tests.integration.doors import by_server, by_webhook
from tests.processes import API_KEY, API_SECRET
from tests.redis_server import RedisServer
from tests.relay_client import connected
from tests.sdk.conftest import Opens
from tests.sdk.driver import Failed, in_node
from tests.sdk.front import Front

pytestmark = pytest.mark.anyio


async def test_it_watches_by_get_or_create_and_gets_what_every_door_brings(
    relay: Front, opens: Opens, redis_server: RedisServer, cid: str
) -> None:
    async with opens(relay) as john:
        assert await john.connect("john", relay.token("john")) == "john"
        call = await john.watch(cid)
        assert (call["cid"], call["created"], call["watching"]) == (cid, True, True)
        assert abs(call["created_at"] / 1000 - time.time()) < 60
        await john.run("call.get()")  # watching twice brings nothing twice

        def send() -> None:
            with Stream(API_KEY, API_SECRET, base_url=relay.base_url) as stream:
                call = stream.video.call(*cid.split(":"))
                call.send_call_event(user_id="jane", custom={"by": "getstream"})

        await anyio.to_thread.run_sync(send)
        await by_server(relay, redis_server, cid, {"by": "http"})
        await by_webhook(relay, redis_server, cid, {"by": "webhook"})
        async with connected(relay, "jane") as jane:
            await jane.send(cid, {"by": "socket"})
        events = await john.events(4)
    assert [event["custom"]["by"] for event in events] == ["getstream", "http", "webhook", "socket"]
    for event in events:
        assert event["type"] == "custom"
        assert event["call_cid"] == cid
        assert event["user"]["id"] == "jane"
        assert abs(datetime.fromisoformat(event["created_at"]).timestamp() - time.time()) < 60


async def test_it_sends_custom_events_and_reactions_and_gets_its_own(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with opens(relay) as john, connected(relay, "jane") as jane:
        await jane.watch(cid)
        await john.connect("john", relay.token("john"))
        await john.watch(cid)
        await john.send({"render-animation": "confetti", "__proto__": {"a": 1}})
        told = await john.run(
            "call.sendReaction({type: 'raised-hand', emoji_code: ':raise-hand:'})"
        )
        assert told["reaction"]["type"] == "raised-hand"
        await jane.until(lambda frame: frame["type"] == "call.reaction_new")
        own = await john.events(2)
    seen = [event for event in jane.events if event["type"] != "call.created"]
    for custom, reaction in (seen, own):
        assert custom["custom"]["render-animation"] == "confetti"
        assert (custom["user"]["id"], custom["user"]["name"]) == ("john", "John")
        assert reaction["reaction"]["emoji_code"] == ":raise-hand:"
        assert reaction["reaction"]["user"]["id"] == "john"


async def test_handlers_of_a_call_get_what_is_of_that_call(
    relay: Front, opens: Opens, redis_server: RedisServer, cid: str
) -> None:
    async with opens(relay) as john:
        await john.connect("john", relay.token("john"))
        await john.watch(f"{cid}-other")
        await john.watch(cid)
        await john.run("globalThis.heard = []")
        await john.run("void call.on('custom', (event) => heard.push(event.custom.n))")
        for n, where in enumerate([cid, f"{cid}-other", cid]):
            await by_server(relay, redis_server, where, {"n": n})
        await john.events(3)
        assert await john.run("heard") == [0, 2]


async def test_a_custom_that_is_too_large_is_an_error_of_the_sdk(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with opens(relay) as john:
        await john.connect("john", relay.token("john"))
        await john.watch(cid)
        with pytest.raises(Failed, match="5120") as refused:
            await john.send({"text": "x" * 5200})
        assert (refused.value.code, refused.value.status) == (22, 413)
        await john.send({"text": "x" * 5000})
        await john.events(1)


async def test_its_telemetry_is_answered(relay: Front, cid: str) -> None:
    before = relay.count("POST", "/video/call_client_event")
    async with in_node(relay, clientEventsReportingEnabled=True) as john:
        await john.connect("john", relay.token("john"))
        await john.watch(cid)
    assert not john.count("said")
    assert relay.count("POST", "/video/call_client_event") > before


async def test_a_page_on_another_origin_finds_out_where_it_is(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with opens(relay) as john:
        await john.connect("john", relay.token("john"))
        assert await john.run("client.streamClient.getLocationHint()") == "rel"
