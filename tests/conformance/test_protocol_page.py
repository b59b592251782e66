"""The tables of docs/protocol.md say what the code does, and its transcripts leave nothing out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from relay import errors, events
from relay.errors import Close, RelayError
from relay.gateway.bounds import NOISE_LIMIT
from relay.gateway.session import ARRAY_LIMIT, HEARTBEAT_S
from relay.settings import Settings
from tests.conformance import transcripts

PAGE = transcripts.PAGE.read_text()
TRANSCRIPTS = transcripts.read(PAGE)
LINES = [line for transcript in TRANSCRIPTS for line in transcript.lines]

NEVER_PLAYED = {
    Close.INTERNAL_ERROR: "a mistake in the relay, which no client can bring about",
}
MADE_BY_CLIENTS = {"connection.changed", "connection.recovered"}


def _rows(section: str) -> list[list[str]]:
    """Return the cells of the first table of a section."""
    [text] = re.findall(rf"^##+ {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def _tree(root: type[RelayError]) -> Iterator[type[RelayError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def test_the_table_of_close_codes_is_the_codes() -> None:
    assert [int(row[0]) for row in _rows("Close codes")] == [int(code) for code in Close]


def test_the_table_of_errors_is_the_tree_of_errors() -> None:
    known = {(kind.code, kind.status) for kind in _tree(RelayError)}
    said = {(int(row[0]), int(status)) for row in _rows("Errors") for status in row[1].split(", ")}
    assert said == known


def test_every_close_code_is_played() -> None:
    received = {line.text.split()[1] for line in LINES if line.text.startswith("close ")}
    assert received >= {str(int(code)) for code in Close if code not in NEVER_PLAYED}


def test_every_frame_type_is_played() -> None:
    played = set(re.findall(r'\{"type":"([a-z.]+)"', "\n".join(line.text for line in LINES)))
    assert played >= events._OWN_FRAMES - MADE_BY_CLIENTS


def test_every_error_code_that_a_client_can_bring_about_quickly_is_played() -> None:
    received = "\n".join(line.text for line in LINES if not line.sends)
    played = {int(code) for code in re.findall(r'"code":(-?\d+)', received)}
    known = {kind.code for kind in _tree(RelayError)}
    assert known - played == {errors.TooSlow.code}  # takes ten seconds


def test_transcripts_do_not_share_calls() -> None:
    counted: Counter[str] = Counter()
    for transcript in TRANSCRIPTS:
        text = "\n".join(line.text for line in transcript.lines)
        counted.update(set(re.findall(r'"call_cid":"([a-z:]+)"', text)))
    shared = {cid for cid, count in counted.items() if count > 1}
    assert not shared - {"standup", "default:mine"}


def test_the_limits_are_the_settings() -> None:
    settings = Settings()
    said = {row[0]: row[1] for row in _rows("Limits")}
    assert said["time until the first frame"] == f"{settings.first_frame_timeout:g} s"
    assert settings.frame_max_bytes == 65_536
    assert said["a message of a client, fragments together"] == "64 KiB"
    assert settings.custom_max_bytes == 5120
    assert said["`custom`"] == "5 120 bytes of compact JSON"
    assert said["messages of one socket"].startswith(
        f"{settings.command_rate:g} a second, {settings.command_burst} at once"
    )
    assert said["calls one socket watches"] == str(settings.watch_limit)
    assert said["sockets of one user"] == str(settings.user_connections)
    assert said["messages in an array"] == str(ARRAY_LIMIT)
    assert said["frames that bring no message: pings, pongs, fragments"] == (
        f"{NOISE_LIMIT:,} in {HEARTBEAT_S:g} s".replace(",", " ")
    )
