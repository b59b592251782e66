from __future__ import annotations

import base64
import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import events, signing, wire
from relay.broker import Limits
from relay.broker.rules import given_window_s
from relay.errors import BadInput, BadSignature, Refused, TooLarge, UnknownKey
from relay.ingress.sources import (
    Accepted,
    StandardSource,
    StreamSource,
    at_pointer,
    check_age,
    read_pointer,
)

GOLDEN_SECRET = "test_secret_do_not_use_in_production"
GOLDEN_BODY = b'{"type":"call.session_started","created_at":1778198400000000000}'
GOLDEN_SIGNATURE = "9c65b50bfdf1e8205ba673103a21d3fda71d6969f9003c0f2cdaf43467f6ab07"
GOLDEN_NS = 1_778_198_400_000_000_000

NOW_NS = 1_800_000_000_000_000_000
STREAM = StreamSource({"key": ["new", "old"], "k2": ["x"]}, max_bytes=10_000, freshness_s=3600)
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
OLDER = "whsec_" + base64.b64encode(b"older-6789abcdef01234567").decode()


def standard(call: str = "/data/call", call_type: str | None = None) -> StandardSource:
    return StandardSource(
        "billing", [WHSEC, OLDER], call, max_bytes=10_000, freshness_s=3600, call_type=call_type
    )


def stream_body(**fields: Any) -> bytes:
    body = {"type": "custom", "created_at": NOW_NS, "call_cid": "default:demo"} | fields
    return wire.encode(body)


def stream(body: bytes, secret: str = "new", **headers: str) -> Accepted:
    given = {"x-api-key": "key", "x-signature": signing.stream_signature(body, secret)}
    return STREAM.accept(given | headers, body, NOW_NS)


