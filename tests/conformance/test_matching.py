"""The little language of the transcripts: what a line accepts, and what it does not."""

from __future__ import annotations

import pytest

from tests.conformance.transcripts import filled, mismatch, pattern, read


def fits(wanted: str, given: object, names: dict[str, object] | None = None) -> bool:
    return mismatch(pattern(wanted), given, {} if names is None else names) is None


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ('{"a":1}', {"a": 1}),
        ('{"a":…}', {"a": [1]}),
        ('{"a":1,…}', {"a": 1, "b": 2}),
        ('{…}', {"b": 2}),
        ('{"a":{…}}', {"a": {"b": 2}}),
        ('{"a":[…]}', {"a": [1, 2]}),
        ('{"a":"x …"}', {"a": "x and more"}),
        ('{"a":"…"}', {"a": ""}),
        ('{"a":<n>,"b":<n>}', {"a": 1, "b": 1}),
        ('{"a":"<n>-x","b":"<n>"}', {"a": "1-x", "b": "1"}),
    ],
)  # fmt: skip
def test_a_line_accepts(wanted: str, given: object) -> None:
    assert fits(wanted, given)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ('{"a":1}', {"a": 2}),
        ('{"a":1}', {"a": 1.0}),
        ('{"a":true}', {"a": 1}),
        ('{"a":1}', {"a": 1, "b": 2}),
        ('{"a":1,…}', {"b": 2}),
        ('{"a":{…}}', {"a": [1]}),
        ('{"a":[1]}', {"a": [1, 2]}),
        ('{"a":"x …"}', {"a": "y"}),
        ('{"a":"…"}', {"a": 1}),
        ('{"a":<n>,"b":<n>}', {"a": 1, "b": 2}),
        ('{"a":"<n>","b":"<n>"}', {"a": "1", "b": "2"}),
    ],
)
def test_a_line_does_not_accept(wanted: str, given: object) -> None:
    assert not fits(wanted, given)


def test_a_name_keeps_its_value_from_line_to_line() -> None:
    names: dict[str, object] = {}
    assert fits('{"a":"<n>"}', {"a": "first"}, names)
    assert not fits('{"b":"<n>"}', {"b": "second"}, names)
    assert filled("said <n> and <m>", names) == "said first and <m>"


def test_a_page_gives_its_transcripts_with_settings_and_line_numbers() -> None:
    page = "# Page\n\n```transcript alone a=1\njohn → 2 × {}\njohn ← close 1001 bye\n```\n"
    [transcript] = read(page)
    assert (transcript.number, transcript.settings) == (3, {"a": "1"})
    assert transcript.flags == {"alone"}
    sent, received = transcript.lines
    assert (sent.number, sent.actor, sent.sends, sent.times, sent.text) == (
        4,
        "john",
        True,
        2,
        "{}",
    )
    assert (received.sends, received.text) == (False, "close 1001 bye")


def test_a_line_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        read("```transcript\njohn says hello\n```\n")
