"""``relay serve`` and ``relay demo``: read the settings, then run the server until it is stopped.

The server is imported when it is about to run: a mistake in the settings is told without it.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import click
import msgspec

from relay import settings
from relay.cli import credentials, options
from relay.settings import Settings


@click.command()
@options.settings_flags()
def serve(**flags: Any) -> int:
    """Run the relay.

    Every flag is also a variable of the environment, where secrets are safer: other users of the
    machine can read the flags of a process.

    \b
    Example:
      export RELAY_API_KEY=mykey RELAY_API_SECRET=$(openssl rand -hex 32)
      relay serve --host 0.0.0.0 --redis-url redis://localhost:6379/0
    """
    chosen = settings.read(os.environ, flags)
    settings.check_serve(chosen)
    return _run(chosen, demo=False)


@click.command()
@options.settings_flags({"api_key": credentials.DEMO.key, "api_secret": credentials.DEMO.secret})
def demo(**flags: Any) -> int:
    """Run the relay with a page to click on.

    It takes every setting of 'serve', listens on this machine only unless told otherwise, and,
    unless a key and a secret are set, has public ones, which 'relay send', 'relay watch' and
    'relay simulate' use by themselves.

    \b
    Example:
      relay demo
      relay send default:demo balloons           from a second terminal
    """
    chosen = _with_credentials(settings.read(os.environ, flags))
    if chosen.api_secret == credentials.DEMO.secret and not _is_loopback(chosen.host):
        click.echo(
            f"relay: the demo's secret is public and {chosen.host} is not this machine alone: "
            "whoever reaches the port can do everything",
            err=True,
        )
    return _run(chosen, demo=True)


def _with_credentials(chosen: Settings) -> Settings:
    if credentials.configured(chosen):
        return chosen
    key, secret = credentials.DEMO
    return msgspec.structs.replace(chosen, api_key=key, api_secret=secret)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _run(chosen: Settings, *, demo: bool) -> int:
    from relay import server

    return server.run(chosen, demo)
