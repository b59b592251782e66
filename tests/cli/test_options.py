"""Settings as flags."""

from __future__ import annotations

import pytest

from relay.cli import options
from relay.settings import OPTIONS, env_name
from tests.cli.conftest import Relay


@pytest.mark.parametrize("command", ["serve", "demo", "check"])
def test_every_setting_is_a_flag_with_its_variable_in_the_help(relay: Relay, command: str) -> None:
    shown = " ".join(relay(command, "--help").output.split())
    for field in OPTIONS:
        assert f"--{field.replace('_', '-')} " in shown
        assert f"[{env_name(field)};" in shown


def test_help_tells_unit_and_default(relay: Relay) -> None:
    shown = " ".join(relay("serve", "--help").output.split())
    assert (
        "--history-age SECONDS how long a publication is kept "
        "[RELAY_HISTORY_AGE; default 3600 seconds]"
    ) in shown


def test_a_yes_or_no_setting_is_a_pair_of_flags(relay: Relay) -> None:
    assert "--strict-calls / --no-strict-calls" in relay("serve", "--help").output


def test_a_flag_goes_before_the_environment(relay: Relay) -> None:
    answer = relay("check", "--port", "70000", RELAY_PORT="1")
    assert "RELAY_PORT=70000" in answer.output


def test_a_flag_that_is_not_given_leaves_the_environment(relay: Relay) -> None:
    assert "RELAY_PORT=70000" in relay("check", RELAY_PORT="70000").output


def test_the_no_half_of_a_flag_overrides_the_environment(relay: Relay) -> None:
    # 'maybe' alone is refused; the flag takes its place.
    assert "RELAY_GUESTS" in relay("check", RELAY_GUESTS="maybe").output
    assert "RELAY_GUESTS" not in relay("check", "--no-guests", RELAY_GUESTS="maybe").output


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (False, "false"), (2592000.0, "2592000"), (0.5, "0.5")]
)
def test_values_are_shown_as_they_are_written(value: object, text: str) -> None:
    assert options.shown(value) == text
