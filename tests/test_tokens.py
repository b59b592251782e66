from __future__ import annotations

import base64
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import tokens
from relay.errors import (
    BadSignature,
    NotAllowed,
    TokenBeforeIssue,
    TokenExpired,
    TokenNotYetValid,
    Unauthenticated,
    UnknownKey,
)
from relay.tokens import Claims

SECRET = "a secret of at least thirty-two bytes"
OLD = "the one before, just as long as it is"
KEYS = {"key": [SECRET, OLD], "other": ["the secret of another key, long enough"]}
NOW = 1_800_000_000.0


def sign(payload: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(payload, secret, algorithm=algorithm)


def verify(token: str, key: str | None = "key") -> Claims:
    return tokens.verify(token, key, KEYS, NOW)


# -- good ones ----------------------------------------------------------------------------------


def test_a_token_says_what_was_put_into_it() -> None:
    token = tokens.issue(
        SECRET, user_id="john", now=NOW, life_s=60, call_cids=["default:demo"], role="host"
    )
    assert verify(token) == Claims(
        api_key="key",
        user_id="john",
        role="host",
        call_cids=frozenset({"default:demo"}),
        issued=NOW,
        expires=NOW + 60,
    )


@pytest.mark.parametrize(
    ("issued", "older"), [(NOW - 1, True), (NOW, False), (NOW + 1, False), (None, True)]
)
def test_a_token_that_does_not_say_when_it_was_issued_counts_as_older(
    issued: float | None, older: bool
) -> None:
    assert Claims(api_key="key", user_id="john", issued=issued).issued_before(NOW) is older


@pytest.mark.parametrize("payload", [{}, {"server": True}, {"anything": [1]}])
def test_a_token_without_a_user_is_a_servers(payload: dict[str, Any]) -> None:
    assert verify(sign(payload)).is_server
    assert verify(tokens.issue(SECRET, user_id=None, now=NOW)).is_server
    assert not verify(sign({"user_id": "john", "server": True})).is_server


def test_any_secret_of_the_key_will_do_and_no_other() -> None:
    assert verify(sign({}, OLD)).is_server
    with pytest.raises(BadSignature):
        verify(sign({}, KEYS["other"][0]))
    assert verify(sign({}, KEYS["other"][0]), "other").api_key == "other"


def test_claims_of_others_are_ignored() -> None:
    payload = {"user_id": "john", "aud": "x", "iss": "x", "sub": ["y"], "jti": 1, "exp": None}
    assert verify(sign(payload)).expires is None


# -- bad ones -----------------------------------------------------------------------------------


def test_times_are_held_against_the_time_given() -> None:
    with pytest.raises(TokenExpired):
        verify(sign({"exp": NOW}))
    assert verify(sign({"exp": NOW + 1}))
    with pytest.raises(TokenNotYetValid):
        verify(sign({"nbf": NOW + 11}))
    assert verify(sign({"nbf": NOW + 10}))
    with pytest.raises(TokenBeforeIssue):
        verify(sign({"iat": NOW + 11}))
    assert verify(sign({"iat": NOW + 10}))


def test_an_expired_token_is_told_apart_before_anything_else_about_time() -> None:
    with pytest.raises(TokenExpired):
        verify(sign({"exp": NOW - 1, "nbf": NOW + 99, "iat": NOW + 99}))


@pytest.mark.parametrize(
    "payload",
    [
        {"user_id": None}, {"user_id": ""}, {"user_id": 7}, {"user_id": "a b"},
        {"user_id": "john", "role": 7}, {"user_id": "john", "call_cids": "default:demo"},
        {"user_id": "john", "call_cids": {"default:demo": 1}},
        {"user_id": "john", "call_cids": ["demo"]}, {"user_id": "john", "call_cids": [["x"]]},
        {"exp": "tomorrow"}, {"exp": True}, {"exp": 10**400}, {"nbf": []}, {"iat": {}},
        {"exp": float("nan")}, {"exp": float("inf")},
    ],
)  # fmt: skip
def test_a_signed_token_that_makes_no_sense_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(sign(payload))
    assert (caught.value.code, caught.value.reason) == (5, "bad_token")


def test_only_hs256_is_accepted() -> None:
    long = SECRET * 2
    with pytest.raises(BadSignature, match="HS256"):
        tokens.verify(sign({}, long, "HS512"), "key", {"key": [long]}, NOW)
    with pytest.raises(BadSignature, match="HS256"):
        verify(jwt.encode({}, None, algorithm="none"))


@pytest.mark.parametrize("key", [None, "", "nobody", "ключ"])
def test_an_unknown_key_is_refused_before_the_token_is_read(key: str | None) -> None:
    with pytest.raises(UnknownKey):
        verify("no token", key)


@given(st.text() | st.tuples(st.binary(), st.binary(), st.binary()).map(
    lambda parts: ".".join(base64.urlsafe_b64encode(part).decode() for part in parts)
))  # fmt: skip
def test_any_text_is_no_token_and_nothing_worse(token: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verify(token)
    assert SECRET not in caught.value.message


def test_a_header_nested_without_end_is_no_token() -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","x":' + b"[" * 50_000).decode()
    with pytest.raises(Unauthenticated):
        verify(f"{header}.e30.AAAA")


def test_lone_surrogates_are_no_token() -> None:
    with pytest.raises(Unauthenticated):
        verify("\ud800.e30.AAAA")


def test_a_token_sent_with_bearer_is_told_so() -> None:
    with pytest.raises(Unauthenticated, match="without 'Bearer'"):
        verify("Bearer " + sign({}))


# -- what a token allows ------------------------------------------------------------------------


def test_a_token_for_some_calls_is_for_no_other() -> None:
    claims = verify(sign({"user_id": "john", "call_cids": ["default:demo"]}))
    claims.check_call("default:demo")
    with pytest.raises(NotAllowed) as caught:
        claims.check_call("default:other")
    assert caught.value.reason == "call_not_in_token"
    with pytest.raises(NotAllowed):
        verify(sign({"user_id": "john", "call_cids": []})).check_call("default:demo")
    verify(sign({"user_id": "john"})).check_call("default:other")


def test_the_calls_a_token_is_not_for_are_told() -> None:
    asked = ["default:demo", "default:other"]
    claims = verify(sign({"user_id": "john", "call_cids": ["default:demo"]}))
    assert claims.disallowed(asked) == ["default:other"]
    assert verify(sign({"user_id": "john"})).disallowed(asked) == []


def test_a_token_ends_while_it_is_used() -> None:
    claims = Claims(api_key="key", user_id="john", expires=NOW)
    assert not claims.has_ended(NOW - 1)
    assert claims.has_ended(NOW)
    assert not Claims(api_key="key", user_id="john").has_ended(NOW)


def test_nobody_becomes_a_server_by_having_no_name() -> None:
    with pytest.raises(Unauthenticated):
        verify(tokens.issue(SECRET, user_id="", now=NOW))


def test_what_is_issued_is_plain_ascii_inside() -> None:
    # The JavaScript client's own base64 decoder knows no UTF-8.
    payload = tokens.issue(SECRET, user_id="jürgen", now=NOW).split(".")[1]
    assert base64.urlsafe_b64decode(payload + "==").isascii()


# -- connection ids -----------------------------------------------------------------------------


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_connection_id_is_its_users_alone(user: str, other: str) -> None:
    connection = tokens.connection_id("node7", "f00", user, SECRET)
    assert tokens.connection_owner(connection, user, SECRET) == "node7"
    assert tokens.connection_owner(connection, user, OLD) is None
    if other != user:
        assert tokens.connection_owner(connection, other, SECRET) is None


@given(st.text())
def test_any_text_is_nobodys_connection(text: str) -> None:
    assert tokens.connection_owner(text, "john", SECRET) is None
    assert tokens.connection_owner("node7-f00-" + text, "john", SECRET) is None


def test_a_connection_id_cannot_be_given_to_another_process() -> None:
    connection = tokens.connection_id("node7", "f00", "john", SECRET)
    assert tokens.connection_owner(connection.replace("node7", "node8"), "john", SECRET) is None
