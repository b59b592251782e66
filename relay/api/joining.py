"""Join a call, and answer one that rings. Media is somebody else's; that one has joined is ours."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from relay import http, media
from relay.api import calls, fields, views
from relay.api.context import Caller, Context, no_such_call
from relay.calls import Call
from relay.errors import BadInput, NotAllowed, NotServed
from relay.users import User

LONGEST_REASON: Final = 255


async def join(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/join``: the caller watches, is announced, and gets the media server's key.

    Without a media server the first two still happen, and the answer says that there is none.
    """
    cid = api.cid(request, caller)
    body = await api.body(request)
    connection_id = views.watching(request, caller, body)
    members = views.members_limit(request, body)
    caller.check_not_anonymous("join calls")
    if caller.is_server or connection_id is None:
        raise BadInput("connection_id is missing: whoever joins has an open socket", reason="no_id")
    call, created = await _find(api, caller, cid, body)
    user = await api.user(caller)
    _check_may_join(caller, call)
    await views.watch(api, caller, connection_id, [cid])
    await api.joins.join(cid, user, _role(caller, call, user))
    call = await _still_open(api, caller, cid)
    if api.media is None:
        raise NotServed(
            "you have joined and watch the call, but no media server is configured: "
            "name one in RELAY_MEDIA, or use get instead of join",
            reason="no_media",
        )
    content = {
        "created": created,
        **await calls.state(api, caller, call, members),
        **media.credentials(api.media, user.id, cid, api.clock() / 1e9),
    }
    return http.answer(request, content, 201)


async def _find(api: Context, caller: Caller, cid: str, body: dict[str, Any]) -> tuple[Call, bool]:
    if fields.flag(body, "create", default=False):
        return await calls.ensure(api, caller, cid, body)
    return await api.call(cid), False


def _check_may_join(caller: Caller, call: Call) -> None:
    caller.check_may("join-call", call)
    if call.ended_at is not None:
        caller.check_may("join-ended-call", call)
    if call.backstage:
        caller.check_may("join-backstage", call)


async def _still_open(api: Context, caller: Caller, cid: str) -> Call:
    """Return the call that the caller has just joined, as it is now.

    Whoever ends or deletes a call writes that down before its session is ended. So either that one
    finds the session that began meanwhile, or it is found here that the call is over.
    """
    call = await api.store.call(cid)
    ended = call is not None and call.ended_at is not None
    if call is None or (ended and "join-ended-call" not in caller.capabilities(call)):
        await api.joins.end(cid)
    if call is None:
        raise no_such_call(cid)
    if caller.user_id is not None and caller.user_id in call.blocked:
        await api.watches.expel(caller.user_id, cid)  # then the seat is left, too
    caller.check_may("join-call", call)
    if ended:
        caller.check_may("join-ended-call", call)
    return call


def _role(caller: Caller, call: Call, user: User) -> str:
    """Return the role that a participant is shown with: the token's, the member's, the user's."""
    member = call.member(user.id)
    return caller.claims.role or (user.role if member is None else member.role)


async def ring(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/ring``: call every member."""
    cid = api.cid(request, caller)
    call = await api.call(cid)
    caller.check_may("join-call", call)
    await calls.announce_ring(api, caller, call, "call.ring")
    return http.answer(request, {"members_ids": [member.user_id for member in call.members]}, 201)


async def accept(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/accept``: the members learn that this one comes."""
    cid = api.cid(request, caller)
    await _answer(api, caller, await api.call(cid), "call.accepted")
    return http.answer(request, {}, 201)


async def reject(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/reject``: the members learn that this one does not come, and why."""
    cid = api.cid(request, caller)
    reason = fields.text(await api.body(request), "reason", most=LONGEST_REASON)
    said = {"reason": reason} if reason else {}
    await _answer(api, caller, await api.call(cid), "call.rejected", **said)
    return http.answer(request, {}, 201)


async def _answer(api: Context, caller: Caller, call: Call, kind: str, **said: str) -> None:
    caller.check_may("join-call", call)
    if caller.user_id is None:
        raise NotAllowed("a server cannot answer a call: use the token of the user")
    user = await api.user(caller)
    seen = await views.view(api, [call], 0, also=[user.id])
    content = {"call": seen.call(call), "user": seen.user(user.id, call.created_at), **said}
    await api.announcer.announce(call.cid, kind, content, members=call.audience)
