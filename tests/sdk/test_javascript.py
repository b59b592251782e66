"""Stream's JavaScript SDKs, unmodified: the video client in Node, and the server SDK."""

from __future__ import annotations

import json
import subprocess
import time
from datetime import datetime
from typing import Any

import anyio
import pytest
from getstream import Stream

from tests.integration.doors import by_server, by_webhook
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import connected
from tests.sdk.driver import FOLDER, Failed, node, video_client

pytestmark = pytest.mark.anyio


def user(relay: RelayProcess, user_id: str) -> dict[str, Any]:
    return {"id": user_id, "name": user_id.capitalize(), "token": relay.token(user_id)}


async def test_it_watches_by_get_or_create_and_gets_what_every_door_brings(
    relay: RelayProcess, redis_server: RedisServer
) -> None:
    cid = "default:javascript"
    async with video_client(relay, user(relay, "john")) as john:
        assert (await john.do("connect"))["user_id"] == "john"
        call = await john.do("watch default javascript")
        assert (call["cid"], call["created"], call["watching"]) == (cid, True, True)
        assert abs(call["created_at"] / 1000 - time.time()) < 60
        await john.do("get")  # watching twice brings nothing twice

        def send() -> None:
            with Stream(API_KEY, API_SECRET, base_url=relay.base_url) as stream:
                call = stream.video.call("default", "javascript")
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


async def test_it_sends_custom_events_and_gets_its_own(relay: RelayProcess) -> None:
    async with (
        video_client(relay, user(relay, "john")) as john,
        connected(relay, "jane") as jane,
    ):
        await jane.watch("default:javascript-sends")
        await john.do("connect")
        await john.do("watch default javascript-sends")
        await john.do('send {"render-animation":"confetti"}')
        [seen] = await jane.until_count(1)
        [own] = await john.events(1)
    for event in (seen, own):
        assert event["custom"] == {"render-animation": "confetti"}
        assert (event["user"]["id"], event["user"]["name"]) == ("john", "John")


async def test_a_guest_logs_in_watches_and_sends(relay: RelayProcess) -> None:
    guest = {"id": "anna", "name": "Anna", "type": "guest"}
    async with (
        video_client(relay, guest) as anna,
        connected(relay, "jane") as jane,
    ):
        user_id = (await anna.do("connect"))["user_id"]
        assert user_id.startswith("guest-")
        assert user_id.endswith("-anna")
        await jane.watch("default:javascript-guest")
        await anna.do("watch default javascript-guest")
        await anna.do('send {"n":1}')
        [event] = await jane.until_count(1)
        await anna.events(1)
    assert event["user"]["id"] == user_id


async def test_a_custom_that_is_too_large_is_an_error_of_the_sdk(relay: RelayProcess) -> None:
    async with video_client(relay, user(relay, "john")) as john:
        await john.do("connect")
        await john.do("watch default javascript-large")
        with pytest.raises(Failed, match="code 22"):
            await john.do('send {"text":"%s"}' % ("x" * 5200))
        await john.do('send {"n":1}')
        await john.events(1)


async def test_its_telemetry_is_answered(relay: RelayProcess) -> None:
    async with video_client(relay, user(relay, "john"), telemetry=True) as john:
        await john.do("connect")
        await john.do("watch default javascript-telemetry")
    assert not [report for report in john.reports if report["what"] == "said"]


async def test_it_reconnects_after_the_relay_was_restarted(redis_server: RedisServer) -> None:
    settings = {"redis_url": redis_server.url, "redis_prefix": "restarted:"}
    with RelayProcess(**settings) as relay:
        port = relay.port
        async with video_client(relay, user(relay, "john")) as john:
            await john.do("connect")
            await john.connection(online=True)
            await anyio.to_thread.run_sync(relay.stop)
            with RelayProcess(**settings, port=port) as restarted:
                before = len(john.reports)
                with anyio.fail_after(15):
                    while {"what": "connection", "online": True} not in john.reports[before:]:
                        await anyio.sleep(0.05)
                await john.do("watch default javascript-restarted")
                await by_server(restarted, redis_server, "default:javascript-restarted", {"n": 1})
                await john.events(1)
                await john.aclose()


async def test_the_server_sdk_sends_creates_and_upserts(relay: RelayProcess) -> None:
    async with connected(relay, "john") as john:
        await john.watch("default:node-sdk")

        def run() -> str:
            command = [node(), str(FOLDER / "node_sdk.mjs"), relay.base_url, API_KEY, API_SECRET]
            done = subprocess.run(
                [*command, "node-sdk"], capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        told = json.loads(await anyio.to_thread.run_sync(run))
        [event] = await john.until_count(1)
    assert event["custom"] == {"render-animation": "hearts"}
    assert (event["user"]["id"], event["user"]["name"]) == ("jane", "Jane")
    assert told["user"]["name"] == "Jane"
    assert (told["cid"], told["same"]) == ("default:node-sdk", True)
    assert abs(told["created_at"] / 1000 - time.time()) < 60
    assert "user_id or user is missing" in told["refused"]["message"]
    async with connected(relay, "jane", told["token_of_user"]):
        pass
