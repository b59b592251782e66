from __future__ import annotations

import re

import msgspec
import pytest

from relay import calls, permissions, wire
from relay.calls import Call, Member, Participant, Session
from relay.errors import BadInput
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
OPTIONAL = {"starts_at", "ended_at", "team"}
SETTINGS = {
    "audio", "backstage", "broadcasting", "geofencing", "recording", "individual_recording",
    "raw_recording", "frame_recording", "ring", "screensharing", "transcription", "video",
    "thumbnails", "limits", "session", "encryption",
}  # fmt: skip


def test_a_call_has_every_field_of_the_specification() -> None:
    response = calls.response(CALL, {JOHN.id: JOHN})
    assert set(response) == CALL_RESPONSE | OPTIONAL
    assert set(response["settings"]) == SETTINGS
    assert (response["type"], response["id"], response["cid"]) == ("default", "demo", CALL.cid)
    assert response["created_by"]["id"] == "john"
    assert response["custom"] == {"a": [1]}


def test_the_javascript_client_finds_what_it_throws_without() -> None:
    response = calls.response(CALL, {JOHN.id: JOHN})
    assert isinstance(response["egress"], dict)
    assert isinstance(response["settings"]["screensharing"], dict)
    for kind in ("rtmp", "whip", "srt"):
        assert response["ingress"][kind] == {"address": ""}


def test_no_sdk_is_made_to_ask_for_microphone_or_camera() -> None:
    settings = calls.response(CALL, {JOHN.id: JOHN})["settings"]
    assert settings["audio"]["mic_default_on"] is False
    assert settings["video"]["camera_default_on"] is False
    assert not permissions.MEDIA & set().union(*permissions.GRANTS.values())


def test_server_sdks_find_the_layouts_they_require() -> None:
    settings = calls.response(CALL, {JOHN.id: JOHN})["settings"]
    assert settings["recording"]["layout"]
    assert settings["broadcasting"]["hls"]["layout"]
    assert settings["broadcasting"]["rtmp"]["layout"]


def test_times_are_nanoseconds_until_somebody_wants_them_otherwise() -> None:
    response = calls.response(CALL, {JOHN.id: JOHN})
    assert response["created_at"] == response["created_by"]["created_at"] == T1
    shown = wire.with_rfc3339(response)
    assert shown["created_at"] == shown["created_by"]["updated_at"] == wire.rfc3339(T1)


# -- members, sessions --------------------------------------------------------------------------

MEMBER = Member(user_id="jane", created_at=T1, updated_at=T1, role="host", custom={"seat": 7})
SESSION = Session(
    id="s1",
    started_at=T1,
    participants=(
        Participant(user_id="john", user_session_id="p1", role="user", joined_at=T1),
        Participant(user_id="jane", user_session_id="p2", role="host", joined_at=T1 + 1),
        Participant(user_id="jim", user_session_id="p3", role="user", joined_at=T1 + 2),
    ),
)


def test_a_member_has_every_field_of_the_specification() -> None:
    shown = calls.member_response(MEMBER, {})
    assert shown.keys() == {"user", "user_id", "custom", "created_at", "updated_at", "role"}
    assert (shown["user"]["id"], shown["role"], shown["custom"]) == ("jane", "host", {"seat": 7})


def test_a_running_session_shows_who_takes_part() -> None:
    shown = calls.response(CALL, {"john": JOHN}, SESSION)
    assert shown["current_session_id"] == "s1"
    session = shown["session"]
    assert [p["user"]["id"] for p in session["participants"]] == ["john", "jane", "jim"]
    assert session["participants_count_by_role"] == {"user": 2, "host": 1}
    assert session["participants"][1].keys() == {"user", "user_session_id", "role", "joined_at"}
    # Stream's Python SDK cannot do without these.
    for name in ("accepted_by", "missed_by", "rejected_by"):
        assert session[name] == {}


def test_without_a_session_there_is_none_to_show() -> None:
    shown = calls.response(CALL, {})
    assert "session" not in shown
    assert shown["current_session_id"] == ""


# -- settings -----------------------------------------------------------------------------------


def test_what_is_overridden_is_shown_and_the_rest_stays() -> None:
    override = calls.read_settings({"audio": {"mic_default_on": True}, "new": 1}, "settings")
    assert override == {"audio": {"mic_default_on": True}}
    call = msgspec.structs.replace(CALL, settings=override)
    settings = calls.response(call, {})["settings"]
    assert settings["audio"]["mic_default_on"] is True
    assert settings["audio"]["opus_dtx_enabled"] is True
    assert calls.default_settings()["audio"]["mic_default_on"] is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (7, "settings must be a JSON object"),
        ({"audio": []}, "settings.audio must be a JSON object"),
        ({"audio": {"mic_default_on": 1}}, "settings.audio.mic_default_on must be true or false"),
        (
            {"broadcasting": {"hls": {"layout": {"name": 7}}}},
            "settings.broadcasting.hls.layout.name must be a string",
        ),
        (
            {"ring": {"auto_cancel_timeout_ms": "1"}},
            "settings.ring.auto_cancel_timeout_ms must be a whole number",
        ),
        ({"geofencing": {"names": [1]}}, "settings.geofencing.names must be a list of strings"),
        ({"recording": {"mode": "x" * 1025}}, "settings.recording.mode may have at most 1024"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_its_path(override: object, message: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(message)}"):
        calls.read_settings(override, "settings")
