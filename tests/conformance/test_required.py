"""The checker itself: what falls short is found, what is complete passes."""

from __future__ import annotations

from typing import Any

import pytest

from relay import calls, users, wire
from relay.calls import Call
from relay.errors import NotFound
from relay.users import User
from tests.conformance.required import check_answer, check_event

NOW = 1_800_000_000_000_000_000
JOHN = User(id="john", created_at=NOW, updated_at=NOW)
CALL = Call(cid="default:demo", created_by="john", created_at=NOW, updated_at=NOW)
STATE: dict[str, Any] = {
    "call": calls.response(CALL, {"john": JOHN}), "members": [], "own_capabilities": [],
    "duration": "0.10ms",
}  # fmt: skip
EVENT: dict[str, Any] = wire.with_rfc3339(
    {
        "type": "custom", "created_at": NOW, "call_cid": "default:demo", "custom": {"a": 1},
        "user": users.response(JOHN), "event_id": "e1",
    }
)  # fmt: skip


def test_a_complete_answer_passes_in_the_dialect_of_its_path() -> None:
    check_answer("GET", "/api/v2/video/call/default/demo", 200, STATE)
    check_answer("GET", "/video/call/default/demo", 200, wire.with_rfc3339(STATE))
    with pytest.raises(AssertionError, match="no time of this dialect"):
        check_answer("GET", "/video/call/default/demo", 200, STATE)
    with pytest.raises(AssertionError, match="no time of this dialect"):
        check_answer("GET", "/api/v2/video/call/default/demo", 200, wire.with_rfc3339(STATE))


def test_what_is_missing_is_named_by_its_path() -> None:
    without = {**STATE, "call": {**STATE["call"], "egress": {"broadcasting": False}}}
    with pytest.raises(AssertionError, match=r"call\.egress\.rtmps is missing"):
        check_answer("GET", "/api/v2/video/call/default/demo", 200, without)


def test_an_error_has_six_keys_and_its_own_status() -> None:
    body = NotFound("no").body()
    check_answer("GET", "/video/nowhere", 404, body)
    with pytest.raises(AssertionError, match="StatusCode is 404"):
        check_answer("GET", "/video/nowhere", 400, body)
    for name in body:
        with pytest.raises(AssertionError, match=name):
            check_answer("GET", "/video/nowhere", 404, {k: v for k, v in body.items() if k != name})


def test_a_complete_event_passes() -> None:
    check_event(EVENT)


@pytest.mark.parametrize("name", ["created_at", "call_cid", "custom", "user"])
def test_an_event_that_lacks_a_field_does_not(name: str) -> None:
    with pytest.raises(AssertionError, match=f"{name} is missing"):
        check_event({key: value for key, value in EVENT.items() if key != name})


def test_an_event_of_an_unknown_type_has_what_all_have() -> None:
    check_event({**EVENT, "type": "call.hummed"})
    with pytest.raises(AssertionError, match="call_cid"):
        check_event({"type": "call.hummed", "created_at": EVENT["created_at"], "event_id": "e"})


def test_frames_of_the_relays_own_are_let_by() -> None:
    check_event({"type": "call.watching", "id": 1})
    check_event({"type": "call.sent", "id": 1, "event_id": "e1"})
