"""``relay token``: sign a token for a user or a backend."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from typing import Final

import click

from relay import settings, tokens
from relay.cli import credentials, options
from relay.cli.credentials import Credentials
from relay.settings import SettingsError

_LIFE: Final = re.compile(r"([0-9]{1,9})([smhd]?)")
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
NEVER: Final = 0
"""A life of no end, as the command line's parser passes it on."""


def life(text: str) -> int:
    """Return the seconds of ``90``, ``90s``, ``15m``, ``1h``, ``7d``; ``NEVER`` for ``never``."""
    if text == "never":
        return NEVER
    match = _LIFE.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not seconds:
        raise click.BadParameter(f"{text!r} must be a time such as 90s, 15m, 1h, 7d or never")
    return seconds


@click.command()
@click.option("--user", type=options.user_id, metavar="NAME", help="The user the token is for.")
@click.option("--server", is_flag=True, help="A backend's token instead: it may act as any user.")
@click.option(
    "--call",
    "cids",
    type=options.cid,
    metavar="CID",
    multiple=True,
    help="Only for this call; repeatable.",
)
@click.option("--role", help="The user's role in those calls.")
@click.option(
    "--expires",
    type=life,
    metavar="TIME",
    default="1h",
    show_default=True,
    help="90s, 15m, 1h, 7d or never.",
)
@click.option("--demo", is_flag=True, help="Sign with the secret of 'relay demo'.")
def token(
    *,
    user: str | None,
    server: bool,
    cids: Sequence[str],
    role: str | None,
    expires: int,
    demo: bool,
) -> None:
    """Print a token, signed with RELAY_API_SECRET.

    \b
    Example:
      relay token --user john --call default:standup --expires 8h
      relay token --server --expires never
    """
    if bool(user) == server:
        raise click.UsageError("say whose token it is: --user NAME, or --server for a backend")
    if server and (cids or role):
        raise click.UsageError("--call and --role limit a user; a server's token has no limits")
    click.echo(
        tokens.issue(
            _signer(demo=demo).secret,
            user_id=user,
            now=time.time(),
            life_s=None if expires == NEVER else expires,
            call_cids=list(cids) or None,
            role=role,
        )
    )


def _signer(*, demo: bool) -> Credentials:
    if demo:
        return credentials.DEMO
    found = credentials.configured(settings.read(os.environ))
    if found is None:
        raise SettingsError(
            "RELAY_API_SECRET is not set: set RELAY_API_KEY and RELAY_API_SECRET to those of the "
            "relay the token is for, or add --demo for 'relay demo'"
        )
    return found
