"""``relay token``: what it signs, and with which secret."""

from __future__ import annotations

import time

import pytest

from relay import tokens
from relay.cli import credentials
from relay.tokens import Claims
from tests.cli.conftest import Relay

ENVIRON = {"RELAY_API_KEY": "key", "RELAY_API_SECRET": "s" * 40}
KEYS = {"key": ["s" * 40], credentials.DEMO.key: [credentials.DEMO.secret]}


def claims_of(text: str, key: str = "key") -> Claims:
    return tokens.verify(text.strip(), key, KEYS, time.time())


def test_a_user_s_token_lives_an_hour(relay: Relay) -> None:
    claims = claims_of(relay("token", "--user", "john", **ENVIRON).output)
    assert claims.user_id == "john"
    assert claims.call_cids is None
    assert claims.expires == pytest.approx(time.time() + 3600, abs=10)


def test_a_token_is_limited_to_calls_and_carries_a_role(relay: Relay) -> None:
    line = "token --user john --call default:a --call default:b --role host"
    claims = claims_of(relay(*line.split(), **ENVIRON).output)
    assert claims.call_cids == {"default:a", "default:b"}
    assert claims.role == "host"


def test_a_server_s_token_names_no_user(relay: Relay) -> None:
    assert claims_of(relay("token", "--server", **ENVIRON).output).is_server


@pytest.mark.parametrize(
    ("life", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800)]
)
def test_a_life_is_written_with_its_unit(relay: Relay, life: str, seconds: int) -> None:
    claims = claims_of(relay("token", "--user", "a", "--expires", life, **ENVIRON).output)
    assert claims.expires == pytest.approx(time.time() + seconds, abs=10)


def test_never_has_no_end(relay: Relay) -> None:
    claims = claims_of(relay("token", "--user", "a", "--expires", "never", **ENVIRON).output)
    assert claims.expires is None


@pytest.mark.parametrize("life", ["0", "-1", "h", "1w", "1 h", "", "٣"])
def test_what_is_no_life_is_refused(relay: Relay, life: str) -> None:
    answer = relay("token", "--user", "a", "--expires", life, **ENVIRON)
    assert (answer.exit_code, answer.stdout) == (2, "")


def test_the_demo_s_secret_must_be_asked_for(relay: Relay) -> None:
    refused = relay("token", "--user", "a")
    assert refused.exit_code == 2
    assert "RELAY_API_KEY and RELAY_API_SECRET" in refused.stderr
    assert claims_of(relay("token", "--user", "a", "--demo").output, "demo").user_id == "a"


@pytest.mark.parametrize("lone", list(ENVIRON))
def test_a_key_without_its_secret_is_told(relay: Relay, lone: str) -> None:
    answer = relay("token", "--user", "a", **{lone: "x"})
    assert answer.exit_code == 2
    (missing,) = set(ENVIRON) - {lone}
    assert f"set {missing} too" in answer.stderr
