"""Users: a server describes, changes and finds them, a guest becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from relay import filters, http, tokens, users, wire
from relay.api import fields, views
from relay.api.context import Caller, Context
from relay.api.fields import Named
from relay.errors import BadInput, NotAllowed, NotFound
from relay.events import check_user_id
from relay.tasks import together
from relay.users import Profile, User

GUEST_LIFE_S: Final = 24 * 3600
"""Seconds for which a guest's token is good."""

LONGEST_NAME: Final = 255
"""Characters of the name of a field."""

MOST_USERS: Final = 100
"""Users that one request may describe."""

_SORT: Final = (filters.Sort("created_at", ascending=False),)


async def upsert(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST /api/v2/users``: all of the users are read before the first is written."""
    caller.check_server()
    body = await api.body(request)
    described = fields.needed_object(body, "users")
    if len(described) > MOST_USERS:
        raise BadInput(f"users has {len(described)} entries, at most {MOST_USERS} are possible")
    wanted = [_described(key, value) for key, value in described.items()]
    before = await api.store.users([named.user_id for named in wanted])
    saved = await views.gather_users(api, wanted)
    await _announce(api, before, saved)
    content = {
        "users": {user_id: users.full(user) for user_id, user in saved.items()},
        "membership_deletion_task_id": "",
    }
    return http.answer(request, content, 201)


def _described(key: str, value: object) -> Named:
    path = f"users.{key[:64]}"
    if not isinstance(value, dict):
        raise BadInput(f"{path} must be a JSON object")
    named = fields.read_user(value, path)
    if named.user_id != key:
        raise BadInput(f"{path}.id differs from its key")
    return named


async def _announce(api: Context, before: Mapping[str, User], now: Mapping[str, User]) -> None:
    """Tell the own sockets of users who have changed; those of one do not wait for another's."""

    async def tell(user: User) -> None:
        if before.get(user.id, user) != user:
            news = {"user": users.response(user), "custom": user.custom}
            await api.announcer.tell([user.id], "user.updated", news)

    await together(map(tell, now.values()))


# -- partial updates ----------------------------------------------------------------------------


_REVOKE: Final = "revoke_tokens_issued_before"


class _Patch(NamedTuple):
    """What a request changes of one user."""

    user_id: str
    said: dict[str, Any]
    unset: list[str]

    @property
    def revokes(self) -> bool:
        """Whether older tokens are to be worthless."""
        return self.said.get(_REVOKE) is not None


async def patch(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``PATCH /api/v2/users``: ``set`` and ``unset`` of single fields, ``custom`` included.

    ``revoke_tokens_issued_before`` makes older tokens worthless at once, on open sockets too.
    """
    caller.check_server()
    body = await api.body(request)
    given = fields.items(body, "users", most=MOST_USERS)
    patches = [_read_patch(value, f"users[{index}]") for index, value in enumerate(given)]
    known = await api.store.users([patch.user_id for patch in patches])
    for one in patches:
        if one.user_id not in known:
            raise NotFound(f"there is no user {one.user_id}", reason="no_such_user")
        _profile(one, known[one.user_id])  # one that is refused has nobody changed
    now_ns = api.clock()
    changed = await together(
        api.store.change_user(one.user_id, partial(_profile, one), now_ns) for one in patches
    )
    saved = {user.id: user for user in changed if user is not None}
    await _announce(api, known, saved)
    # Also when nothing has changed: the request may repeat one that was cut off.
    revoked = [saved[one.user_id] for one in patches if one.revokes and one.user_id in saved]
    await together(api.watches.revoke(user.id, user.revoked_before / 1e9) for user in revoked)
    content = {
        "users": {user_id: users.full(user) for user_id, user in saved.items()},
        "membership_deletion_task_id": "",
    }
    return http.answer(request, content)


def _read_patch(value: object, path: str) -> _Patch:
    if not isinstance(value, dict):
        raise BadInput(f"{path} must be a JSON object with id, set and unset")
    user_id = check_user_id(value.get("id"), f"{path}.id")
    said = fields.optional_object(value, "set", f"{path}.") or {}
    unset = fields.items(value, "unset", most=MOST_USERS, path=f"{path}.")
    for index, name in enumerate(unset):
        if not isinstance(name, str) or name in _LASTING or len(name) > LONGEST_NAME:
            raise BadInput(f"{path}.unset[{index}] must be the name of a field that can be absent")
    for name in _LASTING & said.keys():
        raise BadInput(f"{path}.set.{name} cannot be changed")
    return _Patch(user_id, said, unset)


_LASTING: Final = frozenset({"id", "created_at", "updated_at"})
_EMPTY: Final[dict[str, Any]] = {
    "name": "", "image": "", "language": "", "role": "user", "teams": [], "invisible": False,
}  # fmt: skip
"""What the fields of a user are when nobody says anything about them."""


def _profile(one: _Patch, user: User) -> Profile:
    """Return the profile after a patch. What is no field of a user is one of its ``custom``."""
    said = {**one.said, **{name: value for name, value in _EMPTY.items() if name in one.unset}}
    revoked = said.pop(_REVOKE, None)
    own = {name: said.pop(name) for name in (*_EMPTY, "custom") if name in said}
    custom = _custom(own.get("custom", user.custom), said, one.unset)
    path = f"users.{one.user_id[:64]}.set"
    profile = fields.read_user({**own, "id": one.user_id, "custom": custom}, path).profile
    if revoked is None:
        return profile
    before = wire.parse_time(revoked, f"{path}.{_REVOKE}")
    return msgspec.structs.replace(profile, revoked_before=before)


def _custom(custom: object, more: Mapping[str, Any], unset: list[str]) -> object:
    if not isinstance(custom, dict):
        return custom
    gone = {name.removeprefix("custom.") for name in unset}
    return {name: value for name, value in {**custom, **more}.items() if name not in gone}


# -- finding ------------------------------------------------------------------------------------


async def query(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``GET /api/v2/users?payload={…}``: a server, or a user who looks for others."""
    caller.check_not_anonymous("look for users")
    payload = request.query_params.get("payload")
    body = wire.decode_object(payload, "payload") if payload else {}
    wanted = filters.read_query(body, filters.USERS, default_sort=_SORT)
    found = await api.store.query_users(wanted)
    content: dict[str, Any] = {"users": [users.full(user) for user in found.items]}
    return http.answer(request, content | views.cursors(found))


# -- guests -------------------------------------------------------------------------------------


async def guest(api: Context, request: Request) -> Response:
    """Answer ``POST …/guest``: a new user of its own, and a token for it.

    The id gets a random part in front, so that nobody can become somebody. The token is signed for
    the API key that the guest came with, since it will come with it again.
    """
    api_key = request.query_params.get("api_key")
    secret = tokens.secrets_of(api.keys, api_key)[0]
    if not api.guests:
        raise NotAllowed("guests are not admitted here", reason="no_guests")
    await api.meter.spend_as(request, f"!{_address(request)}", "CreateGuest")
    body = await api.body(request)
    named = fields.read_user(fields.needed_object(body, "user"), "user")
    user_id = check_user_id(f"guest-{uuid4().hex[:8]}-{named.user_id}", "user.id")
    # Its teams are for a server to say.
    profile = msgspec.structs.replace(named.profile, role="guest", teams=None)
    now_ns = api.clock()
    user = await api.store.save_user(user_id, profile, now_ns)
    token = tokens.issue(secret, user_id=user.id, now=now_ns / 1e9, life_s=GUEST_LIFE_S)
    return http.answer(request, {"user": users.response(user), "access_token": token}, 201)


def _address(request: Request) -> str:
    return "" if request.client is None else request.client.host
