"""``relay settings`` and the page made from it."""

from __future__ import annotations

from pathlib import Path

from relay.cli import settings
from relay.settings import OPTIONS, env_name
from tests.cli.conftest import Relay

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_manual_is_equal_to_the_table(relay: Relay) -> None:
    assert PAGE.read_text() == settings.page(), "relay settings --markdown > docs/settings.md"
    assert relay("settings", "--markdown").output == settings.page()


def test_the_manual_does_not_depend_on_the_environment(relay: Relay) -> None:
    shown = relay("settings", "--markdown", RELAY_PORT="9999", RELAY_NO_SUCH="x")
    assert shown.output == settings.page()


def test_every_setting_is_listed_with_its_meaning(relay: Relay) -> None:
    lines = relay("settings").output.splitlines()
    assert len(lines) == 2 * len(OPTIONS)
    for (field, option), name, text in zip(OPTIONS.items(), lines[::2], lines[1::2], strict=True):
        assert name.startswith(f"{env_name(field)}=")
        assert option.help in text


def test_the_value_shown_is_the_one_in_force(relay: Relay) -> None:
    shown = relay("settings", RELAY_HISTORY_AGE="90").output
    assert (
        "RELAY_HISTORY_AGE=90\n    how long a publication is kept (default 3600 seconds)\n" in shown
    )


def test_secrets_are_not_shown(relay: Relay) -> None:
    secrets = {env_name(field): "k:hush" for field, option in OPTIONS.items() if option.secret}
    shown = relay("settings", **secrets).output
    assert "hush" not in shown
    for name in secrets:
        assert f"{name}=(set, not shown)\n" in shown


def test_a_wrong_setting_still_shows_the_known_ones(relay: Relay) -> None:
    answer = relay("settings", RELAY_PROT="1")
    assert answer.exit_code == 2
    assert "RELAY_PORT=8000\n" in answer.stdout
    assert answer.stderr == "relay: RELAY_PROT is not a setting: did you mean RELAY_PORT?\n"
