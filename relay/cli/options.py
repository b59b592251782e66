"""What several commands share: every setting as a flag, cids, and how to explain them.

The flags are made from ``relay.settings.OPTIONS``, so a new setting is a new flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from relay import events
from relay.errors import BadInput
from relay.settings import OPTIONS, Settings, env_name

Command = TypeVar("Command", bound=Callable[..., Any])

_TYPES: Final[dict[str, type]] = {"str": str, "int": int, "float": float}
_METAVARS: Final = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER"}


def flag_name(field: str) -> str:
    """Return the flag of a setting, e.g. ``--redis-url``."""
    return "--" + field.replace("_", "-")


def shown(value: object) -> str:
    """Return a setting's value as it is written in the environment."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def defaults() -> dict[str, Any]:
    """Return every setting's default by field name."""
    return {field: getattr(Settings(), field) for field in OPTIONS}


def settings_flags(changed: Mapping[str, str] | None = None) -> Callable[[Command], Command]:
    """Give a command every setting as a flag.

    They arrive as keyword arguments, None where not given. ``changed`` holds what the help says of
    a default that differs for this command.
    """
    words = {field: shown(value) or "none" for field, value in defaults().items()}
    words.update(changed or {})

    def decorate(command: Command) -> Command:
        for field in reversed(OPTIONS):
            command = _flag(field, words[field])(command)
        return command

    return decorate


def _flag(field: str, default: str) -> Callable[[Command], Command]:
    option = OPTIONS[field]
    kind = Settings.__annotations__[field]
    unit = f" {option.unit}" if option.unit else ""
    text = f"{option.help} [{env_name(field)}; default {default}{unit}]"
    name = flag_name(field)
    if kind == "bool":
        return click.option(f"{name}/--no-{name[2:]}", field, default=None, help=text)
    metavar = option.unit.replace(" ", "-").upper() or _METAVARS[kind]
    return click.option(name, field, type=_TYPES[kind], default=None, metavar=metavar, help=text)


def cid(text: str) -> str:
    """Return ``text`` when it is a cid; a parameter's ``type``."""
    return _checked(events.check_cid, text)


def user_id(text: str) -> str:
    """Return ``text`` when it can be a user's id; a parameter's ``type``."""
    return _checked(events.check_user_id, text)


def event_id(text: str) -> str:
    """Return ``text`` when it can be an event's id; a parameter's ``type``."""
    return _checked(events.check_event_id, text)


def _checked(rule: Callable[[object, str], str], text: str) -> str:
    try:
        return rule(text, repr(text))
    except BadInput as error:
        raise click.BadParameter(error.message) from None
