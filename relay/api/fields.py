"""Reading the fields of a request's body: what is there has the right type, or is refused by name.

Pure. Fields that nobody asked for are ignored, as Stream does, so that a newer SDK still works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from relay import users, wire
from relay.errors import BadInput
from relay.events import check_user_id
from relay.users import Profile

_ROLE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGITS: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_FLAGS: Final = {"true": True, "false": False}


class Named(NamedTuple):
    """A user whom a request names, and what it says about it."""

    user_id: str
    profile: Profile


def optional_object(body: Mapping[str, Any], name: str, path: str = "") -> dict[str, Any] | None:
    """Return an object, None when it is absent; raises ``BadInput`` naming what is none."""
    value = body.get(name)
    if value is None or isinstance(value, dict):
        return value
    raise BadInput(f"{path}{name} must be a JSON object")


def needed_object(body: Mapping[str, Any], name: str, path: str = "") -> dict[str, Any]:
    """Return an object that must be there; raises ``BadInput`` naming it."""
    value = optional_object(body, name, path)
    if value is None:
        raise BadInput(f"{path}{name} is missing: it must be a JSON object")
    return value


def flag(body: Mapping[str, Any], name: str, *, default: bool, path: str = "") -> bool:
    """Return true or false; raises ``BadInput`` naming the field when it is anything else."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise BadInput(f"{path}{name} must be true or false")


def query_flag(query: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a flag of the URL; raises ``BadInput`` unless it is ``true`` or ``false``."""
    value = query.get(name)
    if value is None:
        return default
    if value in _FLAGS:
        return _FLAGS[value]
    raise BadInput(f"{name} must be true or false")


def number(value: object, name: str, *, default: int, least: int, most: int) -> int:
    """Return a whole number between two bounds, given as JSON or as text of a URL."""
    if value is None:
        return default
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise BadInput(f"{name} must be a whole number from {least} to {most}")


def text(
    body: Mapping[str, Any], name: str, *, most: int, path: str = "", default: str = ""
) -> str:
    """Return a string of at most ``most`` characters; raises ``BadInput`` naming the field."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and len(value) <= most:
        return value
    raise BadInput(f"{path}{name} must be a string of at most {most} characters")


def needed_text(body: Mapping[str, Any], name: str, *, most: int) -> str:
    """Return a string that must be there and not empty; raises ``BadInput`` naming it."""
    if value := text(body, name, most=most):
        return value
    raise BadInput(f"{name} is missing: it must be a string of at most {most} characters")


def time(body: Mapping[str, Any], name: str, path: str = "") -> int | None:
    """Return a time of either dialect in nanoseconds, None when it is absent."""
    value = body.get(name)
    return None if value is None else wire.parse_time(value, path + name)


def items(body: Mapping[str, Any], name: str, *, most: int, path: str = "") -> list[Any]:
    """Return a list of at most ``most`` entries, an empty one when it is absent."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadInput(f"{path}{name} must be a list")
    if len(value) > most:
        raise BadInput(f"{path}{name} has {len(value)} entries, at most {most} are possible")
    return value


def user_ids(body: Mapping[str, Any], name: str, *, most: int) -> list[str]:
    """Return a list of users' ids, each once; raises ``BadInput`` naming the entry that is none."""
    given = items(body, name, most=most)
    checked = [check_user_id(value, f"{name}[{index}]") for index, value in enumerate(given)]
    return list(dict.fromkeys(checked))


def needed_user_id(body: Mapping[str, Any], name: str = "user_id") -> str:
    """Return a user's id that must be there; raises ``BadInput`` naming the field."""
    if body.get(name) is None:
        raise BadInput(f"{name} is missing: it must be a user's id")
    return check_user_id(body[name], name)


def read_role(value: object, path: str) -> str | None:
    """Return a role, None when it is absent; raises ``BadInput`` naming ``path``."""
    if value is None or (isinstance(value, str) and _ROLE.fullmatch(value)):
        return value
    raise BadInput(f"{path} must be a word of at most 64 letters, digits, '_' and '-'")


def read_user(user: Mapping[str, Any], path: str) -> Named:
    """Return the user that a server describes at ``path``, role and teams included."""
    user_id = check_user_id(user.get("id"), f"{path}.id")
    profile = users.read_profile(user, path)
    role = read_role(user.get("role"), f"{path}.role")
    teams = users.read_teams(user, path)
    return Named(user_id, msgspec.structs.replace(profile, role=role, teams=teams))


def named_user(body: Mapping[str, Any], id_field: str, field: str, path: str = "") -> Named | None:
    """Return the user named by ``id_field`` or described by ``field``, None without either.

    Raises ``BadInput`` when one is malformed, or both are given and differ.
    """
    described = optional_object(body, field, path)
    named = None if described is None else read_user(described, path + field)
    user_id = body.get(id_field)
    if user_id is None:
        return named
    check_user_id(user_id, path + id_field)
    if named is None:
        return Named(user_id, Profile())
    if named.user_id != user_id:
        raise BadInput(f"{path}{id_field} and {path}{field}.id differ")
    return named
