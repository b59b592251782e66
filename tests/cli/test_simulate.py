"""``relay simulate`` against a real HTTP server that checks what it gets as the relay does."""

from __future__ import annotations

import json
import socket

import pytest

from relay import signing
from relay.cli import credentials
from relay.errors import BadSignature
from tests.cli.conftest import HttpServer, Relay, Seen

SECRET = "s" * 40
ENVIRON = {"RELAY_API_KEY": "key", "RELAY_API_SECRET": SECRET}


def verified(seen: Seen, secret: str = SECRET) -> dict[str, object]:
    """Return the body of a request after the relay's own checks."""
    plain = signing.inflated(seen.body, 1_000_000)
    signing.verify_stream(plain, seen.headers["x-signature"], [secret])
    body: dict[str, object] = json.loads(plain)
    return body


def simulate(relay: Relay, server: HttpServer, options: str = "", code: int = 0) -> str:
    answer = relay("simulate", "--url", server.url, "--rate", "1000", *options.split(), **ENVIRON)
    assert answer.exit_code == code, answer.output
    return answer.output


def test_a_webhook_has_stream_s_headers_and_a_signature_that_holds(
    relay: Relay, http_server: HttpServer
) -> None:
    simulate(relay, http_server)
    (seen,) = http_server.seen
    assert seen.path == "/webhooks/stream"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["x-api-key"] == "key"
    assert seen.headers["x-webhook-attempt"] == "1"
    assert len(seen.headers["x-webhook-id"]) == 36
    body = verified(seen)
    assert body["custom"] == {"render-animation": "balloons"}
    assert body["call_cid"] == "default:demo"


def test_the_options_shape_the_event(relay: Relay, http_server: HttpServer) -> None:
    simulate(relay, http_server, "--animation confetti --cid default:x --user ann")
    body = verified(http_server.seen[0])
    assert body["custom"] == {"render-animation": "confetti"}
    assert body["call_cid"] == "default:x"
    assert body["user"]["id"] == "ann"  # type: ignore[index]


def test_another_event_can_be_chosen(relay: Relay, http_server: HttpServer) -> None:
    simulate(relay, http_server, "--event call.session_started")
    assert verified(http_server.seen[0])["type"] == "call.session_started"


def test_times_are_rfc_3339_or_nanoseconds(relay: Relay, http_server: HttpServer) -> None:
    simulate(relay, http_server, "--event call.created")
    simulate(relay, http_server, "--event call.created --nanoseconds")
    texts, integers = (verified(seen) for seen in http_server.seen)
    assert str(texts["created_at"]).endswith("Z")
    assert str(texts["call"]["created_at"]).endswith("Z")  # type: ignore[index]
    assert isinstance(integers["created_at"], int)
    assert isinstance(integers["call"]["created_at"], int)  # type: ignore[index]


def test_gzip_is_signed_uncompressed(relay: Relay, http_server: HttpServer) -> None:
    simulate(relay, http_server, "--gzip")
    (seen,) = http_server.seen
    assert seen.body.startswith(b"\x1f\x8b")
    assert seen.headers["content-encoding"] == "gzip"
    assert verified(seen)["type"] == "custom"


def test_many_webhooks_differ_and_share_a_connection(relay: Relay, http_server: HttpServer) -> None:
    output = simulate(relay, http_server, "--count 3")
    assert len({seen.headers["x-webhook-id"] for seen in http_server.seen}) == 3
    assert len({seen.body for seen in http_server.seen}) == 3
    assert len({seen.peer for seen in http_server.seen}) == 1
    assert output.splitlines()[-1] == "3 webhooks, 3 requests: 3 x 200"


def test_duplicates_are_the_same_to_the_last_byte(relay: Relay, http_server: HttpServer) -> None:
    output = simulate(relay, http_server, "--repeat 2")
    first, *others = [(seen.headers, seen.body) for seen in http_server.seen]
    assert others == [first, first]
    assert output.splitlines()[-1] == "1 webhook, 3 requests: 3 x 200"


def test_retries_count_up_under_the_same_id(relay: Relay, http_server: HttpServer) -> None:
    simulate(relay, http_server, "--retry")
    first, second = http_server.seen
    assert first.headers.pop("x-webhook-attempt") == "1"
    assert second.headers.pop("x-webhook-attempt") == "2"
    assert (first.headers, first.body) == (second.headers, second.body)


def test_a_bad_signature_is_bad_and_must_be_refused(relay: Relay, http_server: HttpServer) -> None:
    http_server.statuses = [401]
    simulate(relay, http_server, "--bad-signature")
    with pytest.raises(BadSignature, match="does not match"):
        verified(http_server.seen[0])
    simulate(relay, http_server, "--bad-signature", code=1)


def test_a_refusal_is_final_and_code_1(relay: Relay, http_server: HttpServer) -> None:
    http_server.statuses = [401]
    output = simulate(relay, http_server, code=1)
    assert len(http_server.seen) == 1
    assert output.splitlines()[-1] == "1 webhook, 1 request: 1 x 401"


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_temporary_answer_is_tried_again(
    relay: Relay, http_server: HttpServer, status: int
) -> None:
    http_server.statuses = [status]
    output = simulate(relay, http_server)
    assert [seen.headers["x-webhook-attempt"] for seen in http_server.seen] == ["1", "2"]
    assert f"1 x {status}" in output


def test_three_attempts_are_all(relay: Relay, http_server: HttpServer) -> None:
    http_server.statuses = [503, 503, 503]
    simulate(relay, http_server, code=1)
    assert len(http_server.seen) == 3


def test_what_the_relay_answers_is_printed_without_control_characters(
    relay: Relay, http_server: HttpServer
) -> None:
    http_server.answer = b'{"status":"\x1b[2J"}' + b"x" * 1000
    line, _ = simulate(relay, http_server).splitlines()
    assert ": 200 in " in line
    assert '{"status":"\\x1b[2J"}xxx' in line
    assert len(line) < 300


def test_a_path_of_its_own_is_kept(relay: Relay, http_server: HttpServer) -> None:
    relay("simulate", "--url", f"{http_server.url}/webhooks/other?x=1", **ENVIRON)
    assert http_server.seen[0].path == "/webhooks/other?x=1"


def test_the_demo_s_credentials_sign_when_none_are_set(
    relay: Relay, http_server: HttpServer
) -> None:
    answer = relay("simulate", "--url", http_server.url)
    (seen,) = http_server.seen
    assert verified(seen, credentials.DEMO.secret)["type"] == "custom"
    assert seen.headers["x-api-key"] == "demo"
    assert "'relay demo'" in answer.stderr


def test_nobody_listening_is_tried_twice_and_told(relay: Relay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        answer = relay("simulate", "--url", url, **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stderr.splitlines() == [
        f"relay: nothing listens at {url}: is the relay running there?: trying again",
        f"relay: nothing listens at {url}: is the relay running there?",
    ]
