"""Stream's server SDK for Node, unmodified: what a backend does, seen by who watches."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay import signing
from tests.processes import API_KEY, API_SECRET
from tests.relay_client import Refused, connected
from tests.sdk.driver import FOLDER, Failed, node
from tests.sdk.front import Front

pytestmark = pytest.mark.anyio


class Backend:
    """One process with one ``StreamClient``; ``call`` in its expressions is ``cid``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, source: str, **values: Any) -> Any:
        """Return what a JavaScript expression comes to; raises ``Failed``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"source": source, "values": values}).encode() + b"\n")
        answer = json.loads(await asyncio.wait_for(self._process.stdout.readline(), 20))
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["value"]


@pytest.fixture
async def backend(relay: Front, cid: str) -> AsyncIterator[Backend]:
    script = str(FOLDER / "node_sdk.mjs")
    process = await asyncio.create_subprocess_exec(
        node(), script, relay.base_url, API_KEY, API_SECRET, cid,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=8_000_000,
    )  # fmt: skip
    yield Backend(process)
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_it_describes_users_and_finds_them(backend: Backend, cid: str) -> None:
    jane = cid.partition(":")[2]
    told = await backend.run(
        "client.upsertUsers([{id, name: 'Jane', role: 'admin', custom: {team: id}}])", id=jane
    )
    assert (told["users"][jane]["name"], told["users"][jane]["role"]) == ("Jane", "admin")
    await backend.run(
        "client.updateUsersPartial({users: [{id, set: {colour: 'red'}, unset: ['name']}]})", id=jane
    )
    found = await backend.run(
        "client.queryUsers({payload: {filter_conditions: {'custom.team': id}}})", id=jane
    )
    [user] = found["users"]
    assert (user["id"], user["name"]) == (jane, "")
    assert user["custom"] == {"team": jane, "colour": "red"}


async def test_it_creates_changes_ends_and_deletes_a_call(
    backend: Backend, relay: Front, cid: str
) -> None:
    created = await backend.run(
        "call.getOrCreate({data: {created_by_id: 'jane', custom: {topic: 'tea'},"
        " members: [{user_id: 'john', role: 'host'}]}})"
    )
    assert (created["call"]["cid"], created["created"]) == (cid, True)
    made = await backend.run("new Date(call.data.created_at).getTime()")
    assert abs(made / 1000 - time.time()) < 60
    async with connected(relay, "john") as john, connected(relay, "ann") as ann:
        await john.watch(cid)
        await backend.run("call.update({custom: {topic: 'cake'}})")
        await backend.run("call.updateCallMembers({update_members: [{user_id: 'ann'}]})")
        await ann.until(lambda frame: frame["type"] == "call.member_added")
        members = await backend.run(
            "call.queryMembers({filter_conditions: {user_id: {$in: ['ann', 'john']}},"
            " sort: [{field: 'user_id', direction: 1}]})"
        )
        assert [member["user_id"] for member in members["members"]] == ["ann", "john"]
        await backend.run("call.blockUser({user_id: 'eve'})")
        await backend.run("call.unblockUser({user_id: 'eve'})")
        await backend.run("call.goLive()")
        await backend.run(
            "call.updateUserPermissions({user_id: 'ann', grant_permissions: ['screenshare']})"
        )
        found = await backend.run(
            "client.video.queryCalls({filter_conditions: {cid: {$eq: call.cid}}})"
        )
        assert found["calls"][0]["call"]["custom"] == {"topic": "cake"}
        await backend.run("call.end()")
        await backend.run("call.delete()")
        await john.until(lambda frame: frame["type"] == "call.deleted")
    assert [event["type"] for event in john.events] == [
        "call.updated", "call.member_added", "call.blocked_user", "call.unblocked_user",
        "call.live_started", "call.updated", "call.permissions_updated", "call.ended",
        "call.deleted",
    ]  # fmt: skip
    with pytest.raises(Failed, match="never created") as refused:
        await backend.run("call.get()")
    assert (refused.value.code, refused.value.status) == (16, 404)


async def test_it_sends_events_and_learns_what_is_wrong(
    backend: Backend, relay: Front, cid: str
) -> None:
    async with connected(relay, "john") as john:
        await john.watch(cid)
        await backend.run("call.sendCallEvent({user_id: 'jane', custom: {n: 1}})")
        event = await john.until(lambda frame: frame["type"] == "custom")
        assert (event["custom"], event["user"]["id"]) == ({"n": 1}, "jane")
    for source, message, code in (
        ("call.sendCallEvent({custom: {}})", "user_id or user is missing", 4),
        ("call.startRecording()", "recording", 16),
    ):
        with pytest.raises(Failed, match=message) as refused:
            await backend.run(source)
        assert refused.value.code == code


async def test_its_tokens_open_sockets_and_call_tokens_only_their_calls(
    backend: Backend, relay: Front, cid: str
) -> None:
    for source in ("generateUserToken({user_id})", "generatePermanentUserToken({user_id})"):
        token = await backend.run(f"client.{source}", user_id="jane")
        async with connected(relay, "jane", token):
            pass
    source = "client.generateCallToken({user_id: 'jane', call_cids: [call.cid], role: 'host'})"
    async with connected(relay, "jane", await backend.run(source)) as jane:
        await jane.watch(cid)
        with pytest.raises(Refused, match="not for the call"):
            await jane.watch("default:another")


async def test_its_webhook_helpers_verify_what_the_relay_signs(backend: Backend, cid: str) -> None:
    body = json.dumps({"type": "call.ended", "call_cid": cid, "created_at": time.time_ns()})
    signature = signing.stream_signature(body.encode(), API_SECRET)
    verify = "client.verifyWebhook(body, signature)"
    assert await backend.run(verify, body=body, signature=signature) is True
    assert await backend.run(verify, body=body + " ", signature=signature) is False
    parse = "client.verifyAndParseWebhook(body, signature).type"
    assert await backend.run(parse, body=body, signature=signature) == "call.ended"
