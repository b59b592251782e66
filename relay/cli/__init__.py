"""The command ``relay``: serve, demo, token, send, watch, simulate, hooks, dead, settings, check.

Each command lives in a module of this package and is imported when it is called, so that
``relay token`` does not wait for a server's imports. A user's mistake is one line that begins with
``relay:`` and exit code 2; what failed outside the user's hands is one line and exit code 1.
The one home of ``click``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

import click

from relay import __version__
from relay.errors import RelayError
from relay.settings import SettingsError

_MODULES: Final = {
    "demo": "serve",
    "serve": "serve",
    "send": "send",
    "watch": "watch",
    "token": "token",
    "simulate": "simulate",
    "hooks": "hooks",
    "dead": "dead",
    "check": "check",
    "settings": "settings",
}
"""Command → the module that has it, in the order in which ``relay --help`` lists them."""

MISUSE: Final = 2
INTERRUPTED: Final = 130


class _Commands(click.Group):
    """A group that imports its commands late and answers mistakes in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of use."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None when there is none of that name."""
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"relay.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.message)
            code = MISUSE
        except click.ClickException as error:
            code = _complain(error.format_message() + _where_help_is(error), error.exit_code)
        except (SettingsError, RelayError) as error:
            code = _complain(str(error), MISUSE)
        except click.Abort:
            code = INTERRUPTED
        sys.exit(code)


def _complain(message: str, code: int) -> int:
    """Say what was wrong on one line, whatever line breaks the message had."""
    click.echo(f"relay: {' '.join(message.split())}", err=True)
    return code


def _where_help_is(error: click.ClickException) -> str:
    if not isinstance(error, click.UsageError) or error.ctx is None:
        return ""
    return f" (see '{error.ctx.command_path} --help')"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="relay", message="relay %(version)s")
def main() -> None:
    """Relay real-time events about calls to browsers.

    \b
    Try it:
      relay demo                                 a relay and a page to click on
      relay send default:demo balloons           from a second terminal
    """
