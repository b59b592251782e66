"""The group: help, exit codes, and mistakes told in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from relay import __version__
from tests.cli.conftest import Relay

COMMANDS = ("demo", "serve", "send", "watch", "token", "simulate", "check", "settings")


def test_help_lists_every_command(relay: Relay) -> None:
    shown = relay("--help")
    assert shown.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in shown.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help_with_an_example(relay: Relay, command: str) -> None:
    shown = relay(command, "--help")
    assert shown.exit_code == 0
    example = shown.output.partition("Example:\n")[2]
    assert example.lstrip().startswith(("relay ", "export RELAY_"))


def test_version_is_the_package_s(relay: Relay) -> None:
    assert relay("--version").output == f"relay {__version__}\n"


def test_no_command_shows_the_help_and_is_wrong_use(relay: Relay) -> None:
    shown = relay()
    assert shown.exit_code == 2
    assert "Commands:" in shown.output


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sned", "No such command 'sned'"),
        ("serve --prot 1", "'--port'"),
        ("serve --port x", "--port"),
        ("send default:demo", "EVENT"),
        ("send default/demo balloons", "type:id"),
        ("send default:demo {", "not valid JSON"),
        ("send default:demo [1]", "must be a JSON object"),
        ("send default:demo x --url ftp://h", "http://127.0.0.1:8000"),
        ("send default:demo x --url http://h:99999", "http://127.0.0.1:8000"),
        ("send default:demo x --event-id a\tb", "printable ASCII"),
        ("watch default:demo --since 3", "epoch:offset"),
        ("watch default:demo --user a/b", "--user"),
        ("token", "--server"),
        ("token --user a --server", "--server"),
        ("token --server --call default:demo", "--call"),
        ("token --user a --expires 3x", "never"),
        ("simulate --event call.unheard_of", "call.unheard_of"),
        ("simulate --count 0", "--count"),
        ("settings --markup", "--markdown"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(relay: Relay, line: str, said: str) -> None:
    answer = relay(*line.split(" "))
    assert answer.exit_code == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("relay: ")
    assert answer.stderr.count("\n") == 1
    assert said in answer.stderr


@pytest.mark.parametrize("command", ["serve", "demo", "token --user a", "send a:b c", "watch a:b"])
def test_an_unknown_setting_is_refused_by_every_command(relay: Relay, command: str) -> None:
    answer = relay(*command.split(), RELAY_PROT="9000")
    assert answer.exit_code == 2
    assert answer.stderr == "relay: RELAY_PROT is not a setting: did you mean RELAY_PORT?\n"


def test_wrong_use_says_where_help_is(relay: Relay) -> None:
    assert "see 'relay token --help'" in relay("token").stderr


def test_python_m_relay_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "relay", "--version"], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, f"relay {__version__}\n")


def test_a_command_imports_no_server() -> None:
    code = (
        "import sys; from relay.cli import main\n"
        "try: main(['token', '--demo', '--user', 'a'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('uvicorn', 'starlette', 'redis')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
