"""``relay hooks`` and ``relay dead`` against the operators' endpoints of a real relay."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from relay import wire
from relay.cli.dead import moment
from tests.cli.conftest import HttpServer, Relay

ENVIRON = {"RELAY_ADMIN_TOKEN": "secret-token"}
ATTEMPT = {
    "attempted_at": "2026-11-23T07:00:00.000000000Z", "outcome": "retryable", "status": 503,
    "latency_ms": 12, "answer": "busy\x1b[2J\nsorry",
}  # fmt: skip
LETTER: dict[str, Any] = {
    "id": "d1", "reason": "exhausted", "died_at": "2026-11-23T07:00:01.123000000Z",
    "hook_id": "billing", "call_cid": "default:a", "type": "custom", "event_id": "e1",
    "epoch": "k", "offset": 7, "attempts_made": 3, "attempts": [ATTEMPT, ATTEMPT],
}  # fmt: skip


@pytest.fixture
def server(http_server: HttpServer) -> HttpServer:
    return http_server


def says(server: HttpServer, content: object) -> None:
    server.answer = json.dumps(content).encode()


def asked(server: HttpServer) -> tuple[str, str, Any]:
    [seen] = server.seen
    assert seen.headers["authorization"] == "Bearer secret-token"
    return seen.method, seen.path, json.loads(seen.body) if seen.body else None


# -- hooks ----------------------------------------------------------------------------------------


def test_hooks_are_a_table(relay: Relay, server: HttpServer) -> None:
    billing = {
        "id": "billing", "hook_type": "webhook", "enabled": True, "event_types": ["call.ended"],
        "webhook_url": "https://app.example/", "trouble": None,
    }  # fmt: skip
    queue = {"id": "q", "hook_type": "sqs", "enabled": True, "event_types": [],
             "sqs_queue_url": "https://q.example/1/q", "trouble": "keeps failing"}  # fmt: skip
    off = {**billing, "id": "off", "enabled": False}
    says(server, {"hooks": [billing, queue, off]})
    answer = relay("hooks", "--url", server.url, **ENVIRON)
    assert answer.stdout.splitlines() == [
        "ID       TYPE     EVENTS      STATE          TO",
        "billing  webhook  call.ended  ok             https://app.example/",
        "q        sqs      all         keeps failing  https://q.example/1/q",
        "off      webhook  call.ended  disabled       https://app.example/",
    ]
    assert asked(server) == ("GET", "/admin/hooks", None)


def test_without_hooks_it_says_how_to_make_some(relay: Relay, server: HttpServer) -> None:
    says(server, {"hooks": []})
    assert "PATCH /api/v2/app" in relay("hooks", "--url", server.url, **ENVIRON).stdout


def test_machines_get_the_answer_as_it_is(relay: Relay, server: HttpServer) -> None:
    says(server, {"hooks": []})
    assert relay("hooks", "--json", "--url", server.url, **ENVIRON).stdout == '{"hooks":[]}\n'


@pytest.mark.parametrize("command", [["dead", "list"], ["dead", "show", "d1"]])
def test_machines_get_dead_letters_as_they_are(
    relay: Relay, server: HttpServer, command: list[str]
) -> None:
    says(server, {"dead_letters": [], "dead_letter": LETTER})
    answer = relay(*command, "--json", "--url", server.url, **ENVIRON)
    assert json.loads(answer.stdout) == {"dead_letters": [], "dead_letter": LETTER}


# -- dead letters ---------------------------------------------------------------------------------


def test_dead_letters_are_a_table(relay: Relay, server: HttpServer) -> None:
    untried = {**LETTER, "id": "d2", "hook_id": "", "attempts": [], "reason": "outbox_bound"}
    says(server, {"dead_letters": [LETTER, untried]})
    answer = relay("dead", "list", "--url", server.url + "/base", **ENVIRON)
    first, *rows = answer.stdout.splitlines()
    assert first.split("  ")[0] == "ID"
    assert rows[0].split() == [
        "d1", "2026-11-23T07:00:01Z", "billing", "default:a", "custom", "exhausted", "retryable",
        "503",
    ]  # fmt: skip
    assert rows[1].split()[2::3] == ["(all)", "outbox_bound"]
    assert asked(server) == ("GET", "/base/admin/dead_letters?limit=100", None)


def test_they_are_chosen_by_hook_and_time(relay: Relay, server: HttpServer) -> None:
    says(server, {"dead_letters": []})
    options = ["--hook", "a&b", "--since", "2026-11-23T07:00:00Z", "--limit", "5"]
    assert relay("dead", "list", *options, "--url", server.url, **ENVIRON).stdout == (
        "no dead letters\n"
    )
    since = "2026-11-23T07%3A00%3A00.000000000Z"
    assert asked(server)[1] == f"/admin/dead_letters?hook_id=a%26b&since={since}&limit=5"


def test_a_full_page_says_how_to_go_on(relay: Relay, server: HttpServer) -> None:
    says(server, {"dead_letters": [LETTER]})
    answer = relay("dead", "list", "--limit", "1", "--url", server.url, **ENVIRON)
    assert "--since 2026-11-23T07:00:01.123000000Z for more" in answer.stdout


def test_one_is_shown_with_every_attempt_and_nothing_that_steers_a_terminal(
    relay: Relay, server: HttpServer
) -> None:
    says(server, {"dead_letter": {**LETTER, "event": {"type": "custom"}}})
    answer = relay("dead", "show", "d/1", "--url", server.url, **ENVIRON)
    assert asked(server)[1] == "/admin/dead_letters/d%2F1"
    assert "reason:    exhausted\n" in answer.stdout
    attempt = "  2026-11-23T07:00:00.000000000Z  retryable 503  12 ms  busy [2J sorry\n"
    assert answer.stdout.count(attempt) == 2
    assert answer.stdout.endswith('event:     {"type":"custom"}\n')


def test_an_event_that_was_not_kept_is_said(relay: Relay, server: HttpServer) -> None:
    says(server, {"dead_letter": {**LETTER, "event": None}})
    assert "(not kept)" in relay("dead", "show", "d1", "--url", server.url, **ENVIRON).stdout


@pytest.mark.parametrize(
    ("args", "body"),
    [
        (["d1", "d2"], {"ids": ["d1", "d2"]}),
        (["--hook", "billing"], {"hook_id": "billing"}),
        (["--until", "2026-11-23T07:00:00Z"], {"until": "2026-11-23T07:00:00.000000000Z"}),
        (["--all"], {"hook_id": ""}),
    ],
)
def test_a_replay_names_what_is_meant(
    relay: Relay, server: HttpServer, args: list[str], body: object
) -> None:
    says(server, {"replayed": 2, "bodiless": 1, "hookless": 3})
    answer = relay("dead", "replay", *args, "--url", server.url, **ENVIRON)
    assert asked(server) == ("POST", "/admin/dead_letters/replay", body)
    assert answer.stdout == "replayed 2\n"
    assert answer.stderr == (
        "1 cannot be replayed: their events were not kept\n"
        "3 stay: their hooks are disabled or gone\n"
    )


@pytest.mark.parametrize(
    "args", [[], ["d1", "--all"], ["d1", "--hook", "h"], ["--all", "--hook", "h"]]
)
def test_a_replay_of_nothing_or_of_two_things_is_refused(
    relay: Relay, server: HttpServer, args: list[str]
) -> None:
    answer = relay("dead", "replay", *args, "--url", server.url, **ENVIRON)
    assert answer.exit_code == 2
    assert server.seen == []


# -- what goes wrong ------------------------------------------------------------------------------


def test_without_a_token_it_says_which(relay: Relay, server: HttpServer) -> None:
    answer = relay("hooks", "--url", server.url)
    assert answer.exit_code == 2
    assert "RELAY_ADMIN_TOKEN is not set" in answer.stderr
    assert server.seen == []


def test_a_refusal_is_one_line_and_code_1(relay: Relay, server: HttpServer) -> None:
    server.statuses = [401]
    says(server, {"code": 5, "message": "no", "StatusCode": 401})
    answer = relay("dead", "list", "--url", server.url, **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stderr == "relay: refused: no (HTTP 401, code 5)\n"


def test_an_answer_that_is_no_relay_s_is_told(relay: Relay, server: HttpServer) -> None:
    server.answer = b"<html>"
    answer = relay("hooks", "--url", server.url, **ENVIRON)
    assert answer.exit_code == 1
    assert "is this a relay?" in answer.stderr


def test_a_moment_is_a_time_or_so_long_ago() -> None:
    assert moment("2026-11-23T07:00:00+01:00") == "2026-11-23T06:00:00.000000000Z"
    ago_s = time.time() - wire.parse_time(moment("15m")) / 1e9
    assert 895 < ago_s < 960


@pytest.mark.parametrize("text", ["yesterday", "", "-5m", "never", "0s"])
def test_what_is_neither_is_refused(relay: Relay, text: str) -> None:
    answer = relay("dead", "list", f"--since={text}", **ENVIRON)
    assert answer.exit_code == 2
    assert "must be a time such as" in answer.stderr
