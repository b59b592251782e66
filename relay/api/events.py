"""The events API: a custom event to everyone who watches a call.

A server's token sends in the name of any user, whom it must name; a user's token sends as that user
only. The request's own id makes a repeat harmless: the same id is answered with the first position.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from relay import events, http, users
from relay.api import fields
from relay.api.context import Context, check_not_anonymous, check_same_user
from relay.api.fields import Named
from relay.errors import BadInput, NotFound
from relay.tokens import Claims
from relay.users import Profile


class _Identity(NamedTuple):
    event_id: str
    minted: bool


async def send(api: Context, request: Request) -> Response:
    """Answer ``POST …/call/{type}/{id}/event``."""
    claims = api.claims(request)
    check_not_anonymous(claims, "send events")
    cid = api.cid(request, claims)
    body = await api.body(request)
    custom = events.check_custom(body.get("custom"), api.custom_limit)
    volatile = fields.flag(body, "volatile", default=False)
    identity = _identity(request, body)
    named = _sender(claims, body)
    if api.strict_calls and await api.store.call(cid) is None:
        raise NotFound(f"the call {cid} was never created", reason="no_such_call")
    user = await api.store.save_user(named.user_id, named.profile, api.clock())
    event = events.custom_event(
        cid=cid,
        custom=custom,
        user=users.encoded(user),
        event_id=identity.event_id,
        now_ns=api.clock(),
        sender=f"server:{claims.api_key}" if claims.is_server else f"user:{user.id}",
        minted=identity.minted,
        volatile=volatile,
    )
    publication = await http.publish(request, api.door, event)
    return http.answer(request, http.position_fields(publication), 201)


def _sender(claims: Claims, body: dict[str, Any]) -> Named:
    named = fields.named_user(body, "user_id", "user")
    if claims.user_id is None:
        if named is None:
            raise BadInput("user_id or user is missing: a server says in whose name it sends")
        return named
    check_same_user(claims.user_id, named and named.user_id, "the body")
    return Named(claims.user_id, Profile())


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
