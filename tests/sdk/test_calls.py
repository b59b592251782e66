"""Calls and members with Stream's video client: done by one user, seen by another as it happens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from relay import tokens
from tests.integration.doors import by_server, post
from tests.processes import RelayProcess
from tests.redis_server import RedisServer
from tests.relay_client import connected
from tests.sdk.conftest import BOTH, Opens
from tests.sdk.driver import Failed, VideoClient, in_node
from tests.sdk.front import Front

pytestmark = pytest.mark.anyio

MEMBERS = "call.state.members.map((member) => `${member.user_id} ${member.role}`).sort()"
PARTICIPANTS = "(call.state.session?.participants ?? []).map(({ user }) => user.id).sort()"


@asynccontextmanager
async def watching(
    opens: Opens, relay: Front, user_id: str, cid: str
) -> AsyncIterator[VideoClient]:
    """Give a client that has logged in and watches a call."""
    async with opens(relay) as client:
        await client.connect(user_id, relay.token(user_id))
        await client.watch(cid)
        yield client


def path(cid: str, rest: str = "") -> str:
    return f"/api/v2/video/call/{cid.replace(':', '/')}{rest}"


@BOTH
async def test_members_are_added_changed_found_and_removed(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with (
        watching(opens, relay, "john", cid) as john,
        connected(relay, "ann") as ann,
        connected(relay, "ben") as ben,
    ):
        added = await john.run(
            "call.updateCallMembers({update_members: [{user_id: 'ann', role: 'host'},"
            " {user_id: 'ben', custom: {seat: 2}}]})"
        )
        assert [member["user_id"] for member in added["members"]] == ["ann", "ben"]
        await john.state(MEMBERS, ["ann host", "ben user"])
        for one in (ann, ben):  # members hear of it, though they do not watch
            await one.until(lambda frame: frame["type"] == "call.member_added")
        await john.run(
            "call.updateCallMembers({update_members: [{user_id: 'ben', role: 'admin'}]})"
        )
        await john.state(MEMBERS, ["ann host", "ben admin"])
        await john.events(1, "call.member_updated")
        found = await john.run(
            "call.queryMembers({filter_conditions: {role: {$in: ['admin', 'user']}},"
            " sort: [{field: 'user_id', direction: -1}], limit: 1})"
        )
        assert [member["user_id"] for member in found["members"]] == ["ben"]
        assert found["members"][0]["custom"] == {"seat": 2}
        await john.run("call.updateCallMembers({remove_members: ['ann']})")
        await john.state(MEMBERS, ["ben admin"])
        removed = await ann.until(lambda frame: frame["type"] == "call.member_removed")
    assert removed["members"] == ["ann"]


@BOTH
async def test_the_state_of_a_call_follows_what_others_do(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with watching(opens, relay, "john", cid) as john:
        change = {
            "custom": {"topic": "cake"},
            "settings_override": {"backstage": {"enabled": True}},
        }
        await patch(relay, path(cid), change)
        await john.state("call.state.custom", {"topic": "cake"})
        await john.state("call.state.settings.backstage.enabled", True)
        await post(relay, path(cid, "/stop_live"), {})
        await john.state("call.state.backstage", True)
        await post(relay, path(cid, "/go_live"), {})
        await john.state("call.state.backstage", False)
        await john.events(1, "call.live_started")
        await post(relay, path(cid, "/block"), {"user_id": "eve"})
        await john.state("call.state.blockedUserIds", ["eve"])
        await post(relay, path(cid, "/unblock"), {"user_id": "eve"})
        await john.state("call.state.blockedUserIds", [])
        grants = {"user_id": "john", "grant_permissions": ["send-audio"]}
        await post(relay, path(cid, "/user_permissions"), grants)
        # The client takes them from the event once it has joined, and from any answer.
        [event] = await john.events(1, "call.permissions_updated")
        assert "send-audio" in event["own_capabilities"]
        await john.run("call.get()")
        assert await john.run("call.state.ownCapabilities.includes('send-audio')")
        assert await john.run("call.state.createdBy.id") == "john"
        await john.run("call.endCall()")
        await john.state("call.state.endedAt instanceof Date", True)
        await john.events(1, "call.ended")


async def patch(relay: Front, url: str, body: object) -> None:
    headers = {"authorization": relay.token(), "stream-auth-type": "jwt"}
    async with httpx.AsyncClient(base_url=relay.base_url) as client:
        response = await client.patch(url, params={"api_key": "key"}, json=body, headers=headers)
    assert response.status_code == 200, response.text


@BOTH
async def test_calls_are_found_by_filters_sorted_in_pages_and_watched(
    relay: Front, opens: Opens, redis_server: RedisServer, cid: str
) -> None:
    team = cid.partition(":")[2][-60:]
    async with opens(relay) as john:
        await john.connect("john", relay.token("john"))
        for number in range(4):
            custom = {"n": number, "even": number % 2 == 0}
            members = [{"user_id": "ann"}] if number else []
            data = {"team": team, "custom": custom, "members": members}
            await post(relay, path(f"{cid}-{number}"), {"data": data}, "john")
        query = (
            "client.queryCalls({filter_conditions: {team, ...more}, sort, limit, next, watch})"
            ".then(({ calls, next, prev }) =>"
            " ({ found: calls.map(({ state }) => state.custom.n), next, prev }))"
        )
        asked = {
            "team": team, "more": {}, "limit": 3, "next": None, "watch": False,
            "sort": [{"field": "custom.n", "direction": -1}],
        }  # fmt: skip
        first = await john.run(query, **asked)
        assert first["found"] == [3, 2, 1]
        last = await john.run(query, **{**asked, "next": first["next"]})
        assert last["found"] == [0]
        assert "next" not in last
        for more, found in (
            ({"members": {"$in": ["ann"]}, "custom.even": True}, [2]),
            ({"$or": [{"custom.n": {"$gt": 2}}, {"custom.n": 0}]}, [3, 0]),
            ({"created_by_user_id": "john", "custom.n": {"$lte": 1}}, [1, 0]),
            ({"ended_at": {"$exists": True}}, []),
        ):
            assert (await john.run(query, **{**asked, "more": more}))["found"] == found
        await john.run(query, **{**asked, "more": {"custom.n": {"$in": [1, 2]}}, "watch": True})
        for number in (0, 1, 2, 3):
            await by_server(relay, redis_server, f"{cid}-{number}", {"n": number})
        events = await john.events(2)
        assert [event["custom"]["n"] for event in events] == [1, 2]
        with pytest.raises(Failed, match=r"filter_conditions\.colour") as refused:
            await john.run(query, **{**asked, "more": {"colour": "red"}})
        assert (refused.value.code, refused.value.status) == (4, 400)


@BOTH
async def test_who_is_blocked_or_kicked_is_told_and_then_hears_no_more(
    relay: Front, opens: Opens, redis_server: RedisServer, cid: str
) -> None:
    async with connected(relay, "owner") as owner, opens(relay) as john:
        await post(relay, path(cid).replace("/api/v2", ""), {}, "owner")
        await owner.watch(cid)
        await john.connect("john", relay.token("john"))
        await john.watch(cid)
        await post(relay, path(cid, "/kick"), {"user_id": "john"}, "owner")
        [kicked] = await john.events(1, "call.kicked_user")
        assert (kicked["user"]["id"], kicked["kicked_by_user"]["id"]) == ("john", "owner")
        await by_server(relay, redis_server, cid, {"n": "unheard"})
        await john.run("call.get()")  # kicked is not blocked: it may come back
        await by_server(relay, redis_server, cid, {"n": "heard"})
        await post(relay, path(cid, "/block"), {"user_id": "john"}, "owner")
        await john.events(1, "call.blocked_user")
        await by_server(relay, redis_server, cid, {"n": "unheard"})
        for refusal in ("call.get()", "call.sendCustomEvent({})", "call.sendReaction({type: 'a'})"):
            with pytest.raises(Failed, match="blocked") as refused:
                await john.run(refusal)
            assert (refused.value.code, refused.value.status) == (17, 403)
        await post(relay, path(cid, "/unblock"), {"user_id": "john"}, "owner")
        await john.run("call.get()")
        await by_server(relay, redis_server, cid, {"n": "heard again"})
        await john.until(
            lambda: [event["custom"]["n"] for event in john.got()] == ["heard", "heard again"],
            "the events while it was welcome",
        )


@BOTH
async def test_the_owner_blocks_kicks_grants_and_deletes(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with watching(opens, relay, "john", cid) as john, connected(relay, "eve") as eve:
        await eve.watch(cid)
        await john.run("call.grantPermissions('eve', ['update-call'])")
        granted = await eve.until(lambda frame: frame["type"] == "call.permissions_updated")
        assert "update-call" in granted["own_capabilities"]
        await john.run("call.kickUser({user_id: 'eve'})")
        await eve.until(lambda frame: frame["type"] == "call.kicked_user")
        await john.run("call.blockUser('eve')")
        await john.state("call.state.blockedUserIds", ["eve"])
        await john.run("call.unblockUser('eve')")
        await john.state("call.state.blockedUserIds", [])
        deleted = await john.run("call.delete({hard: true})")
        assert deleted["call"]["cid"] == cid
        await john.events(1, "call.deleted")
        with pytest.raises(Failed) as refused:
            await john.run("call.get()")
        assert (refused.value.code, refused.value.status) == (16, 404)


# -- joining ------------------------------------------------------------------------------------


async def test_joining_without_media_fails_once_and_is_announced(
    relay: Front, browser_opens: Opens, cid: str
) -> None:
    async with watching(in_node, relay, "john", cid) as john:
        async with watching(browser_opens, relay, "jane", cid) as jane:
            with pytest.raises(Failed, match="RELAY_MEDIA") as refused:
                await jane.run("call.join({create: true})")
            assert (refused.value.code, refused.value.unrecoverable) == (16, True)
            await john.events(1, "call.session_started")
            for one in (john, jane):
                await one.state(PARTICIPANTS, ["jane"])
        await john.events(1, "call.session_participant_left")
        await john.state(PARTICIPANTS, [])
        await john.events(1, "call.session_ended")
    assert relay.count("POST", f"{cid.replace(':', '/')}/join") == 1


async def test_joining_with_a_media_server_gives_its_credentials(tmp_path: Path, cid: str) -> None:
    secret = "the secret of the media server, long enough"
    media = tmp_path / "media.toml"
    media.write_text(
        f'url = "https://sfu.example"\nws_endpoint = "wss://sfu.example/ws"\nsecret = "{secret}"\n'
        '[[ice_servers]]\nurls = ["stun:sfu.example:3478"]\n'
    )
    with RelayProcess(media=str(media)) as process, Front(process) as relay:
        async with watching(in_node, relay, "john", cid) as john:
            joined = await john.run("call.doJoinRequest({ring: false})")
            await john.state(PARTICIPANTS, ["john"])
    credentials = joined["credentials"]
    assert credentials["server"]["ws_endpoint"] == "wss://sfu.example/ws"
    assert credentials["ice_servers"][0]["urls"] == ["stun:sfu.example:3478"]
    claims = tokens.verify(credentials["token"], "m", {"m": (secret,)}, time.time())
    assert (claims.user_id, claims.call_cids) == ("john", {cid})


@BOTH
async def test_what_the_relay_does_not_serve_is_said_once_and_clearly(
    relay: Front, opens: Opens, cid: str
) -> None:
    async with watching(opens, relay, "john", cid) as john:
        before = len(relay.answers)
        asked = {
            "call.startRecording()": "recording",
            "call.startTranscription()": "transcription",
            "call.startHLS()": "broadcasting",
            "call.muteUser('jane', 'audio')": "muting",
            "client.getDevices('john')": "push",
            "call.queryRecordings()": "recording",
        }
        for source, said in asked.items():
            with pytest.raises(Failed, match=said) as refused:
                await john.run(source)
            assert (refused.value.code, refused.value.status) == (16, 404)
            assert refused.value.unrecoverable
        statuses = [
            answer.status for answer in relay.answers[before:] if answer.method != "OPTIONS"
        ]
        assert statuses == [404] * len(asked)
