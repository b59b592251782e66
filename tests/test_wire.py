from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from relay import wire
from relay.calls import Participant
from relay.errors import BadInput

FIRST_NS, LAST_NS = 10**17, 2**63 - 1
NS = st.integers(FIRST_NS, LAST_NS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def reason(text: bytes | str) -> str:
    with pytest.raises(BadInput) as caught:
        wire.decode(text, "the entry")
    assert "the entry" in caught.value.message
    return caught.value.reason


# -- JSON ---------------------------------------------------------------------------------------


@given(JSON)
def test_what_was_encoded_decodes_to_itself(value: Any) -> None:
    assert wire.decode(wire.encode(value)) == value
    assert wire.decode(wire.canonical(value)) == value


@given(st.binary() | JSON.map(wire.encode))
def test_any_bytes_are_a_value_or_a_refusal(data: bytes) -> None:
    try:
        value = wire.decode(data)
    except BadInput:
        return
    assert wire.decode(wire.encode(value)) == value


@given(st.text())
def test_any_text_is_a_value_or_a_refusal(text: str) -> None:
    with contextlib.suppress(BadInput):
        wire.decode(text)


@given(st.dictionaries(st.text(), JSON))
def test_the_canonical_form_does_not_depend_on_the_order_of_keys(body: dict[str, Any]) -> None:
    turned = dict(reversed(body.items()))
    assert wire.canonical(turned) == wire.canonical(body)


@pytest.mark.parametrize(
    "text", ["", "{", "{'a':1}", "NaN", "1e999", "1" * 5000, '"\\ud800"', "\ud800", b'"\xff"']
)
def test_what_is_no_json_is_refused(text: bytes | str) -> None:
    assert reason(text) == "not_json"


def test_nesting_ends_at_sixty_four_levels() -> None:
    assert wire.decode("[" * 64 + "]" * 64)
    assert wire.decode("[" + "[]," * 99 + "[]]"), "many brackets are no depth"
    assert reason("[" * 65 + "]" * 65) == "too_deep"
    assert reason(b"[" * 40 + b'{"a":' * 25 + b"1" + b"}" * 25 + b"]" * 40) == "too_deep"
    assert reason('{"a":' * 65 + "1" + "}" * 65) == "too_deep"
    assert reason("[" * 100_000 + "]" * 100_000) == "too_deep"


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null"])
def test_an_object_is_wanted_where_one_is_wanted(text: str) -> None:
    with pytest.raises(BadInput, match="the body must be a JSON object") as caught:
        wire.decode_object(text, "the body")
    assert caught.value.reason == "not_an_object"


def test_large_integers_and_empty_lists_survive() -> None:
    text = b'{"n":123456789012345678901234567890,"empty":[],"x":{}}'
    assert wire.encode(wire.decode(text)) == text


# -- timestamps ---------------------------------------------------------------------------------


def test_a_time_is_shown_with_all_nine_digits() -> None:
    assert wire.rfc3339(1_795_419_273_477_260_007) == "2026-11-23T07:34:33.477260007Z"
    assert wire.rfc3339(1_778_198_400_000_000_000) == "2026-05-08T00:00:00.000000000Z"


@given(NS)
def test_both_dialects_name_the_same_moment(ns: int) -> None:
    assert wire.parse_time(wire.rfc3339(ns)) == ns
    assert wire.parse_time(ns) == ns
    assert wire.parse_time(str(ns)) == ns


@given(
    st.datetimes(datetime(1974, 1, 1), datetime(2262, 1, 1)),
    st.integers(-14 * 60, 14 * 60),
)
def test_offsets_from_utc_are_understood(moment: datetime, minutes: int) -> None:
    local = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    whole = local.astimezone(UTC).replace(microsecond=0)
    expected = int(whole.timestamp()) * 10**9 + moment.microsecond * 1000
    assert wire.parse_time(local.isoformat()) == expected


@given(st.text() | st.text("0123456789-:.TZ+ ", max_size=30) | JSON)
def test_anything_else_is_no_time(value: Any) -> None:
    with contextlib.suppress(BadInput):
        assert FIRST_NS <= wire.parse_time(value) <= LAST_NS


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, 1_778_198_400, 1_778_198_400_000, 2**63, 1.8e18, "1778198400", "today",
        "2026-11-23", "2026-11-23T07:34:33", "2026-11-23T07:34.5:33Z", "2026-11-23T07:34:33.Z",
        "2026-13-23T07:34:33Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
        "٢٠٢٦-11-23T07:34:33Z", "²" * 18, [1],
    ],
)  # fmt: skip
def test_what_names_no_moment_of_ours_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match="opened_at must be a time"):
        wire.parse_time(value, "opened_at")


