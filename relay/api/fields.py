"""Reading the fields of a request's body: what is there has the right type, or is refused by name.

Pure. Fields that nobody asked for are ignored, as Stream does, so that a newer SDK still works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from relay import users
from relay.errors import BadInput
from relay.events import check_user_id
from relay.users import Profile

_ROLE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


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


def flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """Return true or false; raises ``BadInput`` naming the field when it is anything else."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise BadInput(f"{name} must be true or false")


def read_user(user: Mapping[str, Any], path: str) -> Named:
    """Return the user that a server describes at ``path``, role included."""
    user_id = check_user_id(user.get("id"), f"{path}.id")
    profile = users.read_profile(user, path)
    role = user.get("role")
    if role is not None and not (isinstance(role, str) and _ROLE.fullmatch(role)):
        raise BadInput(f"{path}.role must be a word of at most 64 letters, digits, '_' and '-'")
    return Named(user_id, msgspec.structs.replace(profile, role=role))


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
