"""Who may be in a call: block, unblock, kick, and what single users may do in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from relay import http, permissions
from relay.api import fields, views
from relay.api.calls import changed
from relay.api.context import Caller, Context, check_same_user
from relay.calls import Call, Permissions
from relay.errors import BadInput
from relay.events import check_user_id

MOST_BLOCKED: Final = 1000
"""Users that a call may have blocked."""


async def block(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/block``: the user is told, then hears nothing more of the call."""
    cid = api.cid(request, caller)
    user_id = fields.needed_user_id(await api.body(request))
    caller.check_may("block-users", await api.call(cid))
    await _block(api, caller, cid, user_id)
    return http.answer(request, {}, 201)


async def _block(api: Context, caller: Caller, cid: str, user_id: str) -> None:
    now_ns = api.clock()
    call = await changed(api, cid, lambda call: _with_blocked(call, user_id, now_ns))
    told = {"user": user_id} | (
        {} if caller.user_id is None else {"blocked_by_user": caller.user_id}
    )
    await _tell(api, call, "call.blocked_user", told)
    await api.watches.expel(user_id, cid)


def _with_blocked(call: Call, user_id: str, now_ns: int) -> Call:
    if user_id in call.blocked:
        return call
    if user_id == call.created_by:
        raise BadInput("user_id is the call's creator, who cannot be blocked")
    if len(call.blocked) >= MOST_BLOCKED:
        raise BadInput(f"user_id: the call has blocked {MOST_BLOCKED} users, that is the limit")
    return msgspec.structs.replace(call, blocked=(*call.blocked, user_id), updated_at=now_ns)


async def unblock(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/unblock``."""
    cid = api.cid(request, caller)
    user_id = fields.needed_user_id(await api.body(request))
    caller.check_may("block-users", await api.call(cid))
    now_ns = api.clock()

    def change(call: Call) -> Call:
        if user_id not in call.blocked:
            return call
        left = tuple(blocked for blocked in call.blocked if blocked != user_id)
        return msgspec.structs.replace(call, blocked=left, updated_at=now_ns)

    call = await changed(api, cid, change)
    await _tell(api, call, "call.unblocked_user", {"user": user_id})
    return http.answer(request, {}, 201)


async def kick(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/kick``: the user is told and ceases to watch; ``block`` keeps it out."""
    cid = api.cid(request, caller)
    body = await api.body(request)
    user_id = fields.needed_user_id(body)
    blocks = fields.flag(body, "block", default=False)
    kicked_by = fields.named_user(body, "kicked_by_id", "kicked_by")
    call = await api.call(cid)
    caller.check_may("kick-user", call)
    if blocks:
        caller.check_may("block-users", call)
        _with_blocked(call, user_id, 0)  # refused before anybody is told
    kicker = caller.user_id
    if kicker is not None:
        check_same_user(kicker, kicked_by and kicked_by.user_id, "kicked_by_id")
    elif kicked_by is not None:
        await views.gather_users(api, [kicked_by])
        kicker = kicked_by.user_id
    told = {"user": user_id} | ({} if kicker is None else {"kicked_by_user": kicker})
    await _tell(api, call, "call.kicked_user", told)
    if blocks:
        await _block(api, caller, cid, user_id)
    else:
        await api.watches.expel(user_id, cid)
    return http.answer(request, {}, 201)


async def _tell(api: Context, call: Call, kind: str, named: Mapping[str, str]) -> None:
    """Announce something about users, given by their ids; it reaches them wherever they are."""
    users = await api.store.users(set(named.values()))
    seen = views.View(users, {})
    told = {name: seen.user(user_id, call.created_at) for name, user_id in named.items()}
    await api.announcer.announce(call.cid, kind, told, members=[named["user"]])


async def permit(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/user_permissions``: grant a user capabilities in a call, or revoke them."""
    cid = api.cid(request, caller)
    body = await api.body(request)
    user_id = fields.needed_user_id(body)
    granted = _capabilities(body, "grant_permissions")
    revoked = _capabilities(body, "revoke_permissions")
    if both := granted & revoked:
        raise BadInput(f"revoke_permissions and grant_permissions both name {min(both)}")
    caller.check_may("update-call-permissions", await api.call(cid))
    now_ns = api.clock()
    call = await changed(
        api, cid, lambda call: _with_permissions(call, user_id, granted, revoked, now_ns)
    )
    user = await api.store.user(user_id)
    own = permissions.of(call, user_id, [user.role if user else "user"])
    seen = views.View({user.id: user} if user else {}, {})
    await api.announcer.announce(
        cid,
        "call.permissions_updated",
        {"user": seen.user(user_id, call.created_at), "own_capabilities": sorted(own)},
        members=[user_id],
    )
    if "read-call" not in own:
        await api.watches.expel(user_id, cid)
    return http.answer(request, {}, 201)


def _capabilities(body: Mapping[str, Any], name: str) -> set[str]:
    given = fields.items(body, name, most=len(permissions.ALL))
    for index, value in enumerate(given):
        if not isinstance(value, str) or value not in permissions.ALL:
            raise BadInput(
                f"{name}[{index}] must be a capability such as 'update-call' or 'send-audio'"
            )
    return set(given)


def _with_permissions(
    call: Call, user_id: str, granted: set[str], revoked: set[str], now_ns: int
) -> Call:
    known = call.permissions.get(user_id, Permissions())
    now = Permissions(
        granted=tuple(sorted((set(known.granted) | granted) - revoked)),
        revoked=tuple(sorted((set(known.revoked) | revoked) - granted)),
    )
    if now == known:
        return call
    everyone = {**call.permissions, user_id: now}
    if len(everyone) > MOST_BLOCKED:
        raise BadInput(f"user_id: {MOST_BLOCKED} users have permissions of their own already")
    return msgspec.structs.replace(call, permissions=everyone, updated_at=now_ns)


async def request_permission(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/request_permission``: ask those who can grant it."""
    cid = api.cid(request, caller)
    body = await api.body(request)
    wanted = sorted(_capabilities(body, "permissions"))
    if not wanted:
        raise BadInput("permissions is missing: list at least one capability")
    call = await api.call(cid)
    caller.check_may("join-call", call)
    user_id = check_user_id(caller.user_id)
    user = await api.user(caller)
    seen = views.View({user_id: user}, {})
    await api.announcer.announce(
        cid,
        "call.permission_request",
        {"user": seen.user(user_id, call.created_at), "permissions": wanted},
    )
    return http.answer(request, {}, 201)