def test_integer_times_become_rfc3339_at_every_depth() -> None:
    ns, text = 1_778_198_400_000_000_001, "2026-05-08T00:00:00.000000001Z"
    body = {
        "created_at": ns,
        "timestamp": str(ns),
        "call": {"session": {"ended_at": ns, "accepted_by": {"john": ns, "custom": ns}}},
        "members": [{"user": {"last_active": ns}}],
        "times_at": [ns],
    }
    assert wire.with_rfc3339(body) == {
        "created_at": text,
        "timestamp": text,
        "call": {"session": {"ended_at": text, "accepted_by": {"john": text, "custom": text}}},
        "members": [{"user": {"last_active": text}}],
        "times_at": [text],
    }


def test_what_is_no_time_stays_as_it_is() -> None:
    ns = 1_778_198_400_000_000_001
    body = {
        "custom": {"created_at": ns, "deep": {"updated_at": ns}},
        "call": {"custom": {"starts_at": ns}},
        "size": ns,
        "created_at": 1_778_198_400,
        "started_at": True,
        "ended_at": None,
        "updated_at": 1.5e18,
        "starts_at": "2026-05-08T00:00:00Z",
    }
    assert wire.with_rfc3339(body) == body


@given(st.dictionaries(st.text(), JSON))
def test_the_custom_of_an_application_is_never_touched(custom: dict[str, Any]) -> None:
    assert wire.with_rfc3339({"custom": custom}) == {"custom": custom}


def test_hooks_may_have_integer_times_at_every_depth() -> None:
    ns, text = 1_795_419_273_477_260_007, "2026-11-23T07:34:33.477260007Z"
    body = {
        "created_at": text,
        "timestamp": text,
        "call": {"session": {"ended_at": text, "accepted_by": {"john": text, "custom": text}}},
        "members": [{"user": {"last_active": text, "name": text}}],
        "times_at": [text, "soon", None, 5],
        "type": "custom",
        "deleted_at": None,
    }
    assert wire.decode(wire.nanosecond_times(wire.encode(body))) == {
        "created_at": ns,
        "timestamp": ns,
        "call": {"session": {"ended_at": ns, "accepted_by": {"john": ns, "custom": ns}}},
        "members": [{"user": {"last_active": ns, "name": text}}],
        "times_at": [ns, "soon", None, 5],
        "type": "custom",
        "deleted_at": None,
    }


@given(st.dictionaries(st.text(), JSON), NS)
def test_the_two_dialects_are_each_others_inverse(custom: dict[str, Any], ns: int) -> None:
    body = {"created_at": ns, "custom": custom, "call": {"updated_at": ns, "custom": custom}}
    there = wire.encode(wire.with_rfc3339(body))
    assert wire.nanosecond_times(there) == wire.encode(body)


def test_a_custom_that_becomes_nanoseconds_around_stays_byte_for_byte() -> None:
    custom = b'{"big":123456789012345678901234567890,"n":1.10,"created_at":"2026-01-01T00:00:00Z"}'
    body = b'{"custom":%b,"call":{"custom":%b},"offset":7}' % (custom, custom)
    assert wire.nanosecond_times(body) == body


# -- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_text_frame_is_what_websockets_would_write(length: int) -> None:
    payload = b"x" * length
    theirs = Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert wire.text_frame(payload) == theirs


def test_what_was_encoded_is_read_back_as_its_kind() -> None:
    ann = Participant(user_id="ann", user_session_id="s", role="user", joined_at=7)
    assert wire.reader(Participant)(wire.encode(ann)) == ann
