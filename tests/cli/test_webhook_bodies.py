"""Bodies of simulated webhooks: the field sets of the real ones."""

from __future__ import annotations

from typing import Any

import pytest

from relay import events, wire
from relay.cli import webhook_bodies
from relay.cli.webhook_bodies import KINDS, Scene

NOW_NS = 1_795_419_273_477_260_007
SCENE = Scene(cid="default:demo", user_id="john", now_ns=NOW_NS, session_id="s1", custom={"a": 1})

FIELDS: dict[str, set[str]] = {
    "custom": {"custom", "user"},
    "call.created": {"call", "members"},
    "call.updated": {"call", "capabilities_by_role"},
    "call.ended": {"call", "user", "reason"},
    "call.deleted": {"call"},
    "call.reaction_new": {"reaction"},
    "call.member_added": {"call", "members"},
    "call.member_updated": {"call", "members"},
    "call.member_removed": {"call", "members"},
    "call.session_started": {"call", "session_id"},
    "call.session_ended": {"call", "session_id"},
    "call.session_participant_joined": {"session_id", "participant"},
    "call.session_participant_left": {"session_id", "participant", "duration_seconds", "reason"},
    "call.session_participant_count_updated": {
        "session_id", "participants_count_by_role", "anonymous_participant_count",
    },
    "call.permissions_updated": {"user", "own_capabilities"},
    "call.blocked_user": {"user", "blocked_by_user"},
    "call.unblocked_user": {"user"},
    "user.updated": {"user"},
}  # fmt: skip


def test_every_type_is_described_here() -> None:
    assert set(KINDS) == set(FIELDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_has_the_fields_of_its_type(kind: str) -> None:
    body = webhook_bodies.body(kind, SCENE)
    about = {"type", "created_at"} | (set() if kind == "user.updated" else {"call_cid"})
    assert set(body) == FIELDS[kind] | about
    assert (body["type"], body["created_at"]) == (kind, NOW_NS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "user.updated"])
def test_the_relay_takes_every_body_about_a_call(kind: str) -> None:
    body = wire.decode_object(wire.encode(webhook_bodies.body(kind, SCENE)))
    event = events.given_event(body, event_id="e", sender="s", identity="i", fingerprint="f")
    assert (event.cid, event.type) == ("default:demo", kind)


def test_users_look_as_in_production() -> None:
    user: dict[str, Any] = webhook_bodies.body("custom", SCENE)["user"]
    assert "custom" not in user
    assert user["shadow_banned"] is False
    assert user["invisible"] is False
    assert user["id"] == "john"


def test_a_call_has_what_the_javascript_client_needs() -> None:
    call = webhook_bodies.body("call.session_started", SCENE)["call"]
    assert call["cid"] == "default:demo"
    assert isinstance(call["egress"], dict)
    assert isinstance(call["settings"]["screensharing"], dict)
    assert call["session"]["participants"][0]["user"]["id"] == "john"
    assert call["session"]["participants_count_by_role"] == {"user": 1}
    assert call["current_session_id"] == "s1"


def test_an_ended_call_says_when() -> None:
    call = webhook_bodies.body("call.ended", SCENE)["call"]
    assert (call["ended_at"], call["current_session_id"]) == (NOW_NS, "")


def test_a_removed_member_is_an_id_and_an_added_one_an_object() -> None:
    assert webhook_bodies.body("call.member_removed", SCENE)["members"] == ["john"]
    (member,) = webhook_bodies.body("call.member_added", SCENE)["members"]
    assert member["user_id"] == "john"
