"""The conversation: every transition, every refusal, any input."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import tokens, wire
from relay.errors import Close, NotAllowed, RateLimited, Refused
from relay.events import Position
from relay.gateway import frames
from relay.gateway.session import (
    ARRAY_LIMIT,
    HEARTBEAT_S,
    Action,
    End,
    Login,
    Phase,
    Refresh,
    Refuse,
    Rules,
    Send,
    Session,
    Unwatch,
    Watch,
    Write,
)
from relay.users import Profile, User
from tests.bad_input import SIX_KEYS, forged

SECRET = "a secret of at least thirty-two bytes"
NOW = 1_800_000_000
NOW_NS = NOW * 10**9
CID = "default:standup"
KEYS = {"key": (SECRET,), "other": ("another secret of at least thirty-two",)}


def rules(**changes: Any) -> Rules:
    return Rules(keys=KEYS, new_id=lambda: "minted", **changes)


def ns(seconds: float) -> int:
    return NOW_NS + int(seconds * 1e9)


def token(user_id: str | None = "john", secret: str = SECRET, **claims: Any) -> str:
    said = claims if user_id is None else {"user_id": user_id, **claims}
    return jwt.encode(said, secret, algorithm="HS256")


def first_frame(given: object = None, **details: Any) -> str:
    details = {"id": "john"} | details
    return json.dumps(
        {"token": token() if given is None else given, "products": ["video"],
         "user_details": details}
    )  # fmt: skip


def new(api_key: str | None = "key", auth_type: str = "jwt", **changes: Any) -> Session:
    return Session(rules(**changes), api_key, auth_type, NOW_NS)


def opened(given: str | None = None, **changes: Any) -> Session:
    session = new(**changes)
    [login] = session.received(first_frame(given), NOW_NS)
    assert isinstance(login, Login)
    john = User(id="john", created_at=1, updated_at=1, name="John")
    session.welcomed(john, "here-1-mac", NOW_NS)
    return session


def say(session: Session, now_ns: int = NOW_NS, **message: Any) -> Any:
    """Send a command; return the one action that comes of it."""
    [action] = session.received(json.dumps(message), now_ns)
    return action


def refused(action: Action) -> Refused:
    assert isinstance(action, Refuse), action
    reply = wire.decode(frames.error(action.id, action.error))
    assert set(reply["error"]) == SIX_KEYS
    return action.error


# -- the first frame ------------------------------------------------------------------------------


def test_a_token_begins_the_login() -> None:
    session = new()
    [action] = session.received(first_frame(name="John", custom={"a": 1}), NOW_NS)
    assert action == Login("john", Profile(name="John", custom={"a": 1}))
    assert session.phase is Phase.LOGGING_IN
    assert session.claims.user_id == "john"


def test_the_welcome_opens_the_conversation() -> None:
    session = new()
    session.received(first_frame(), NOW_NS)
    john = User(id="john", created_at=1, updated_at=1)
    [action] = session.welcomed(john, "here-1-mac", NOW_NS)
    assert isinstance(action, Write)
    ok = wire.decode(action.text)
    assert (ok["type"], ok["connection_id"], ok["me"]["id"]) == (
        "connection.ok", "here-1-mac", "john",
    )  # fmt: skip
    assert (session.phase, session.user, session.connection_id) == (Phase.OPEN, john, "here-1-mac")


ALG_NONE = forged("none", {"user_id": "john"}, lambda said: b"")
HS512 = forged(
    "HS512", {"user_id": "john"}, lambda said: hmac.digest(SECRET.encode(), said, "sha512")
)

REFUSED_LOGINS: Mapping[str, tuple[str, int, str]] = {
    "expired": (first_frame(token(exp=NOW - 1)), 40, "token_expired"),
    "not yet valid": (first_frame(token(nbf=NOW + 60)), 41, "token_not_yet_valid"),
    "issued tomorrow": (first_frame(token(iat=NOW + 60)), 42, "token_before_issue"),
    "alg none": (first_frame(ALG_NONE), 43, "bad_signature"),
    "wrong algorithm": (first_frame(HS512), 43, "bad_signature"),
    "wrong secret": (first_frame(token(secret="x" * 40)), 43, "bad_signature"),
    "another user's": (first_frame(token("jane")), 5, "other_user"),
    "a server's": (first_frame(token(None, server=True)), 17, "not_allowed"),
    "an empty one": (first_frame(token(None)), 17, "not_allowed"),
    "user_id null": (first_frame(jwt.encode({"user_id": None}, SECRET)), 5, "bad_token"),
    "no JWT": (first_frame("balloons"), 5, "bad_token"),
    "a number": (first_frame(7), 5, "bad_token"),
    "missing": ('{"user_details":{"id":"john"}}', 5, "bad_token"),
    "no user_details": (json.dumps({"token": token()}), 4, "bad_input"),
    "user_details a list": (json.dumps({"token": token(), "user_details": []}), 4, "bad_input"),
    "no id": (json.dumps({"token": token(), "user_details": {}}), 5, "other_user"),
    "name a number": (first_frame(name=7), 4, "bad_input"),
    "custom a word": (first_frame(custom="x"), 4, "custom_not_an_object"),
    "custom too large": (first_frame(custom={"n": "x" * 6000}), 22, "custom_too_large"),
    "not JSON": ("balloons", 4, "not_json"),
    "empty": ("", 4, "not_json"),
    "not an object": ("[]", 4, "not_an_object"),
    "too deep": ("[" * 100 + "]" * 100, 4, "too_deep"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_LOGINS)
def test_a_first_frame_that_does_not_authenticate_is_told_why_and_closed(name: str) -> None:
    text, code, reason = REFUSED_LOGINS[name]
    session = new()
    [end] = session.received(text, NOW_NS)
    assert isinstance(end, End)
    assert (end.code, end.why) == (Close.REFUSED, reason)
    assert end.farewell is not None
    said = wire.decode(end.farewell)
    assert said["type"] == "connection.error"
    assert set(said["error"]) == SIX_KEYS
    assert said["error"]["code"] == code
    assert "code" not in said, "Stream's client would take it for a close event"
    assert SECRET not in end.farewell.decode()
    assert session.phase is Phase.ENDED
    assert session.received(first_frame(), NOW_NS) == []


@pytest.mark.parametrize(
    ("api_key", "auth_type", "code"),
    [(None, "jwt", 2), ("nobody", "jwt", 2), ("other", "jwt", 43), ("key", "anonymous", 17)],
)
def test_a_url_that_cannot_log_in_is_told_in_the_socket(
    api_key: str | None, auth_type: str, code: int
) -> None:
    [end] = new(api_key, auth_type).received(first_frame(), NOW_NS)
    assert isinstance(end, End)
    assert end.farewell is not None
    assert wire.decode(end.farewell)["error"]["code"] == code


def test_an_unknown_key_is_told_even_without_a_token() -> None:
    [end] = new("nobody").received('{"user_details":{"id":"john"}}', NOW_NS)
    assert isinstance(end, End)
    assert end.why == "unknown_key"


def test_a_refused_login_ends_the_conversation() -> None:
    session = new()
    session.received(first_frame(), NOW_NS)
    [end] = session.refused(RateLimited("too many", reason="too_many_sockets"), NOW_NS)
    assert isinstance(end, End)
    assert (end.code, end.why) == (Close.REFUSED, "too_many_sockets")
    assert session.phase is Phase.ENDED


def test_commands_before_the_welcome_are_refused_and_counted_against_the_rate() -> None:
    session = new(command_burst=3)
    session.received(first_frame(), NOW_NS)
    assert [refused(say(session, type="health.check")).reason for _ in range(3)] == ["early"] * 3
    assert refused(say(session, type="health.check")).reason == "rate_limited"
    for _ in range(2):
        say(session, type="health.check")
    assert isinstance(say(session, type="health.check"), End)


# -- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_health_check_is_answered_as_object_and_as_array(wrapped: bool) -> None:
    message = {"type": "health.check", "client_id": "john--1"}
    [action] = opened().received(json.dumps([message] if wrapped else message), NOW_NS)
    assert isinstance(action, Write)
    assert wire.decode(action.text) == {
        "type": "health.check", "connection_id": "here-1-mac",
        "created_at": wire.rfc3339(NOW_NS), "custom": {},
    }  # fmt: skip


def test_watch() -> None:
    assert say(opened(), type="call.watch", id=1, call_cid=CID) == Watch(1, CID, None)


def test_watch_from_a_position() -> None:
    since = {"epoch": "k3", "offset": 41}
    action = say(opened(), type="call.watch", id="a", call_cid=CID, since=since)
    assert action == Watch("a", CID, Position("k3", 41))


def test_unwatch() -> None:
    assert say(opened(), type="call.unwatch", id=2, call_cid=CID) == Unwatch(2, CID)


def test_send() -> None:
    action = say(opened(), type="call.send", id=3, call_cid=CID, custom={"a": [1]})
    assert isinstance(action, Send)
    event = action.event
    assert (event.cid, event.type, event.sender) == (CID, "custom", "user:john")
    assert (event.event_id, event.minted, event.volatile) == ("minted", True, False)
    said = wire.decode(event.body)
    assert said["custom"] == {"a": [1]}
    assert said["user"]["id"] == "john"
    assert said["user"]["name"] == "John"


def test_send_with_an_id_of_its_own() -> None:
    action = say(opened(), type="call.send", call_cid=CID, custom={}, event_id="e-1")
    assert (action.event.event_id, action.event.identity) == ("e-1", "e-1")
    assert not action.event.minted


def test_send_volatile() -> None:
    action = say(opened(), type="call.send", call_cid=CID, custom={}, volatile=True)
    assert action.event.volatile
    assert action.event.identity is None


REFUSED_COMMANDS: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "no type": ({}, 4, "unknown_command"),
    "unknown type": ({"type": "call.dance"}, 4, "unknown_command"),
    "type a list": ({"type": [["call.watch"]]}, 4, "unknown_command"),
    "type a huge number": ({"type": 10**600}, 4, "unknown_command"),
    "watch without a cid": ({"type": "call.watch"}, 4, "bad_cid"),
    "cid with spaces": ({"type": "call.watch", "call_cid": "default:a b"}, 4, "bad_cid"),
    "cid with slashes": ({"type": "call.watch", "call_cid": "default:a/b"}, 4, "bad_cid"),
    "cid of 1 000": ({"type": "call.watch", "call_cid": "default:" + "x" * 992}, 4, "bad_cid"),
    "cid a number": ({"type": "call.unwatch", "call_cid": 7}, 4, "bad_cid"),
    "since a number": ({"type": "call.watch", "call_cid": CID, "since": 7}, 4, "bad_input"),
    "since without epoch": (
        {"type": "call.watch", "call_cid": CID, "since": {"offset": 1}}, 4, "bad_input",
    ),
    "since long epoch": (
        {"type": "call.watch", "call_cid": CID, "since": {"epoch": "x" * 65, "offset": 1}},
        4, "bad_input",
    ),
    "since negative": (
        {"type": "call.watch", "call_cid": CID, "since": {"epoch": "e", "offset": -1}},
        4, "bad_input",
    ),
    "since true": (
        {"type": "call.watch", "call_cid": CID, "since": {"epoch": "e", "offset": True}},
        4, "bad_input",
    ),
    "since fractional": (
        {"type": "call.watch", "call_cid": CID, "since": {"epoch": "e", "offset": 1.5}},
        4, "bad_input",
    ),
    "since beyond all": (
        {"type": "call.watch", "call_cid": CID, "since": {"epoch": "e", "offset": 2**53 + 1}},
        4, "bad_input",
    ),
    "send without custom": ({"type": "call.send", "call_cid": CID}, 4, "custom_not_an_object"),
    "custom a list": (
        {"type": "call.send", "call_cid": CID, "custom": [1]}, 4, "custom_not_an_object",
    ),
    "custom over 5 KB": (
        {"type": "call.send", "call_cid": CID, "custom": {"n": "x" * 5120}}, 22, "custom_too_large",
    ),
    "volatile a word": (
        {"type": "call.send", "call_cid": CID, "custom": {}, "volatile": "yes"}, 4, "bad_input",
    ),
    "event_id with spaces": (
        {"type": "call.send", "call_cid": CID, "custom": {}, "event_id": "a b"}, 4, "bad_event_id",
    ),
    "refresh without a token": ({"type": "token.refresh"}, 5, "bad_token"),
    "refresh with an expired one": (
        {"type": "token.refresh", "token": token(exp=NOW - 1)}, 40, "token_expired",
    ),
    "refresh with another user's": (
        {"type": "token.refresh", "token": token("jane")}, 17, "other_user",
    ),
    "refresh with a server's": ({"type": "token.refresh", "token": token(None)}, 17, "not_allowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_COMMANDS)
def test_a_bad_command_is_refused_under_its_id_and_the_next_one_works(name: str) -> None:
    message, code, reason = REFUSED_COMMANDS[name]
    session = opened()
    action = say(session, **{"id": 5, **message})
    error = refused(action)
    assert (error.code, error.reason) == (code, reason)
    assert action.id == 5
    assert isinstance(say(session, type="call.watch", call_cid=CID), Watch)


@pytest.mark.parametrize("text", ["7", '"call.watch"', "null", "true"])
def test_a_message_that_is_no_object_is_refused(text: str) -> None:
    [action] = opened().received(text, NOW_NS)
    assert refused(action).reason == "not_an_object"
    assert isinstance(action, Refuse)
    assert action.id is None


@pytest.mark.parametrize("text", ["", "{", '{"type":"\\ud800"}', "[" * 2000, "\x00"])
def test_a_message_that_is_no_json_is_refused(text: str) -> None:
    [action] = opened().received(text, NOW_NS)
    assert refused(action).reason in ("not_json", "too_deep")


@pytest.mark.parametrize("command_id", [1.5, [], {}, "x" * 129, 10**200])
def test_an_id_that_cannot_be_one_is_refused(command_id: object) -> None:
    action = say(opened(), type="call.watch", id=command_id, call_cid=CID)
    assert refused(action).reason == "bad_input"
    assert action.id is None


def test_a_watch_of_a_call_that_the_token_does_not_allow_is_refused() -> None:
    session = opened(token(call_cids=["default:mine"]))
    for kind in ("call.watch", "call.send"):
        error = refused(say(session, type=kind, call_cid=CID, custom={}))
        assert isinstance(error, NotAllowed)
        assert error.reason == "call_not_in_token"
    assert isinstance(say(session, type="call.watch", call_cid="default:mine"), Watch)


def test_an_array_of_messages_is_taken_apart() -> None:
    messages = [{"type": "call.watch", "id": n, "call_cid": CID} for n in range(3)] + [7]
    actions = opened().received(json.dumps(messages), NOW_NS)
    assert actions[:3] == [Watch(n, CID, None) for n in range(3)]
    assert refused(actions[3]).reason == "not_an_object"


def test_a_long_array_is_refused() -> None:
    [action] = opened().received(json.dumps([{}] * (ARRAY_LIMIT + 1)), NOW_NS)
    assert "at most 16" in refused(action).message


def test_a_new_token_takes_the_place_of_the_old_one() -> None:
    session = opened(token(exp=NOW + 60))
    action = say(session, type="token.refresh", id=4, token=token(exp=NOW + 600, call_cids=[CID]))
    assert isinstance(action, Refresh)
    assert action.claims.expires == NOW + 600
    assert session.claims is action.claims
    other = say(session, type="call.watch", call_cid="default:other")
    assert refused(other).reason == "call_not_in_token"


def test_a_refused_token_leaves_the_old_one() -> None:
    session = opened(token(exp=NOW + 60))
    before = session.claims
    say(session, type="token.refresh", token=token("jane"))
    assert session.claims is before


# -- the rate -----------------------------------------------------------------------------------


def flood(session: Session, count: int, now_ns: int = NOW_NS) -> list[Action]:
    return [say(session, now_ns, type="call.unwatch", call_cid=CID) for _ in range(count)]


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    session = opened(command_rate=20, command_burst=10)
    actions = flood(session, 11)
    assert all(isinstance(action, Unwatch) for action in actions[:10])
    error = refused(actions[10])
    assert isinstance(error, RateLimited)
    assert error.retry_after == pytest.approx(0.05)
    assert "wait 0.05 s" in error.message
    assert isinstance(flood(session, 1, ns(0.051))[0], Unwatch)
    assert isinstance(flood(session, 1, ns(0.052))[0], Refuse)


def test_one_who_does_not_listen_is_closed() -> None:
    session = opened(command_burst=10)
    actions = flood(session, 21)
    assert sum(isinstance(action, Refuse) for action in actions) == 10
    end = actions[-1]
    assert isinstance(end, End)
    assert (end.code, end.why) == (Close.FLOOD, "flood")
    assert session.received('{"type":"health.check"}', NOW_NS) == []


def test_overruns_are_forgiven_once_the_allowance_is_full_again() -> None:
    session = opened(command_rate=20, command_burst=10)
    for pause in range(3):
        actions = flood(session, 20, ns(pause * 10))
        assert not any(isinstance(action, End) for action in actions)


def test_messages_in_an_array_count_one_by_one() -> None:
    session = opened(command_burst=20)
    text = json.dumps([{"type": "call.unwatch", "call_cid": CID}] * ARRAY_LIMIT)
    assert len(session.received(text, NOW_NS)) == ARRAY_LIMIT
    actions = session.received(text, NOW_NS)
    assert sum(isinstance(action, Unwatch) for action in actions) == 4
    assert refused(actions[-1]).reason == "rate_limited"
    assert len(actions) == 5


def test_a_clock_that_goes_back_grants_nothing() -> None:
    session = opened(command_burst=1)
    flood(session, 1)
    assert isinstance(flood(session, 1, ns(-3600))[0], Refuse)
    assert isinstance(flood(session, 1, ns(-3600 + 0.06))[0], Unwatch)


def test_a_rate_of_zero_is_no_limit() -> None:
    session = opened(command_rate=0)
    assert all(isinstance(action, Unwatch) for action in flood(session, 1000))


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_never_more_than_the_burst_and_the_rate_allow(pauses: list[float]) -> None:
    session = opened(command_rate=10, command_burst=5)
    elapsed, welcome = 0.0, 0
    for pause in pauses:
        elapsed += pause
        actions = session.received('{"type":"health.check"}', ns(elapsed))
        welcome += sum(isinstance(action, Write) for action in actions)
    assert welcome <= 5 + 10 * elapsed + 1e-3


# -- time ---------------------------------------------------------------------------------------


def test_a_socket_that_stays_silent_is_closed_at_the_deadline() -> None:
    session = new(first_frame_s=10)
    assert session.next_due_s(NOW_NS) == 10
    assert session.next_due_s(ns(4)) == 6
    assert session.due(ns(9.9)) == []
    [end] = session.due(ns(10))
    assert isinstance(end, End)
    assert (end.code, end.why) == (Close.NO_AUTHENTICATION, "no_authentication")
    assert session.due(ns(11)) == []


def test_a_login_that_hangs_is_closed_at_the_deadline_too() -> None:
    session = new()
    session.received(first_frame(), NOW_NS)
    assert isinstance(session.due(ns(10))[0], End)


def test_an_open_socket_gets_health_checks() -> None:
    session = opened()
    assert session.next_due_s(ns(5)) == HEARTBEAT_S
    [action] = session.due(ns(20))
    assert isinstance(action, Write)
    assert wire.decode(action.text)["type"] == "health.check"


def test_a_token_that_ends_closes_the_socket_without_an_error_frame() -> None:
    session = opened(token(exp=NOW + 30))
    assert session.next_due_s(NOW_NS) == HEARTBEAT_S
    assert session.next_due_s(ns(20)) == 10
    assert session.next_due_s(ns(99)) == 0
    assert isinstance(session.due(ns(29))[0], Write)
    [end] = session.due(ns(30))
    assert isinstance(end, End)
    assert (end.code, end.why, end.farewell) == (Close.TOKEN_EXPIRED, "token_expired", None)
    assert session.due(ns(31)) == []


# -- anything at all ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
COMMAND = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["call.watch", "call.unwatch", "call.send", "token.refresh", "health.check"]
        ) | JSON,
        "id": JSON,
        "call_cid": st.just(CID) | JSON,
        "since": st.fixed_dictionaries({"epoch": st.text() | JSON, "offset": JSON}) | JSON,
        "custom": st.dictionaries(st.text(), JSON, max_size=3) | JSON,
        "volatile": JSON,
        "event_id": JSON,
        "token": JSON,
    },
)  # fmt: skip


def answered(actions: list[Action]) -> None:
    """Whatever came of it can be told to the peer."""
    for action in actions:
        match action:
            case Refuse(command_id, error):
                wire.decode(frames.error(command_id, error))
            case Watch(command_id, cid, _):
                wire.decode(frames.watching(command_id, cid, Position("e", 1), None))
            case Send(command_id, event):
                assert wire.decode(event.body)["call_cid"] == event.cid
                wire.decode(frames.refreshed(command_id))
            case End(_, _, _, bytes(farewell)):
                wire.decode(farewell)


@settings(max_examples=150, deadline=None)
@given(
    st.text() | JSON.map(json.dumps) | COMMAND.map(json.dumps) | st.lists(COMMAND).map(json.dumps)
)
def test_any_text_is_a_command_or_a_refusal(text: str) -> None:
    answered(opened().received(text, NOW_NS))


@settings(max_examples=100, deadline=None)
@given(
    st.text()
    | JSON.map(json.dumps)
    | st.fixed_dictionaries({"token": JSON | st.just(token()), "user_details": JSON}).map(
        json.dumps
    )
)
def test_any_first_frame_is_a_login_or_a_refusal(text: str) -> None:
    answered(new().received(text, NOW_NS))


def test_the_server_token_of_both_sdks_is_recognised() -> None:
    """python signs an empty claim set, node says server: true; neither may open a socket."""
    for servers in (tokens.issue(SECRET, user_id=None, now=NOW), token(None)):
        [end] = new().received(first_frame(servers), NOW_NS)
        assert isinstance(end, End)
        assert end.why == "not_allowed"
