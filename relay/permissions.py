"""Who may do what in a call: roles give capabilities, a call can grant and revoke them per user.

Pure. The names are those of Stream's ``OwnCapability``. Servers may do anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from relay.calls import Call

BASIC: Final = frozenset({"create-call", "create-reaction", "join-call", "read-call"})
"""What any user may do. Without ``send-audio`` and ``send-video`` no SDK asks for devices."""

MANAGING: Final = frozenset(
    {
        "block-users", "end-call", "join-backstage", "join-ended-call", "kick-user",
        "remove-call-member", "update-call", "update-call-member", "update-call-permissions",
        "update-call-settings",
    }
)  # fmt: skip

MEDIA: Final = frozenset(
    {
        "change-max-duration", "enable-noise-cancellation", "mute-users", "pin-for-everyone",
        "screenshare", "send-audio", "send-closed-captions-call", "send-video",
        *(
            f"{verb}-{what}-call"
            for verb in ("start", "stop")
            for what in (
                "broadcast", "closed-captions", "frame-record", "individual-record", "raw-record",
                "record", "transcription",
            )
        ),
    }
)  # fmt: skip
"""What only a media server can act on: the relay keeps and tells them, nobody has one by role."""

ALL: Final = BASIC | MANAGING | MEDIA

GRANTS: Final = {
    "admin": BASIC | MANAGING,
    "anonymous": frozenset({"read-call"}),
    "call-member": BASIC,
    "guest": BASIC,
    "host": BASIC | MANAGING,
    "moderator": BASIC | MANAGING,
    "user": BASIC,
}
"""Role → capabilities. A role that is not here counts as ``user``."""

OPEN_TYPES: Final = frozenset({"development"})
"""Types of calls in which everyone may do everything."""


def of(call: Call | None, user_id: str, roles: Iterable[str | None]) -> frozenset[str]:
    """Return what a user with these roles may do in a call; None = a call that nobody created.

    Whoever created the call manages it; who is blocked may do nothing.
    """
    own = [role for role in roles if role] or ["user"]
    if call is None:
        return _by_roles(own)
    if user_id in call.blocked:
        return frozenset()
    if call.type in OPEN_TYPES or user_id == call.created_by:
        own.append("admin")
    if (member := call.member(user_id)) is not None:
        own.append(member.role)
    if (special := call.permissions.get(user_id)) is None:
        return _by_roles(own)
    return (_by_roles(own) | frozenset(special.granted)) - frozenset(special.revoked)


def _by_roles(roles: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*(GRANTS.get(role, BASIC) for role in roles))


def by_role(call: Call) -> dict[str, list[str]]:
    """Return the capabilities of each role in a call, as events tell them."""
    if call.type in OPEN_TYPES:
        return {role: sorted(GRANTS["admin"]) for role in GRANTS}
    return {role: sorted(capabilities) for role, capabilities in GRANTS.items()}
