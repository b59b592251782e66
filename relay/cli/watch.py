"""``relay watch``: print what happens in a call, across reconnects, and say when something is lost.

The I/O around ``follow.Follower``: one socket at a time, back-off between them.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final, NoReturn
from urllib.parse import SplitResult, quote

import click
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from relay import settings, tokens
from relay.cli import credentials, options
from relay.cli.credentials import Credentials
from relay.cli.follow import FLOOD, Follower, Line, Stopped
from relay.cli.target import URL_DEFAULT, http_url, own_url
from relay.errors import BadInput
from relay.events import Position
from relay.retry import backoff

OPEN_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 30.0
"""The relay says something every 20 s; after this long it is gone."""

TOKEN_LIFE_S: Final = 3600.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0
AFTER_FLOOD_S: Final = 5.0


def position(text: str) -> Position:
    """Return the position written ``epoch:offset``; a parameter's ``type``."""
    epoch, _, offset = text.rpartition(":")
    if not (epoch and offset.isascii() and offset.isdigit() and len(offset) <= 18):
        raise click.BadParameter(f"{text!r} must be epoch:offset, e.g. k3:41")
    return Position(epoch, int(offset))


@click.command()
@click.argument("cid", type=options.cid)
@click.option(
    "--since", type=position, metavar="EPOCH:OFFSET", help="Show first what was published after it."
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as the JSON it came as.")
@click.option("--url", type=http_url, metavar="URL", help=f"The relay. [default: {URL_DEFAULT}]")
@click.option(
    "--user",
    type=options.user_id,
    metavar="NAME",
    default="cli",
    show_default=True,
    help="Who watches.",
)
def watch(
    *, cid: str, since: Position | None, as_json: bool, url: SplitResult | None, user: str
) -> None:
    """Print the events of the call CID as they come, until Ctrl-C.

    Events go to standard output; what happens to the connection, and every gap, to standard error.

    \b
    Example:
      relay watch default:demo
      relay watch default:demo --since k3x9:41 --json | jq .custom
    """
    chosen = settings.read(os.environ)
    signer = credentials.or_demo(chosen)
    follower = Follower(cid, since, as_json=as_json)
    uri = _socket_uri(url or own_url(chosen), signer)
    try:
        _follow(follower, uri, signer, user)
    except Stopped as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        return


def _socket_uri(url: SplitResult, signer: Credentials) -> str:
    scheme = "wss" if url.scheme == "https" else "ws"
    key = quote(signer.key, safe="")
    path = f"{url.path.rstrip('/')}/video/connect?api_key={key}&stream-auth-type=jwt"
    return f"{scheme}://{url.netloc}{path}"


def _follow(follower: Follower, uri: str, signer: Credentials, user: str) -> None:
    """Follow until interrupted. The first connection must succeed; later ones are tried again."""
    rng = random.Random()  # noqa: S311 - jitter
    failures, connected = 0, False
    while True:
        follower.watching = False
        why, pause = _one_socket(follower, uri, signer, user)
        connected = connected or follower.watching
        if not connected:
            raise Stopped(f"{uri.partition('?')[0]}: {why}")
        failures = 1 if follower.watching else failures + 1
        pause = max(pause, backoff(failures, rng, first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S))
        click.echo(f"relay: {why}: connecting again in {pause:.1f} s", err=True)
        time.sleep(pause)


def _one_socket(follower: Follower, uri: str, signer: Credentials, user: str) -> tuple[str, float]:
    """Follow on one socket until it ends; return why, and the least pause before the next."""
    token = tokens.issue(signer.secret, user_id=user, now=time.time(), life_s=TOKEN_LIFE_S)
    try:
        with connect(
            uri, open_timeout=OPEN_TIMEOUT_S, close_timeout=1, compression=None, proxy=None
        ) as socket:
            socket.send(follower.login(token, user))
            _read(follower, socket)
    except TimeoutError:
        return "the relay is silent", 0.0
    except ConnectionClosed as error:
        code = error.rcvd.code if error.rcvd else 1006
        return f"the socket was closed ({code})", AFTER_FLOOD_S if code == FLOOD else 0.0
    except InvalidHandshake as error:
        return f"the relay did not open a socket: {error}", 0.0
    except OSError as error:
        return _network(error), 0.0


def _network(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: is the relay running?"
    return f"the relay cannot be reached ({error})"


def _read(follower: Follower, socket: ClientConnection) -> NoReturn:
    """Show frame after frame; ends by an exception of the socket, ``TimeoutError`` for silence."""
    while True:
        text = socket.recv(timeout=SILENCE_S, decode=True)
        try:
            lines, reply = follower.receive(text)
        except BadInput as error:
            raise Stopped(f"{error.message}: is this a relay?") from None
        for line in lines:
            _show(line)
        if reply is not None:
            socket.send(reply)


def _show(line: Line) -> None:
    if line.notice:
        click.echo(f"relay: {line.text}", err=True)
    else:
        click.echo(line.text)
