from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import events, wire
from relay.errors import BadInput, TooLarge
from relay.events import Event, Position

NOW_NS = 1_795_419_273_477_260_007
OBJECTS = st.dictionaries(st.text(), st.integers() | st.text() | st.booleans())


def custom_event(**fields: Any) -> Event:
    given: dict[str, Any] = {
        "cid": "default:demo",
        "custom": b'{"n":1}',
        "user": b'{"id":"john"}',
        "event_id": "e1",
        "now_ns": NOW_NS,
        "sender": "user:john",
        "minted": False,
    }
    return events.custom_event(**given | fields)


def given_event(body: dict[str, Any], **fields: Any) -> Event:
    given: dict[str, Any] = {
        "event_id": "e1",
        "sender": "stream:key",
        "identity": "i1",
        "fingerprint": "f1",
    }
    return events.given_event(body, **given | fields)


# -- what may be named how ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "cid", ["default:demo", "a:b", "audio_room:A-Z_0.9!@", "x" * 64 + ":" + "y" * 128]
)
def test_a_cid_is_type_and_id(cid: str) -> None:
    assert events.check_cid(cid) == cid


@pytest.mark.parametrize(
    "value",
    [
        None, 7, ["default:demo"], "", ":", "demo", "default:", ":demo", "default:a b", "a:b:c",
        "default:a/b", "default:a\n", "default:ä", "x" * 65 + ":y", "x:" + "y" * 129, "a.b:c",
        'default:"', "default:\\",
    ],
)  # fmt: skip
def test_what_is_no_cid_is_refused_by_name(value: object) -> None:
    with pytest.raises(BadInput, match=r"^the\.call must be 'type:id'") as caught:
        events.check_cid(value, "the.call")
    assert caught.value.reason == "bad_cid"


@pytest.mark.parametrize("value", ["john", "!anon", "jürgen@x.de", "a" * 255, "1"])
def test_a_user_id_is_nearly_anything(value: str) -> None:
    assert events.check_user_id(value) == value


@pytest.mark.parametrize("value", [None, 7, "", "a b", "a/b", "a\n", "\x00", "\x7f", "a" * 256])
def test_what_is_no_user_id_is_refused_by_name(value: object) -> None:
    with pytest.raises(BadInput, match=r"^user\.id must be") as caught:
        events.check_user_id(value, "user.id")
    assert caught.value.reason == "bad_user_id"


@pytest.mark.parametrize("value", [None, 7, "", "a b", "ä", "a\n", "a" * 129])
def test_what_is_no_event_id_is_refused_by_name(value: object) -> None:
    with pytest.raises(BadInput, match=r"^Idempotency-Key must be") as caught:
        events.check_event_id(value, "Idempotency-Key")
    assert caught.value.reason == "bad_event_id"


def test_an_event_id_is_printable_ascii() -> None:
    assert events.check_event_id("a" * 128) == "a" * 128
    assert events.check_event_id("!~ingest:1-0") == "!~ingest:1-0"


@pytest.mark.parametrize("kind", ["custom", "call.updated", "call.member_updated_permission"])
def test_a_type_is_words_joined_by_dots(kind: str) -> None:
    assert events.check_event_type(kind) == kind


@pytest.mark.parametrize("kind", [None, 1, [], "", "Custom", "a b", ".a", "a.", "a..b", "a" * 129])
def test_what_is_no_type_is_refused(kind: object) -> None:
    with pytest.raises(BadInput) as caught:
        events.check_event_type(kind)
    assert caught.value.reason == "no_type"


@pytest.mark.parametrize(
    "kind", ["health.check", "connection.ok", "connection.error", "call.watching", "error"]
)
def test_an_event_cannot_pass_for_a_frame_of_the_socket(kind: str) -> None:
    with pytest.raises(BadInput) as caught:
        given_event({"type": kind, "call_cid": "default:demo"})
    assert caught.value.reason == "reserved_type"


# -- custom -------------------------------------------------------------------------------------