def standard_headers(body: bytes, secret: str = WHSEC, **said: str) -> dict[str, str]:
    webhook_id, timestamp = said.get("id", "msg_1"), said.get("timestamp", str(NOW_NS // 10**9))
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signing.standard_signature(webhook_id, timestamp, body, secret),
    }


# -- Stream -------------------------------------------------------------------------------------


def test_the_golden_webhook_of_stream_is_valid_and_about_no_call() -> None:
    source = StreamSource({"k": [GOLDEN_SECRET]}, max_bytes=10_000, freshness_s=3600)
    headers = {"x-api-key": "k", "x-signature": GOLDEN_SIGNATURE}
    accepted = source.accept(headers, GOLDEN_BODY, GOLDEN_NS)
    digest = events.fingerprint(wire.canonical(wire.decode(GOLDEN_BODY)))
    assert accepted == (digest, None, (), None)
    zipped = gzip.compress(GOLDEN_BODY)
    assert source.accept(headers, zipped, GOLDEN_NS) == accepted


def test_a_webhook_about_a_call_becomes_an_event_known_by_its_content() -> None:
    accepted = stream(stream_body(custom={"n": 1}), **{"x-webhook-id": "w-1"})
    event = accepted.event
    assert event is not None
    assert (event.cid, event.type, event.sender) == ("default:demo", "custom", "stream:key")
    assert event.event_id == event.identity == event.fingerprint == accepted.event_id
    assert (event.alias, event.minted, event.volatile) == ("w-1", False, False)
    body = wire.decode_object(event.body)
    assert body["custom"] == {"n": 1}
    assert body["created_at"] == wire.rfc3339(NOW_NS)
    assert body["event_id"] == accepted.event_id


def test_the_identity_is_what_the_body_says_not_how_it_is_written() -> None:
    one = b'{"type":"custom","created_at":1800000000000000000,"call_cid":"a:b"}'
    same = b'{"call_cid": "a:b", "type": "custom", "created_at": 1800000000000000000}'
    other = one.replace(b"a:b", b"a:c")
    assert stream(one).event_id == stream(same).event_id == stream(one, "old").event_id
    assert stream(one).event_id != stream(other).event_id


def test_what_the_application_wrote_passes_unharmed() -> None:
    custom = {"created_at": NOW_NS, "empty": [], "n": 2**80, "event_id": "mine", "f": 1.0}
    event = stream(stream_body(custom=custom)).event
    assert event is not None
    assert wire.encode(custom) in event.body


@pytest.mark.parametrize("webhook_id", ["", "a b", "x" * 129, "ä"])
def test_an_odd_webhook_id_is_only_left_out(webhook_id: str) -> None:
    event = stream(stream_body(), **{"x-webhook-id": webhook_id}).event
    assert event is not None
    assert event.alias is None


@pytest.mark.parametrize("fields", [{"type": "user.updated"}, {"call_cid": None}])
def test_an_event_about_no_call_is_accepted_without_one(fields: dict[str, Any]) -> None:
    body = {"type": "user.updated", "created_at": NOW_NS} | fields
    assert stream(wire.encode(body)).event is None


def test_a_type_is_wanted_even_of_an_event_about_no_call() -> None:
    with pytest.raises(BadInput) as caught:
        stream(wire.encode({"created_at": NOW_NS}))
    assert caught.value.reason == "no_type"


def test_the_signature_is_wanted_before_the_key_and_the_key_before_the_body() -> None:
    with pytest.raises(BadSignature):
        STREAM.accept({"x-api-key": "nobody"}, b"\x1f\x8b", NOW_NS)
    with pytest.raises(UnknownKey):
        STREAM.accept({"x-signature": "0" * 64, "x-api-key": "nobody"}, b"\x1f\x8b", NOW_NS)


def test_nothing_is_parsed_before_it_is_verified() -> None:
    with pytest.raises(BadSignature):
        stream(b"no json", "another")


def test_the_signature_is_over_the_bytes_that_were_sent() -> None:
    body = stream_body()
    signature = signing.stream_signature(wire.encode(wire.decode(body)) + b" ", "new")
    with pytest.raises(BadSignature):
        stream(body, **{"x-signature": signature})


def test_a_key_of_another_source_does_not_open_this_one() -> None:
    with pytest.raises(BadSignature):
        stream(stream_body(), **{"x-api-key": "k2"})


def test_each_source_and_key_is_a_sender_of_its_own() -> None:
    other = StreamSource({"key": ["new"]}, max_bytes=10_000, freshness_s=3600, name="stream-eu")
    body = stream_body()
    headers = {"x-api-key": "key", "x-signature": signing.stream_signature(body, "new")}
    event = other.accept(headers, body, NOW_NS).event
    assert event is not None
    assert event.sender == "source:stream-eu:key"


# -- age ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("age_s", [0, 3600, -60])
def test_a_time_within_the_window_is_fresh(age_s: int) -> None:
    check_age(NOW_NS - age_s * 10**9, NOW_NS, 3600)


@pytest.mark.parametrize(("age_s", "reason"), [(3601, "stale"), (-61, "ahead")])
def test_a_time_outside_the_window_is_refused(age_s: int, reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_age(NOW_NS - age_s * 10**9, NOW_NS, 3600)
    assert caught.value.reason == reason


@pytest.mark.parametrize("dialect", [int, str, wire.rfc3339])
def test_freshness_is_judged_in_both_dialects(dialect: Any) -> None:
    assert stream(stream_body(created_at=dialect(NOW_NS))).event
    with pytest.raises(BadInput, match="3601 s old, over 3600 s are refused"):
        stream(stream_body(created_at=dialect(NOW_NS - 3601 * 10**9)))


def test_a_webhook_is_too_old_before_it_is_forgotten() -> None:
    # It may be dated ahead by the leeway when it first comes, and is fresh for that much longer.
    limits = Limits(dedupe_window_s=3600)
    assert given_window_s(limits) >= 3600 + events.CLOCK_AHEAD_S


# -- Standard Webhooks --------------------------------------------------------------------------


def test_a_standard_webhook_becomes_a_custom_event_of_its_source() -> None:
    body = b'{"type":"invoice.paid","data":{"call":"default:demo","amount":7}}'
    accepted = standard().accept(standard_headers(body), body, NOW_NS)
    event = accepted.event
    assert event is not None
    assert (event.cid, event.type, event.sender) == ("default:demo", "custom", "source:billing")
    assert event.event_id == event.identity == accepted.event_id == "msg_1"
    shown = wire.decode_object(event.body)
    assert shown["custom"] == wire.decode(body)
    assert shown["user"]["id"] == "billing"
    assert shown["created_at"] == wire.rfc3339(NOW_NS)


def test_any_of_the_secrets_and_any_entry_of_the_list_will_do() -> None:
    body = b'{"data":{"call":"a:b"}}'
    headers = standard_headers(body, OLDER)
    headers["webhook-signature"] = "v1,AAAA v2,BBBB " + headers["webhook-signature"]
    assert standard().accept(headers, body, NOW_NS).event
    assert standard().accept(headers, gzip.compress(body), NOW_NS).event


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    body = b"{}"
    headers = standard_headers(body)
    del headers[name]
    with pytest.raises(BadSignature, match=f"^{name} is missing") as caught:
        standard().accept(headers, body, NOW_NS)
    assert caught.value.reason == "signature_missing"


def test_the_signed_timestamp_is_what_ages() -> None:
    body = b"{}"
    old = standard_headers(body, timestamp=str(NOW_NS // 10**9 - 3601))
    with pytest.raises(BadInput) as caught:
        standard().accept(old, body, NOW_NS)
    assert caught.value.reason == "stale"
    moved = old | {"webhook-timestamp": str(NOW_NS // 10**9)}
    with pytest.raises(BadSignature):
        standard().accept(moved, body, NOW_NS)


@pytest.mark.parametrize("timestamp", ["soon", "1.5", "-1", "9" * 13, "²", " 1"])
def test_a_timestamp_is_whole_seconds(timestamp: str) -> None:
    body = b"{}"
    with pytest.raises(BadInput) as caught:
        standard().accept(standard_headers(body, timestamp=timestamp), body, NOW_NS)
    assert caught.value.reason == "bad_time"


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"no json", "not_json"), (b"[]", "not_an_object"), (b'{"data":{"call":"x"}}', "bad_cid")],
)
def test_a_standard_body_that_makes_no_event_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        standard().accept(standard_headers(body), body, NOW_NS)
    assert caught.value.reason == reason


def test_an_id_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^webhook-id"):
        standard().accept(standard_headers(b"{}", id="a b"), b"{}", NOW_NS)


def test_a_body_is_bounded_before_it_is_verified() -> None:
    body = b" " * 10_001
    with pytest.raises(TooLarge):
        standard().accept(standard_headers(body), body, NOW_NS)


@pytest.mark.parametrize(
    ("value", "cid"),
    [('"standup"', "default:standup"), ("7", "default:7"), ("null", None)],
)
def test_a_call_type_makes_a_call_of_an_id(value: str, cid: str | None) -> None:
    body = b'{"room":%b}' % value.encode()
    event = standard("/room", "default").accept(standard_headers(body), body, NOW_NS).event
    assert (event and event.cid) == cid


@pytest.mark.parametrize("value", ["true", "1.5", '"default:a"', "{}", '""'])
def test_what_makes_no_call_with_the_type_is_refused(value: str) -> None:
    body = b'{"room":%b}' % value.encode()
    with pytest.raises(BadInput) as caught:
        standard("/room", "default").accept(standard_headers(body), body, NOW_NS)
    assert caught.value.reason == "bad_cid"


@given(
    st.dictionaries(
        st.sampled_from(
            ["x-signature", "x-api-key", "webhook-id", "webhook-timestamp", "webhook-signature"]
        ),
        st.text() | st.just("key") | st.from_regex(r"[0-9a-f]{64}|v1,[A-Za-z=]+", fullmatch=True),
    ),
    st.binary(),
)
def test_nothing_unsigned_gets_in_and_nothing_crashes(headers: dict[str, str], raw: bytes) -> None:
    for source in (STREAM, standard()):
        with pytest.raises(Refused):
            source.accept(headers, raw, NOW_NS)


# -- JSON pointers ------------------------------------------------------------------------------

# Source: RFC 6901, section 5.
RFC = {
    "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6,
    " ": 7, "m~n": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", RFC), ("/foo", ["bar", "baz"]), ("/foo/0", "bar"), ("/", 0), ("/a~1b", 1),
        ("/c%d", 2), ("/e^f", 3), ("/g|h", 4), ("/i\\j", 5), ('/k"l', 6), ("/ ", 7), ("/m~0n", 8),
    ],
)  # fmt: skip
def test_the_examples_of_the_rfc_point_where_it_says(pointer: str, value: object) -> None:
    assert at_pointer(RFC, read_pointer(pointer)) == value


@pytest.mark.parametrize("pointer", ["/x", "/foo/2", "/foo/00", "/foo/-", "/foo/-1", "/foo/0/x"])
def test_what_is_not_there_is_none(pointer: str) -> None:
    assert at_pointer(RFC, read_pointer(pointer)) is None


@pytest.mark.parametrize("text", ["foo", "/a~b", "/a~2", "/~"])
def test_what_is_no_pointer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a JSON pointer"):
        read_pointer(text)


def test_a_tilde_is_unescaped_once() -> None:
    assert read_pointer("/~01") == ("~1",)
