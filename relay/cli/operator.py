"""Asking a relay as its operator: what ``relay hooks`` and ``relay dead`` have in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlencode

import click

from relay import settings, wire
from relay.cli.send import refusal
from relay.cli.target import URL_DEFAULT, Answer, Target, http_url, own_url
from relay.errors import BadInput
from relay.settings import SettingsError

TIMEOUT_S: Final = 30.0

url_option: Final = click.option(
    "--url", type=http_url, metavar="URL", help=f"The relay. [default: {URL_DEFAULT}]"
)
json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print the relay's answer, for machines."
)


def ask(
    url: SplitResult | None,
    path: str,
    query: Mapping[str, str | None] | None = None,
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the answer to a question under ``/admin``: a POST with a ``body``, else a GET.

    Raises ``SettingsError`` without a token, ``ClickException`` for a refusal.
    """
    chosen = settings.read(os.environ)
    if not chosen.admin_token:
        raise SettingsError(
            "RELAY_ADMIN_TOKEN is not set: set it to that of the relay, here and there"
        )
    headers = {"Authorization": f"Bearer {chosen.admin_token}"}
    given = urlencode({name: value for name, value in (query or {}).items() if value})
    where = url or own_url(chosen)
    full = f"{where.path.rstrip('/')}/admin/{path}" + (f"?{given}" if given else "")
    with Target(where, timeout_s=TIMEOUT_S) as target:
        if body is None:
            answer = target.get(full, headers)
        else:
            answer = target.post(full, wire.encode(body), headers)
    return _content(answer)


def _content(answer: Answer) -> dict[str, Any]:
    if not answer.accepted:
        raise click.ClickException(refusal(answer))
    try:
        return wire.decode_object(answer.text)
    except BadInput:
        raise click.ClickException("the answer is not JSON: is this a relay?") from None


def print_json(answer: Mapping[str, Any]) -> None:
    """Print an answer as JSON on one line."""
    click.echo(wire.encode(answer).decode())


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows under their head, each column as wide as its longest text."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
