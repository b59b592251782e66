"""What Stream serves and the relay does not: named, in six keys, and not to be tried again."""

from __future__ import annotations

import pytest

from tests.edges import KEY, Edges, token

pytestmark = pytest.mark.anyio

CALL = "/video/call/default/demo"


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("POST", f"{CALL}/start_recording", "recording"),
        ("POST", f"/api/v2{CALL}/recordings/composite/start", "recording"),
        ("GET", f"{CALL}/recordings", "recording"),
        ("DELETE", f"/api/v2{CALL}/session/recordings/file.mp4", "recording"),
        ("POST", f"{CALL}/start_transcription", "transcription"),
        ("POST", f"{CALL}/start_closed_captions", "captions"),
        ("POST", f"{CALL}/start_broadcasting", "broadcasting"),
        ("POST", f"{CALL}/rtmp_broadcasts/name/stop", "broadcasting"),
        ("POST", f"{CALL}/mute_users", "muting"),
        ("POST", f"{CALL}/pin", "pinning"),
        ("POST", f"{CALL}/feedback", "feedback"),
        ("POST", "/video/call/stats", "statistics"),
        ("GET", "/video/edges", "media server"),
        ("GET", "/api/v2/video/sip/inbound_trunks", "telephony"),
        ("POST", "/video/devices", "push"),
        ("POST", "/api/v2/devices", "push"),
        ("POST", "/api/v2/chat/channels", "chat"),
        ("POST", "/api/v2/users/delete", "deleting"),
        ("POST", "/api/v2/moderation/ban", "moderation"),
        ("GET", "/api/v2/tasks/1", "tasks"),
    ],
)
async def test_what_is_not_served_is_named(relay: Edges, method: str, path: str, what: str) -> None:
    response = await relay.client.request(method, path, params={"api_key": KEY}, headers=token())
    answer = response.json()
    assert (response.status_code, answer["code"], answer["unrecoverable"]) == (404, 16, True)
    assert what in answer["message"]


@pytest.mark.parametrize("path", ["/video/nowhere", f"{CALL}/evnt", "/api/v2/usres", "/video/call"])
async def test_a_typing_mistake_is_no_missing_feature(relay: Edges, path: str) -> None:
    response = await relay.client.post(path, params={"api_key": KEY}, headers=token())
    answer = response.json()
    assert (response.status_code, answer["code"]) == (404, 16)
    assert "unrecoverable" not in answer


async def test_the_built_in_call_types_are_listed(relay: Edges) -> None:
    for path in ("/api/v2/video/calltypes", "/api/v2/video/calltypes/livestream"):
        response = await relay.client.get(path, params={"api_key": KEY}, headers=token())
        assert response.status_code == 200
    listed = (
        await relay.client.get("/api/v2/video/calltypes", params={"api_key": KEY}, headers=token())
    ).json()["call_types"]
    assert listed.keys() == {"audio_room", "default", "development", "livestream"}
    assert "send-audio" not in listed["default"]["grants"]["user"]
    response = await relay.client.get(
        "/api/v2/video/calltypes/other", params={"api_key": KEY}, headers=token()
    )
    assert response.status_code == 404
