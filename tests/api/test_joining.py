from __future__ import annotations

import httpx
import pytest

from relay import tokens
from relay.api import load_media
from relay.media import Media
from relay.settings import SettingsError
from tests.edges import NOW_NS, Edges, edges, token

pytestmark = pytest.mark.anyio

C = "/video/call/default/demo"
JOHN = token("john")
CONNECTION = {"connection_id": "node-1-mac"}
MEDIA = Media(url="https://sfu.example", ws_endpoint="wss://sfu.example/ws", secret="s" * 32)


async def test_joining_watches_announces_and_says_that_there_is_no_media_server(
    relay: Edges,
) -> None:
    body = {"location": "relay", "create": True}
    response = await relay.post(f"{C}/join", body, headers=JOHN, params=CONNECTION)
    answer = response.json()
    assert (response.status_code, answer["code"], answer["unrecoverable"]) == (404, 16, True)
    assert "RELAY_MEDIA" in answer["message"]
    assert relay.watches.attached == [("node-1-mac", "john", "default:demo")]
    [participant] = relay.joins.running["default:demo"].participants
    assert (participant.user_id, participant.role) == ("john", "user")


async def test_a_media_servers_credentials_are_handed_out() -> None:
    async with edges(media=MEDIA) as relay:
        await relay.post(
            C, {"data": {"members": [{"user_id": "john", "role": "host"}]}}, headers=JOHN
        )
        response = await relay.post(
            f"{C}/join", {"location": "relay"}, headers=JOHN, params=CONNECTION
        )
        assert response.status_code == 201
        answer = response.json()
        assert answer["credentials"]["server"]["ws_endpoint"] == "wss://sfu.example/ws"
        claims = tokens.verify(
            answer["credentials"]["token"], "k", {"k": (MEDIA.secret,)}, NOW_NS / 1e9
        )
        assert (claims.user_id, claims.call_cids) == ("john", frozenset({"default:demo"}))
        session = answer["call"]["session"]
        assert [p["role"] for p in session["participants"]] == ["host"]


async def test_a_call_that_is_not_there_is_created_only_when_asked_to(relay: Edges) -> None:
    response = await relay.post(f"{C}/join", {"location": "x"}, headers=JOHN, params=CONNECTION)
    assert (response.status_code, response.json()["code"]) == (404, 16)
    assert "unrecoverable" not in response.json()
    assert relay.joins.running == {}


@pytest.mark.parametrize(
    ("headers", "params", "status"),
    [
        (JOHN, {}, 400),
        (token(), {}, 400),
        (token("jane"), CONNECTION, 400),
        ({"stream-auth-type": "anonymous"}, CONNECTION, 403),
    ],
)
async def test_who_joins_has_a_socket(
    relay: Edges, headers: dict[str, str], params: dict[str, str], status: int
) -> None:
    await relay.post(C, headers=JOHN)
    response = await relay.post(f"{C}/join", {"location": "x"}, headers=headers, params=params)
    assert response.status_code == status
    assert relay.joins.running == {}


async def test_an_ended_call_is_joined_by_who_manages_it(relay: Edges) -> None:
    await relay.post(C, headers=JOHN)
    await relay.post(f"{C}/mark_ended", headers=JOHN)
    relay.watches.open = {"jane-1": "jane", "node-1-mac": "john"}
    response = await relay.post(
        f"{C}/join", {"location": "x"}, headers=token("jane"), params={"connection_id": "jane-1"}
    )
    assert (response.status_code, response.json()["code"]) == (403, 17)
    assert "join-ended-call" in response.json()["message"]
    await relay.post(f"{C}/join", {"location": "x"}, headers=JOHN, params=CONNECTION)
    assert "default:demo" in relay.joins.running


