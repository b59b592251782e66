from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay import errors
from relay.errors import Close, RateLimited, Refused, RelayError, Unavailable

SIX_KEYS = {"code", "message", "StatusCode", "duration", "more_info", "details"}


def tree(root: type[RelayError]) -> Iterator[type[RelayError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


ALL = list(tree(RelayError))


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_told_in_six_keys(kind: type[RelayError]) -> None:
    body = kind("what to do").body("1.00ms")
    assert set(body) - {"unrecoverable"} == SIX_KEYS
    assert body.get("unrecoverable", False) is kind.unrecoverable
    assert (body["StatusCode"], body["code"]) == (kind.status, kind.code)
    assert (body["message"], body["duration"], body["details"]) == ("what to do", "1.00ms", [])


@pytest.mark.parametrize("kind", ALL)
def test_no_error_closes_a_socket_as_if_all_were_well(kind: type[RelayError]) -> None:
    assert kind.close in Close
    assert kind.close != 1000


@pytest.mark.parametrize("kind", ALL)
def test_the_tree_at_the_top_of_the_file_is_the_tree(kind: type[RelayError]) -> None:
    lines = (errors.__doc__ or "").splitlines()
    (line,) = [line for line in lines if kind.__name__ in line.replace("─", " ").split()]
    if kind not in (RelayError, Refused):
        assert f"{kind.status} / {kind.code}" in line


def test_only_refusals_blame_the_peer() -> None:
    for kind in ALL:
        assert issubclass(kind, Refused) == (400 <= kind.status < 500)


def test_reasons_are_words_for_counters() -> None:
    reasons = [kind.reason for kind in ALL]
    assert len(set(reasons)) == len(reasons)
    assert all(reason.isidentifier() for reason in reasons)


def test_an_error_can_say_more_than_its_class() -> None:
    error = RateLimited("slower", reason="flood", retry_after=1.5)
    assert (error.reason, error.retry_after, str(error)) == ("flood", 1.5, "slower")
    assert Unavailable("later").reason == "unavailable"
