"""``relay settings``: every setting, its value here and its meaning; also docs/settings.md."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import click
import msgspec

from relay import settings as relay_settings
from relay.cli.options import defaults, flag_name, shown
from relay.settings import OPTIONS, SettingsError, env_name

_HIDDEN: Final = "(set, not shown)"
_HEAD: Final = """\
# Settings

Made by `relay settings --markdown`; a test holds this page equal to it.

Each setting is a variable of the environment and a flag of `relay serve`, `relay demo` and
`relay check`; a flag goes before the variable. An unknown `RELAY_*` variable is refused, except
those that orchestrators set for a service called relay (`RELAY_SERVICE_*`, `RELAY_PORT=tcp://…`).

| variable | flag | default | unit | meaning |
|---|---|---|---|---|
"""


@click.command()
@click.option("--markdown", is_flag=True, help="Print the page docs/settings.md instead.")
def settings(*, markdown: bool) -> None:
    """Print every setting and what it means.

    With its value in this environment; secrets are not shown.

    \b
    Example:
      relay settings
      RELAY_PORT=9000 relay settings | grep -A1 PORT
    """
    if markdown:
        click.echo(page(), nl=False)
        return
    try:
        current: Mapping[str, Any] = msgspec.structs.asdict(relay_settings.read(os.environ))
    except SettingsError:
        click.echo(_table(defaults()))
        raise
    click.echo(_table(current))


def page() -> str:
    """Return docs/settings.md."""
    rows = [
        f"| `{env_name(field)}` | `{flag_name(field)}` | {_code(defaults()[field])} "
        f"| {option.unit} | {_escaped(option.help)} |\n"
        for field, option in OPTIONS.items()
    ]
    return _HEAD + "".join(rows)


def _code(value: object) -> str:
    text = shown(value)
    return f"`{text}`" if text else "none"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def _table(current: Mapping[str, Any]) -> str:
    return "\n".join(_row(field, current[field]) for field in OPTIONS)


def _row(field: str, value: object) -> str:
    option = OPTIONS[field]
    default = shown(defaults()[field]) or "none"
    now = _HIDDEN if option.secret and value else shown(value)
    said = f"default {default} {option.unit}".rstrip()
    return f"{env_name(field)}={now}\n    {option.help} ({said})"
