"""Which fields of calls, users and members can be asked for, and of which kind they are.

``custom.<field>`` is a path of dots into a record's ``custom``; its values are any JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from relay.calls import Call

CUSTOM: Final = "custom."
PATH_MOST: Final = 8
"""Names that a path into ``custom`` may have."""


class Kind(Enum):
    """What values a field has, and so which operators make sense on it."""

    TEXT = "text"
    TIME = "time"
    FLAG = "flag"
    TEXTS = "texts"
    JSON = "json"


class Field(NamedTuple):
    """A field's kind, how to read it off a record, and whether a record may be without it."""

    kind: Kind
    read: Callable[[Any], Any]
    optional: bool = False


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """What can be asked of one kind of record. ``identity`` is the field that no two share."""

    name: str
    identity: str
    fields: Mapping[str, Field]

    def field(self, name: str) -> Field | None:
        """Return a field by its name, None when there is none."""
        if not name.startswith(CUSTOM):
            return self.fields.get(name)
        path = tuple(name.split(".")[1:])
        if len(path) > PATH_MOST or not all(path):
            return None
        return Field(Kind.JSON, partial(_custom, path), optional=True)

    def identity_of(self, record: Any) -> str:
        """Return what tells a record from all others."""
        value: str = self.fields[self.identity].read(record)
        return value

    def known(self) -> str:
        """Return the names of the fields as a refusal lists them."""
        return f"{', '.join(self.fields)}, custom.<field> (at most {PATH_MOST} names deep)"


def _custom(path: tuple[str, ...], record: Any) -> Any:
    value = record.custom
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def _member_ids(call: Call) -> tuple[str, ...]:
    return tuple(member.user_id for member in call.members)


CALLS: Final = Schema(
    name="calls",
    identity="cid",
    fields={
        "type": Field(Kind.TEXT, lambda call: call.type),
        "id": Field(Kind.TEXT, lambda call: call.id),
        "cid": Field(Kind.TEXT, lambda call: call.cid),
        "team": Field(Kind.TEXT, lambda call: call.team or None, optional=True),
        "created_by_user_id": Field(Kind.TEXT, lambda call: call.created_by),
        "created_at": Field(Kind.TIME, lambda call: call.created_at),
        "updated_at": Field(Kind.TIME, lambda call: call.updated_at),
        "starts_at": Field(Kind.TIME, lambda call: call.starts_at, optional=True),
        "ended_at": Field(Kind.TIME, lambda call: call.ended_at, optional=True),
        "backstage": Field(Kind.FLAG, lambda call: call.backstage),
        "members": Field(Kind.TEXTS, _member_ids),
    },
)


USERS: Final = Schema(
    name="users",
    identity="id",
    fields={
        "id": Field(Kind.TEXT, lambda user: user.id),
        "name": Field(Kind.TEXT, lambda user: user.name or None, optional=True),
        "role": Field(Kind.TEXT, lambda user: user.role),
        "language": Field(Kind.TEXT, lambda user: user.language or None, optional=True),
        "teams": Field(Kind.TEXTS, lambda user: user.teams),
        "created_at": Field(Kind.TIME, lambda user: user.created_at),
        "updated_at": Field(Kind.TIME, lambda user: user.updated_at),
    },
)


MEMBERS: Final = Schema(
    name="members",
    identity="user_id",
    fields={
        "user_id": Field(Kind.TEXT, lambda member: member.user_id),
        "role": Field(Kind.TEXT, lambda member: member.role),
        "created_at": Field(Kind.TIME, lambda member: member.created_at),
        "updated_at": Field(Kind.TIME, lambda member: member.updated_at),
    },
)
