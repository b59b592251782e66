"""``relay send`` against a real HTTP server."""

from __future__ import annotations

import json
import socket
import time

import pytest

from relay import tokens
from relay.cli import credentials, send
from tests.cli.conftest import HttpServer, Relay

ENVIRON = {"RELAY_API_KEY": "k&y", "RELAY_API_SECRET": "s" * 40}


def test_an_animation_s_name_is_enough(relay: Relay, http_server: HttpServer) -> None:
    answer = relay("send", "default:demo", "balloons", "--url", http_server.url)
    assert answer.exit_code == 0
    (seen,) = http_server.seen
    assert seen.path == "/api/v2/video/call/default/demo/event?api_key=demo"
    assert json.loads(seen.body) == {"custom": {"render-animation": "balloons"}, "user_id": "cli"}


def test_the_relay_s_answer_is_printed(relay: Relay, http_server: HttpServer) -> None:
    answer = relay("send", "default:demo", "balloons", "--url", http_server.url)
    assert answer.stdout == '{"duration":"0.10ms"}\n'


def test_json_is_sent_as_it_is_with_every_option(relay: Relay, http_server: HttpServer) -> None:
    event = '{"a": [1, {"b": null}]}'
    options = "--user john --event-id e1 --volatile --url"
    relay("send", "default:demo", event, *options.split(), http_server.url)
    assert json.loads(http_server.seen[0].body) == {
        "custom": {"a": [1, {"b": None}]}, "user_id": "john", "event_id": "e1", "volatile": True,
    }  # fmt: skip


def test_it_asks_as_a_server_with_the_configured_key(relay: Relay, http_server: HttpServer) -> None:
    answer = relay("send", "default:a!@b", "x", "--url", f"{http_server.url}/base/", **ENVIRON)
    assert answer.stderr == ""
    (seen,) = http_server.seen
    assert seen.path == "/base/api/v2/video/call/default/a%21%40b/event?api_key=k%26y"
    assert seen.headers["stream-auth-type"] == "jwt"
    keys = {"k&y": [ENVIRON["RELAY_API_SECRET"]]}
    assert tokens.verify(seen.headers["authorization"], "k&y", keys, time.time()).is_server


def test_the_demo_s_credentials_are_used_and_named(relay: Relay, http_server: HttpServer) -> None:
    answer = relay("send", "default:demo", "balloons", "--url", http_server.url)
    assert "'relay demo'" in answer.stderr
    keys = {"demo": [credentials.DEMO.secret]}
    token = http_server.seen[0].headers["authorization"]
    assert tokens.verify(token, "demo", keys, time.time()).is_server


def test_without_a_url_the_relay_of_the_settings_is_meant(
    relay: Relay, http_server: HttpServer
) -> None:
    port = http_server.url.rpartition(":")[2]
    answer = relay("send", "default:demo", "x", RELAY_HOST="0.0.0.0", RELAY_PORT=port)
    assert answer.exit_code == 0
    assert len(http_server.seen) == 1


def test_a_refusal_is_one_line_and_code_1(relay: Relay, http_server: HttpServer) -> None:
    http_server.statuses = [403]
    http_server.answer = b'{"code":17,"message":"not for you","StatusCode":403}'
    answer = relay("send", "default:demo", "x", "--url", http_server.url, **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stderr == "relay: refused: not for you (HTTP 403, code 17)\n"


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"message":"x"}'])
def test_an_answer_that_is_no_relay_s_is_told(
    relay: Relay, http_server: HttpServer, body: bytes
) -> None:
    http_server.statuses = [404]
    http_server.answer = body
    answer = relay("send", "default:demo", "x", "--url", http_server.url, **ENVIRON)
    assert (answer.exit_code, answer.stderr.count("\n")) == (1, 1)
    assert "refused with HTTP 404" in answer.stderr


def test_nobody_listening_is_one_line_and_code_1(relay: Relay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        answer = relay("send", "default:demo", "x", "--url", url, **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stderr == f"relay: nothing listens at {url}: is the relay running there?\n"


@pytest.mark.parametrize("word", ["balloons", "🎉", "42", "fire-works_2"])
def test_a_word_is_an_animation(word: str) -> None:
    assert send.custom_of(word) == {"render-animation": word}
