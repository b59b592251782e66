"""docs/delivery.md says what the code does: fields, the retry table, commands, metrics."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import click
import pytest

from relay import hooks, metrics, retry
from relay.broker import Reason
from relay.cli import main
from relay.hooks import Hook, Hooks, Rules
from relay.retry import Outcome

PAGE: Final = (Path(__file__).parents[1] / "docs" / "delivery.md").read_text("utf-8")
DERIVED: Final = {"id", "product", "created_at", "updated_at", "gzip", "read_only"}
ROWS: Final = {
    "200 to 299": Outcome.DELIVERED,
    "408, 429, 500 and above": Outcome.RETRYABLE,
    "no connection, or it broke": Outcome.NETWORK,
    "no answer in time": Outcome.TIMEOUT,
    "any other answer, redirects included": Outcome.REFUSED,
}


def rows(heading: str) -> dict[str, str]:
    """Return the second cell by the first, over the tables of a section."""
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {first.strip(): second.strip() for first, second, *_ in cells}


def test_every_field_of_a_hook_is_described_and_no_other() -> None:
    names = set(re.findall(r"`([a-z_]+)`", " ".join(rows("Configure"))))
    assert {
        name for name in Hook.__struct_fields__ if not name.startswith("sns_")
    } - DERIVED <= names
    assert names <= set(Hook.__struct_fields__)


def test_defaults_are_those_of_the_code() -> None:
    plain = Hook(id="x", hook_type=hooks.HookType.WEBHOOK)
    for first, said in rows("Configure").items():
        [name] = re.findall(r"`([a-z_]+)`", first)[:1] or [""]
        if said.startswith("`"):
            value = getattr(plain, name)
            shown = {True: "true", False: "false", (): "[]"}.get(value, str(value))
            assert said == f"`{shown}`", name


def test_the_retry_table_is_the_table() -> None:
    said = rows("Retries")
    for row, outcome in ROWS.items():
        attempts = "delivered" if outcome is Outcome.DELIVERED else str(retry.ATTEMPTS[outcome])
        assert said[row] == attempts, row
    assert f"at most {retry.REQUEST_LIMIT_S:g} s" in PAGE
    assert f"most {retry.BUDGET_S:g} s from the beginning" in PAGE


def test_the_file_of_the_page_is_read() -> None:
    [text] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    read = hooks.with_file(Hooks(), tomllib.loads(text)["hook"], Rules(0, str))
    assert [hook.id for hook in read.hooks] == ["billing"]


def test_every_reason_is_explained() -> None:
    assert all(f"`{reason.value}`" in PAGE for reason in Reason)


def test_every_metric_of_hooks_is_listed() -> None:
    known = {
        family.split(" ")[2]
        for family in metrics.render().decode().splitlines()
        if family.startswith("# TYPE relay_")
    }
    ours = {name for name in known if re.match(r"relay_(hook|outbox|dead)_", name)}
    assert ours == set(re.findall(r"`(relay_(?:hook|outbox|dead)[a-z_]+)`", PAGE))


@pytest.mark.parametrize("line", re.findall(r"^relay (?:hooks|dead)[^#\n]*", PAGE, re.MULTILINE))
def test_the_commands_of_the_page_are_known(line: str) -> None:
    words = line.split()[1:]
    command: click.Command | None = main.get_command(click.Context(main), words.pop(0))
    if isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    command.make_context(command.name, [word for word in words if word != "…"])
