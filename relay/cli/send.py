"""``relay send``: publish one event through the events API, as a backend would."""

from __future__ import annotations

import os
import re
import time
from typing import Any, Final
from urllib.parse import SplitResult, quote

import click

from relay import settings, tokens, wire
from relay.cli import credentials, options
from relay.cli.credentials import Credentials
from relay.cli.target import URL_DEFAULT, Answer, Target, http_url, own_url
from relay.errors import BadInput

TIMEOUT_S: Final = 10.0
TOKEN_LIFE_S: Final = 60.0
_ANIMATION: Final = re.compile(r"[^\s{}\[\]\",]+")


@click.command()
@click.argument("cid", type=options.cid)
@click.argument("event")
@click.option("--url", type=http_url, metavar="URL", help=f"The relay. [default: {URL_DEFAULT}]")
@click.option(
    "--user",
    type=options.user_id,
    metavar="NAME",
    default="cli",
    show_default=True,
    help="Who sends it.",
)
@click.option(
    "--event-id",
    type=options.event_id,
    metavar="ID",
    help="Sent again under the same id, it is the same event.",
)
@click.option("--volatile", is_flag=True, help="Not kept: only who watches now gets it.")
def send(
    *,
    cid: str,
    event: str,
    url: SplitResult | None,
    user: str,
    event_id: str | None,
    volatile: bool,
) -> None:
    """Send EVENT to everybody who watches the call CID.

    EVENT is a JSON object, or one word: the name of an animation.

    \b
    Example:
      relay send default:demo balloons
      relay send default:demo '{"render-animation": "balloons"}' --user john
    """
    body: dict[str, Any] = {"custom": custom_of(event), "user_id": user}
    if event_id is not None:
        body["event_id"] = event_id
    if volatile:
        body["volatile"] = True
    chosen = settings.read(os.environ)
    answer = _post(url or own_url(chosen), cid, body, credentials.or_demo(chosen))
    if not answer.accepted:
        raise click.ClickException(refusal(answer))
    click.echo(answer.text)


def custom_of(event: str) -> dict[str, Any]:
    """Return the ``custom`` that a command line's EVENT stands for."""
    if _ANIMATION.fullmatch(event):
        return {"render-animation": event}
    try:
        return wire.decode_object(event, "EVENT")
    except BadInput as error:
        raise click.UsageError(
            f"""{error.message}: write '{{"render-animation": "balloons"}}' in single quotes, """
            "or the name of an animation alone"
        ) from None


def _post(url: SplitResult, cid: str, body: dict[str, Any], signer: Credentials) -> Answer:
    kind, _, call_id = cid.partition(":")
    path = f"{url.path.rstrip('/')}/api/v2/video/call/{kind}/{quote(call_id, safe='')}/event"
    token = tokens.issue(signer.secret, user_id=None, now=time.time(), life_s=TOKEN_LIFE_S)
    with Target(url, timeout_s=TIMEOUT_S) as target:
        return target.post(
            f"{path}?api_key={quote(signer.key, safe='')}",
            wire.encode(body),
            {"Authorization": token, "stream-auth-type": "jwt"},
        )


def refusal(answer: Answer) -> str:
    """Return what a refusing answer says, in one line."""
    try:
        error = wire.decode_object(answer.text)
        return f"refused: {error['message']} (HTTP {answer.status}, code {error['code']})"
    except (BadInput, KeyError):
        return f"refused with HTTP {answer.status}: is this a relay?"