async def join_while(relay: Edges, what: str, body: object = None) -> httpx.Response:
    """Let jane join while john does something to the call; both have a socket."""
    await relay.post(C, {"data": {"members": [{"user_id": "jane"}]}}, headers=JOHN)
    relay.watches.open = {"jane-1": "jane", "node-1-mac": "john"}
    relay.watches.meanwhile = lambda: relay.post(f"{C}/{what}", body, headers=JOHN)
    return await relay.post(
        f"{C}/join", {"location": "x"}, headers=token("jane"), params={"connection_id": "jane-1"}
    )


async def test_a_call_that_ends_while_somebody_joins_has_no_session_then(relay: Edges) -> None:
    response = await join_while(relay, "mark_ended")
    assert (response.status_code, response.json()["code"]) == (403, 17)
    assert "join-ended-call" in response.json()["message"]
    assert relay.joins.running == {}


async def test_a_call_that_is_deleted_while_somebody_joins_has_no_session_then(
    relay: Edges,
) -> None:
    response = await join_while(relay, "delete")
    assert (response.status_code, response.json()["code"]) == (404, 16)
    assert "never created" in response.json()["message"]
    assert relay.joins.running == {}


async def test_who_is_blocked_while_joining_does_not_watch_then(relay: Edges) -> None:
    response = await join_while(relay, "block", {"user_id": "jane"})
    assert (response.status_code, response.json()["code"]) == (403, 17)
    assert "is blocked" in response.json()["message"]
    assert relay.watches.expelled == [("jane", "default:demo")] * 2  # before it watched, and after


async def test_a_session_that_begins_while_the_call_is_deleted_ends_with_it(
    relay: Edges, monkeypatch: pytest.MonkeyPatch
) -> None:
    await relay.post(C, headers=JOHN)
    delete_call = relay.store.delete_call

    async def late(cid: str) -> object:
        await relay.post(f"{C}/join", {"location": "x"}, headers=JOHN, params=CONNECTION)
        assert relay.joins.running
        return await delete_call(cid)

    monkeypatch.setattr(relay.store, "delete_call", late)
    assert (await relay.post(f"{C}/delete", headers=JOHN)).status_code == 201
    assert relay.joins.running == {}


async def test_the_members_hear_who_comes_and_who_does_not(relay: Edges) -> None:
    body = {"data": {"members": [{"user_id": "john"}, {"user_id": "jane"}]}}
    await relay.post(C, body, headers=JOHN)
    assert (await relay.post(f"{C}/accept", headers=token("jane"))).status_code == 201
    await relay.post(f"{C}/reject", {"reason": "busy"}, headers=token("jane"))
    await relay.post(f"{C}/ring", headers=JOHN)
    accepted, rejected, ring = (await relay.published("default:demo"))[1:]
    assert (accepted["type"], accepted["user"]["id"]) == ("call.accepted", "jane")
    assert (rejected["type"], rejected["reason"]) == ("call.rejected", "busy")
    assert (ring["type"], ring["user"]["id"]) == ("call.ring", "john")
    assert relay.announcer.members[-1] == ("call.ring", ["jane", "john"])


# -- the media file -----------------------------------------------------------------------------

FILE = """
url = "https://sfu.example"
ws_endpoint = "wss://sfu.example/ws"
secret = "secret"
ice_servers = [{ urls = ["stun:sfu.example:3478"] }]
"""


def test_a_media_server_is_described_in_a_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "media.toml"
    path.write_text(FILE)
    media = load_media(str(path))
    assert media is not None
    assert media.ice_servers[0].urls == ("stun:sfu.example:3478",)
    assert load_media("") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "Expected '='"),
        ('url = "https://a"', "ws_endpoint"),
        (FILE.replace('"secret"', '""'), "secret must not be empty"),
        (FILE.replace("wss://sfu", "sfu"), "ws_endpoint must be an address"),
        (FILE + "colour = 1", "colour"),
    ],
)
def test_a_wrong_file_says_what_to_correct(tmp_path, text: str, problem: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "media.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=problem):
        load_media(str(path))
