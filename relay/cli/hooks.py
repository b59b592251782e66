"""``relay hooks``: how the hooks of a relay are doing."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import SplitResult

import click

from relay.cli import operator

_TARGETS: Final = ("webhook_url", "sqs_queue_url", "sns_topic_arn")


@click.command()
@operator.url_option
@operator.json_option
def hooks(*, url: SplitResult | None, as_json: bool) -> None:
    """List the hooks of a relay and what is wrong with them.

    Asks the relay with RELAY_ADMIN_TOKEN. Troubles are those that the process which answers has
    with its share of the calls.

    \b
    Example:
      relay hooks
      relay hooks --url https://relay.example --json
    """
    answer = operator.ask(url, "hooks")
    if as_json:
        operator.print_json(answer)
    elif not answer["hooks"]:
        click.echo("no hooks: PATCH /api/v2/app or RELAY_HOOKS make some (docs/delivery.md)")
    else:
        rows = [_row(hook) for hook in answer["hooks"]]
        operator.print_table(("ID", "TYPE", "EVENTS", "STATE", "TO"), rows)


def _row(hook: dict[str, Any]) -> tuple[str, ...]:
    state = hook["trouble"] or "ok" if hook["enabled"] else "disabled"
    return (
        hook["id"],
        hook["hook_type"],
        ",".join(hook["event_types"]) or "all",
        state,
        next((hook[name] for name in _TARGETS if hook.get(name)), ""),
    )
