"""``relay serve`` and ``relay demo``: what they refuse, and a real process from start to end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from relay.cli import credentials, serve
from relay.settings import Settings, SettingsError
from tests.cli.conftest import Relay

Start = Callable[..., subprocess.Popen[str]]


def test_serve_without_credentials_says_what_to_set(relay: Relay) -> None:
    answer = relay("serve")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("relay: RELAY_API_KEY is not set: choose a key")


def test_demo_with_half_of_the_credentials_is_refused(relay: Relay) -> None:
    answer = relay("demo", RELAY_API_KEY="mine")
    assert answer.exit_code == 2
    assert "set RELAY_API_SECRET too" in answer.stderr


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_settings_that_do_not_fit_are_refused(relay: Relay, command: str) -> None:
    answer = relay(command, "--workers", "2")
    assert answer.exit_code == 2
    assert "RELAY_WORKERS over 1 needs RELAY_REDIS_URL" in answer.stderr


def test_the_demo_has_its_fixed_credentials() -> None:
    chosen = serve._with_credentials(Settings(port=9000))
    assert (chosen.api_key, chosen.api_secret) == ("demo", "demo-secret-not-for-production-use")
    assert chosen.port == 9000


def test_the_demo_takes_credentials_that_are_set() -> None:
    mine = Settings(api_key="k", api_secret="s")
    assert serve._with_credentials(mine) is mine
    with pytest.raises(SettingsError):
        serve._with_credentials(Settings(api_secret="s"))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("relay.test", False)],
)  # fmt: skip
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert serve._is_loopback(host) is loopback


def listening(child: subprocess.Popen[str]) -> str:
    """Return the URL that a starting relay prints."""
    assert child.stdout is not None
    for line in child.stdout:
        if match := re.fullmatch(r"relay: listening on (http://\S+)\n", line):
            return match[1]
    raise AssertionError(f"the relay ended: {child.communicate(timeout=10)[1]}")


def test_a_demo_is_sent_to_watched_and_stopped(process: Start, relay: Relay) -> None:
    server = process("demo", "--port", "0")
    url = listening(server)
    assert url.startswith("http://127.0.0.1:")
    watcher = process("watch", "default:demo", "--json", "--url", url)
    assert watcher.stderr is not None
    assert any("watching default:demo" in line for line in watcher.stderr)

    sent = relay("send", "default:demo", "balloons", "--user", "john", "--url", url)
    assert sent.exit_code == 0, sent.output
    simulated = relay("simulate", "--animation", "confetti", "--repeat", "1", "--url", url)
    assert simulated.exit_code == 0, simulated.output
    refused = relay("simulate", "--bad-signature", "--url", url)
    assert refused.exit_code == 0, refused.output

    assert watcher.stdout is not None
    events = [json.loads(watcher.stdout.readline()) for _ in range(2)]
    assert [event["custom"]["render-animation"] for event in events] == ["balloons", "confetti"]
    assert [event["offset"] for event in events] == [1, 2]
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=20)
    assert server.returncode == 0


def test_serve_runs_on_the_credentials_of_the_environment(process: Start, relay: Relay) -> None:
    environ = {"RELAY_API_KEY": "mine", "RELAY_API_SECRET": "s" * 40}
    url = listening(process("serve", "--port", "0", **environ))
    assert relay("send", "default:demo", "balloons", "--url", url, **environ).exit_code == 0
    assert relay("send", "default:demo", "balloons", "--url", url).exit_code == 1


def test_a_demo_that_others_reach_is_warned_of(process: Start) -> None:
    child = process("demo", "--port", "0", "--host", "0.0.0.0")
    listening(child)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "the demo's secret is public" in said


def test_the_demo_s_secret_is_the_documented_one() -> None:
    assert credentials.DEMO == ("demo", "demo-secret-not-for-production-use")
