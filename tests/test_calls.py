from __future__ import annotations

from relay import calls, wire
from relay.calls import Call
from relay.users import User

T1 = 1_800_000_000_000_000_000
JOHN = User(id="john", created_at=T1, updated_at=T1)
CALL = Call(cid="default:demo", created_by="john", created_at=T1, updated_at=T1, custom={"a": [1]})

# stream-protocol.md, section 4, "fill the spec's required set".
CALL_RESPONSE = {
    "type", "id", "cid", "current_session_id", "created_by", "custom", "created_at", "updated_at",
    "recording", "transcribing", "captioning", "translating", "backstage", "settings",
    "blocked_user_ids", "ingress", "egress",
}  # fmt: skip
SETTINGS = {
    "audio", "backstage", "broadcasting", "geofencing", "recording", "individual_recording",
    "raw_recording", "frame_recording", "ring", "screensharing", "transcription", "video",
    "thumbnails", "limits", "session", "encryption",
}  # fmt: skip


def test_a_call_has_every_field_of_the_specification() -> None:
    response = calls.response(CALL, JOHN)
    assert set(response) == CALL_RESPONSE
    assert set(response["settings"]) == SETTINGS
    assert (response["type"], response["id"], response["cid"]) == ("default", "demo", CALL.cid)
    assert response["created_by"]["id"] == "john"
    assert response["custom"] == {"a": [1]}


def test_the_javascript_client_finds_what_it_throws_without() -> None:
    response = calls.response(CALL, JOHN)
    assert isinstance(response["egress"], dict)
    assert isinstance(response["settings"]["screensharing"], dict)
    for kind in ("rtmp", "whip", "srt"):
        assert response["ingress"][kind] == {"address": ""}


def test_no_sdk_is_made_to_ask_for_microphone_or_camera() -> None:
    settings = calls.response(CALL, JOHN)["settings"]
    assert settings["audio"]["mic_default_on"] is False
    assert settings["video"]["camera_default_on"] is False
    assert not {"send-audio", "send-video"} & set(calls.CAPABILITIES)


def test_server_sdks_find_the_layouts_they_require() -> None:
    settings = calls.response(CALL, JOHN)["settings"]
    assert settings["recording"]["layout"]
    assert settings["broadcasting"]["hls"]["layout"]
    assert settings["broadcasting"]["rtmp"]["layout"]


def test_times_are_nanoseconds_until_somebody_wants_them_otherwise() -> None:
    response = calls.response(CALL, JOHN)
    assert response["created_at"] == response["created_by"]["created_at"] == T1
    shown = wire.with_rfc3339(response)
    assert shown["created_at"] == shown["created_by"]["updated_at"] == wire.rfc3339(T1)
