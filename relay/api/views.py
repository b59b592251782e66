"""Calls as answers and events show them: with the users they name and the session that runs.

Whatever a few calls need is read in two requests to the store, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from relay import calls, users
from relay.api import fields
from relay.api.context import Caller, Context
from relay.broker import Found
from relay.calls import MEMBERS_MOST, Call, Member, Session
from relay.errors import NotAllowed
from relay.tasks import together
from relay.users import User

MEMBERS_SHOWN: Final = 100
"""Members that an answer shows unless ``members_limit`` asks for fewer or more."""


@dataclass(frozen=True, slots=True)
class View:
    """What is needed to show some calls."""

    users: Mapping[str, User]
    sessions: Mapping[str, Session]

    def call(self, call: Call) -> dict[str, Any]:
        """Return Stream's CallResponse."""
        return calls.response(call, self.users, self.sessions.get(call.cid))

    def members(self, members: Sequence[Member]) -> list[dict[str, Any]]:
        """Return Stream's MemberResponses."""
        return [calls.member_response(member, self.users) for member in members]

    def user(self, user_id: str, known_at: int) -> dict[str, Any]:
        """Return Stream's UserResponse; an unknown user is shown by its id alone."""
        user = self.users.get(user_id) or User(id=user_id, created_at=known_at, updated_at=known_at)
        return users.response(user)

    def state(self, caller: Caller, call: Call, members: int = MEMBERS_SHOWN) -> dict[str, Any]:
        """Return Stream's CallStateResponse for whoever asks."""
        state = {
            "call": self.call(call),
            "members": self.members(call.members[:members]),
            "own_capabilities": sorted(caller.capabilities(call)),
        }
        if caller.user_id is not None and (own := call.member(caller.user_id)) is not None:
            state["membership"] = calls.member_response(own, self.users)
        return state


async def view(
    api: Context, shown: Sequence[Call], members: int = MEMBERS_SHOWN, also: Iterable[str] = ()
) -> View:
    """Read what it takes to show these calls and their first ``members`` members."""
    sessions = await api.joins.sessions([call.cid for call in shown])
    wanted = {*also, *(user_id for call in shown for user_id in _named(call, members))}
    for session in sessions.values():
        wanted.update(participant.user_id for participant in session.participants)
    return View(await api.store.users(wanted), sessions)


def _named(call: Call, members: int) -> Iterator[str]:
    yield call.created_by
    for member in call.members[:members]:
        yield member.user_id


def members_limit(request: Request, body: Mapping[str, Any]) -> int:
    """Return how many members the answer is to show."""
    given = body.get("members_limit", request.query_params.get("members_limit"))
    return fields.number(given, "members_limit", default=MEMBERS_SHOWN, least=0, most=MEMBERS_MOST)


async def watch(
    api: Context,
    caller: Caller,
    connection_id: str | None,
    cids: list[str],
    *,
    returning: bool = False,
) -> None:
    """Let the caller's connection watch calls, where it named one."""
    if connection_id is not None and caller.user_id is not None and cids:
        await api.watches.attach(connection_id, caller.user_id, cids, returning=returning)


def watching(
    request: Request, caller: Caller, body: Mapping[str, Any], *, default: bool = True
) -> str | None:
    """Return the connection that is to watch, None when none is.

    ``connection_id`` in the query says it; ``watch``, the older spelling, can decline it. Raises
    ``NotAllowed`` for those who have no socket.
    """
    asked = fields.query_flag(request.query_params, "watch", default=default)
    wanted = fields.flag(body, "watch", default=asked)
    connection_id = request.query_params.get("connection_id")
    if not (wanted and connection_id):
        return None
    caller.check_not_anonymous("watch")
    if caller.is_server:
        raise NotAllowed("a server cannot watch: use the token of the user", reason="server_watch")
    return connection_id


def cursors(found: Found[Any]) -> dict[str, str]:
    """Return what an answer says of the pages around it."""
    around = {"next": found.next, "prev": found.prev}
    return {name: cursor for name, cursor in around.items() if cursor is not None}


async def gather_users(api: Context, named: Iterable[fields.Named]) -> dict[str, User]:
    """Create or change the users that a request names, and return them."""
    now_ns = api.clock()
    saved = await together(
        api.store.save_user(user_id, profile, now_ns) for user_id, profile in named
    )
    return {user.id: user for user in saved}
