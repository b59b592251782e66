"""``relay dead``: the deliveries that were given up: list them, look into one, replay them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import SplitResult, quote

import click

from relay import wire
from relay.cli import operator
from relay.cli.token import life
from relay.errors import BadInput

_hook_option: Final = click.option("--hook", metavar="ID", help="Only of this hook.")


def moment(text: str) -> str:
    """Return an RFC 3339 time; ``90s``, ``15m``, ``2h``, ``7d`` are so long ago. A ``type``."""
    try:
        return wire.rfc3339(wire.parse_time(text, "TIME"))
    except BadInput:
        pass
    try:
        ago_s = life(text)
    except click.BadParameter:
        ago_s = 0
    if not ago_s:
        raise click.BadParameter(f"{text!r} must be a time such as 2026-11-23T07:00:00Z or 15m")
    return wire.rfc3339(time.time_ns() - ago_s * 1_000_000_000)


_since_option: Final = click.option(
    "--since", type=moment, metavar="TIME", help="Given up at or after: 2026-11-23T07:00:00Z, 15m."
)
_until_option: Final = click.option(
    "--until", type=moment, metavar="TIME", help="Given up before: 2026-11-23T08:00:00Z, 5m."
)


@click.group()
def dead() -> None:
    """Deliveries that were given up: list, show, replay.

    Asks the relay with RELAY_ADMIN_TOKEN. docs/delivery.md says when a delivery is given up.

    \b
    Example:
      relay dead list --since 1h
      relay dead show 0d6c2b44-8f4e-4a39-bb0a-1a2b3c4d5e6f
      relay dead replay --hook billing
    """


@dead.command("list")
@operator.url_option
@operator.json_option
@_hook_option
@_since_option
@_until_option
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many."
)
def list_letters(
    *,
    url: SplitResult | None,
    as_json: bool,
    hook: str | None,
    since: str | None,
    until: str | None,
    limit: int,
) -> None:
    """List dead letters, the oldest first.

    \b
    Example:
      relay dead list --hook billing --since 2h
      relay dead list --since 2026-11-23T07:00:00Z --until 2026-11-23T08:00:00Z --json
    """
    query = {"hook_id": hook, "since": since, "until": until, "limit": str(limit)}
    answer = operator.ask(url, "dead_letters", query)
    letters = answer["dead_letters"]
    if as_json:
        operator.print_json(answer)
    elif not letters:
        click.echo("no dead letters")
    else:
        head = ("ID", "GIVEN UP", "HOOK", "CALL", "TYPE", "REASON", "LAST ATTEMPT")
        operator.print_table(head, [_row(letter) for letter in letters])
        if len(letters) == limit:
            click.echo(f"the oldest {limit}: --limit or --since {letters[-1]['died_at']} for more")


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    return (
        letter["id"],
        letter["died_at"][:19] + "Z",
        letter["hook_id"] or "(all)",
        letter["call_cid"],
        letter["type"],
        letter["reason"],
        _last(letter["attempts"]),
    )


def _last(attempts: Sequence[dict[str, Any]]) -> str:
    if not attempts:
        return "-"
    last = attempts[-1]
    return f"{last['outcome']} {last['status'] or ''}".rstrip()


@dead.command()
@operator.url_option
@operator.json_option
@click.argument("letter_id", metavar="ID")
def show(*, url: SplitResult | None, as_json: bool, letter_id: str) -> None:
    """Show a dead letter: each attempt, what the receiver said, and the event.

    \b
    Example:
      relay dead show 0d6c2b44-8f4e-4a39-bb0a-1a2b3c4d5e6f
    """
    answer = operator.ask(url, f"dead_letters/{quote(letter_id, safe='')}")
    if as_json:
        operator.print_json(answer)
        return
    letter = answer["dead_letter"]
    for name in ("id", "reason", "died_at", "hook_id", "call_cid", "type", "event_id", "offset"):
        click.echo(f"{name + ':':<10} {letter[name]}")
    click.echo(f"{'attempts:':<10} {letter['attempts_made']}")
    for attempt in letter["attempts"]:
        status = attempt["status"] or ""
        click.echo(
            f"  {attempt['attempted_at']}  {attempt['outcome']} {status}".rstrip()
            + f"  {attempt['latency_ms']} ms  {_one_line(attempt['answer'])}".rstrip()
        )
    event = letter["event"]
    said = "(not kept)" if event is None else wire.encode(event).decode()
    click.echo(f"{'event:':<10} {said}")


def _one_line(text: str) -> str:
    """Return what a receiver said, without what could steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@dead.command()
@operator.url_option
@_hook_option
@_since_option
@_until_option
@click.option("--all", "everything", is_flag=True, help="Every dead letter there is.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
def replay(
    *,
    url: SplitResult | None,
    hook: str | None,
    since: str | None,
    until: str | None,
    everything: bool,
    ids: tuple[str, ...],
) -> None:
    """Deliver dead letters again, under their old ids and with attempts anew.

    Those named, or all of a hook or a time span. A receiver that had got one after all can tell by
    its X-WEBHOOK-ID.

    \b
    Example:
      relay dead replay 0d6c2b44-8f4e-4a39-bb0a-1a2b3c4d5e6f
      relay dead replay --hook billing --since 2h
      relay dead replay --all
    """
    span = {"hook_id": hook, "since": since, "until": until}
    named = {name: value for name, value in span.items() if value}
    if bool(ids) + bool(named) + everything != 1:
        raise click.UsageError("name IDs, or a span by --hook, --since, --until, or say --all")
    body: dict[str, Any] = {"ids": list(ids)} if ids else named or {"hook_id": ""}
    answer = operator.ask(url, "dead_letters/replay", body=body)
    click.echo(f"replayed {answer['replayed']}")
    if answer["bodiless"]:
        click.echo(f"{answer['bodiless']} cannot be replayed: their events were not kept", err=True)
    if answer.get("hookless"):
        click.echo(f"{answer['hookless']} stay: their hooks are disabled or gone", err=True)
