"""Calls: read one, create one by asking for it, and watch it on the way.

``connection_id`` in the query is what makes a request watch: that is how Stream's SDKs say it.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from relay import calls, events, http
from relay.api import fields
from relay.api.context import Context, check_not_anonymous, check_same_user, is_anonymous
from relay.api.fields import Named
from relay.calls import Call
from relay.errors import BadInput, NotAllowed, NotFound
from relay.tokens import Claims
from relay.users import Profile, User

_FLAGS: Final = {"true": True, "false": False}


async def get(api: Context, request: Request) -> Response:
    """Answer ``GET …/call/{type}/{id}``."""
    claims = api.claims(request)
    cid = api.cid(request, claims)
    connection_id = _watching(request, claims, {})
    call = await api.store.call(cid)
    if call is None:
        raise NotFound(f"the call {cid} was never created", reason="no_such_call")
    await _attach(api, claims, cid, connection_id)
    return http.answer(request, await _state(api, claims, call))


async def get_or_create(api: Context, request: Request) -> Response:
    """Answer ``POST …/call/{type}/{id}``: a call that exists is returned as it is."""
    claims = api.claims(request)
    check_not_anonymous(claims, "create calls")
    cid = api.cid(request, claims)
    body = await api.body(request)
    data = fields.optional_object(body, "data") or {}
    custom = fields.optional_object(data, "custom", "data.") or {}
    events.check_custom(custom, api.custom_limit, "data.custom")
    connection_id = _watching(request, claims, body)
    creator = _creator(claims, data)
    now_ns = api.clock()
    await api.store.save_user(creator.user_id, creator.profile, now_ns)
    call, created = await api.store.create_call(
        Call(
            cid=cid,
            created_by=creator.user_id,
            created_at=now_ns,
            updated_at=now_ns,
            custom=custom,
        )
    )
    await _attach(api, claims, cid, connection_id)
    return http.answer(request, {"created": created, **await _state(api, claims, call)}, 201)


def _creator(claims: Claims, data: dict[str, Any]) -> Named:
    named = fields.named_user(data, "created_by_id", "created_by", "data.")
    if claims.user_id is None:
        if named is None:
            raise BadInput(
                "data.created_by_id or data.created_by is missing: a server says who creates"
            )
        return named
    check_same_user(claims.user_id, named and named.user_id, "data.created_by")
    return Named(claims.user_id, Profile())


def _watching(request: Request, claims: Claims, body: dict[str, Any]) -> str | None:
    """Return the connection that is to watch the call, None when none is."""
    asked = request.query_params.get("watch")
    if asked is not None and asked not in _FLAGS:
        raise BadInput("watch must be true or false")
    wanted = fields.flag(body, "watch", default=True) and _FLAGS.get(asked or "true", True)
    connection_id = request.query_params.get("connection_id")
    if not (wanted and connection_id):
        return None
    check_not_anonymous(claims, "watch")
    if claims.is_server:
        raise NotAllowed("a server cannot watch: use the token of the user", reason="server_watch")
    return connection_id


async def _attach(api: Context, claims: Claims, cid: str, connection_id: str | None) -> None:
    if connection_id is not None and claims.user_id is not None:
        await api.watches.attach(connection_id, claims.user_id, [cid])


async def _state(api: Context, claims: Claims, call: Call) -> dict[str, Any]:
    """Return what an answer says of a call. The relay keeps no members: anyone may watch."""
    creator = await api.store.user(call.created_by)
    if creator is None:
        creator = User(id=call.created_by, created_at=call.created_at, updated_at=call.created_at)
    return {
        "call": calls.response(call, creator),
        "members": [],
        "own_capabilities": ["read-call"] if is_anonymous(claims) else list(calls.CAPABILITIES),
    }
