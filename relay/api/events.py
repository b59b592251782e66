"""The events API: custom events and reactions to everyone who watches a call.

A server's token sends in the name of any user, whom it must name; a user's token sends as that user
only. The request's own id makes a repeat harmless: the same id is answered with the first position.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from relay import events, http, users
from relay.api import fields
from relay.api.context import Caller, Context, check_same_user, no_such_call
from relay.api.fields import Named
from relay.errors import BadInput, NotAllowed
from relay.users import User

LONGEST_REACTION: Final = 128
"""Characters of a reaction's ``type`` and of its ``emoji_code``."""


class _Identity(NamedTuple):
    event_id: str
    minted: bool


async def send(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/call/{type}/{id}/event``."""
    caller.check_not_anonymous("send events")
    cid = api.cid(request, caller)
    body = await api.body(request)
    custom = events.check_custom(body.get("custom"), api.custom_limit)
    volatile = fields.flag(body, "volatile", default=False)
    identity = _identity(request, body)
    named = _sender(caller, body)
    call = await api.store.call(cid)
    if call is None and api.strict_calls:
        raise no_such_call(cid)
    if call is not None:
        caller.check_may("read-call", call)
    user = await _user(api, caller, named)
    event = events.custom_event(
        cid=cid,
        custom=custom,
        user=users.encoded(user),
        event_id=identity.event_id,
        now_ns=api.clock(),
        sender=f"server:{caller.claims.api_key}" if caller.is_server else f"user:{user.id}",
        minted=identity.minted,
        volatile=volatile,
    )
    publication = await http.publish(request, api.door, event)
    return http.answer(request, http.position_fields(publication), 201)


async def react(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST …/call/{type}/{id}/reaction``: a client's own, as in Stream's API."""
    caller.check_not_anonymous("react")
    cid = api.cid(request, caller)
    body = await api.body(request)
    reaction: dict[str, Any] = {"type": fields.needed_text(body, "type", most=LONGEST_REACTION)}
    if emoji := fields.text(body, "emoji_code", most=LONGEST_REACTION):
        reaction["emoji_code"] = emoji
    if (custom := fields.optional_object(body, "custom")) is not None:
        events.check_custom(custom, api.custom_limit)
        reaction["custom"] = custom
    if caller.is_server:
        raise NotAllowed("a server cannot react: use the token of the user", reason="server_react")
    call = await api.store.call(cid)
    if call is None and api.strict_calls:
        raise no_such_call(cid)
    caller.check_may("create-reaction", call)
    reaction["user"] = users.response(await api.user(caller), online=True)
    await api.announcer.announce(cid, "call.reaction_new", {"reaction": reaction})
    return http.answer(request, {"reaction": reaction}, 201)


def _sender(caller: Caller, body: dict[str, Any]) -> Named | None:
    """Return whom a server names; None where a user sends as itself."""
    named = fields.named_user(body, "user_id", "user")
    if caller.user_id is None and named is None:
        raise BadInput("user_id or user is missing: a server says in whose name it sends")
    if caller.user_id is not None:
        check_same_user(caller.user_id, named and named.user_id, "the body")
        return None
    return named


async def _user(api: Context, caller: Caller, named: Named | None) -> User:
    if named is None:
        return await api.user(caller)
    return await api.store.save_user(named.user_id, named.profile, api.clock())


def _identity(request: Request, body: dict[str, Any]) -> _Identity:
    """Return the id that the sender gave, in the order of how deliberate it is, or a new one."""
    given = {
        "event_id": body.get("event_id"),
        "Idempotency-Key": request.headers.get("idempotency-key"),
        "x-client-request-id": request.headers.get("x-client-request-id"),
    }
    for name, value in given.items():
        if value is not None:
            return _Identity(events.check_event_id(value, name), minted=False)
    return _Identity(uuid4().hex, minted=True)