def test_custom_is_measured_as_compact_utf8() -> None:
    exact = {"n": "ä" * 5}  # {"n":"…"} is 8 bytes, each ä is 2
    assert events.check_custom(exact, 18) == '{"n":"äääää"}'.encode()
    with pytest.raises(TooLarge, match="has 18 bytes of compact JSON, the limit is 17") as caught:
        events.check_custom(exact, 17)
    assert caught.value.reason == "custom_too_large"


def test_a_limit_of_zero_is_none() -> None:
    assert len(events.check_custom({"n": "x" * 100_000}, 0)) > 100_000


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_custom_must_be_an_object(value: object) -> None:
    with pytest.raises(BadInput, match=r"^data\.custom must be a JSON object") as caught:
        events.check_custom(value, field="data.custom")
    assert caught.value.reason == "custom_not_an_object"


# -- events -------------------------------------------------------------------------------------


def test_a_custom_event_has_streams_five_fields_and_an_id() -> None:
    event = custom_event()
    assert wire.decode(event.body) == {
        "type": "custom",
        "created_at": "2026-11-23T07:34:33.477260007Z",
        "call_cid": "default:demo",
        "custom": {"n": 1},
        "user": {"id": "john"},
        "event_id": "e1",
    }
    assert (event.cid, event.type, event.event_id) == ("default:demo", "custom", "e1")
    assert (event.sender, event.identity, event.minted) == ("user:john", "e1", False)
    assert event.fingerprint == events.fingerprint(b'{"n":1}')


@given(OBJECTS, st.text("!#$%&'\"\\<>az09", min_size=1))
def test_a_custom_event_is_always_json(custom: dict[str, Any], event_id: str) -> None:
    event = custom_event(custom=wire.encode(custom), event_id=event_id)
    body = wire.decode_object(event.body)
    assert (body["custom"], body["event_id"]) == (custom, event_id)


def test_what_nobody_can_repeat_needs_no_fingerprint() -> None:
    assert custom_event(minted=True).fingerprint == ""


def test_only_a_volatile_event_with_a_minted_id_has_no_identity() -> None:
    assert custom_event(volatile=True, minted=True).identity is None
    assert custom_event(volatile=True, minted=False).identity == "e1"
    assert custom_event(volatile=False, minted=True).identity == "e1"


def test_a_given_event_passes_everything_but_the_relays_own_fields() -> None:
    body = {
        "type": "call.updated",
        "call_cid": "default:demo",
        "created_at": 1_778_198_400_000_000_000,
        "custom": {"epoch": 1, "offset": 2, "event_id": 3},
        "epoch": "forged",
        "offset": 10**9,
        "event_id": "forged",
        "anything": [{}],
    }
    event = given_event(body, alias="w1", volatile=True)
    assert wire.decode(event.body) == {
        "type": "call.updated",
        "call_cid": "default:demo",
        "created_at": "2026-05-08T00:00:00.000000000Z",
        "custom": {"epoch": 1, "offset": 2, "event_id": 3},
        "anything": [{}],
        "event_id": "e1",
    }
    assert (event.cid, event.type, event.identity) == ("default:demo", "call.updated", "i1")
    assert (event.fingerprint, event.alias, event.volatile) == ("f1", "w1", True)


def test_a_given_event_needs_a_call_and_a_type() -> None:
    with pytest.raises(BadInput, match="call_cid"):
        given_event({"type": "custom"})
    with pytest.raises(BadInput, match="type"):
        given_event({"call_cid": "default:demo"})


@given(OBJECTS)
def test_a_placed_body_is_the_body_with_its_position(more: dict[str, Any]) -> None:
    body = {"type": "custom", **more}
    placed = wire.decode(events.placed(wire.encode(body), Position("k3", 41)))
    assert placed == {**body, "epoch": "k3", "offset": 41}


@given(st.binary(), st.binary())
def test_a_fingerprint_tells_contents_apart(one: bytes, other: bytes) -> None:
    assert len(events.fingerprint(one)) == 32
    assert (events.fingerprint(one) == events.fingerprint(other)) == (one == other)
