"""Users: a server describes them, a guest becomes one."""

from __future__ import annotations

from typing import Final
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from relay import http, tokens, users
from relay.api import fields
from relay.api.context import Context, check_server
from relay.api.fields import Named
from relay.errors import BadInput, NotAllowed
from relay.events import check_user_id

GUEST_LIFE_S: Final = 24 * 3600
"""Seconds for which a guest's token is good."""

MOST_USERS: Final = 100
"""Users that one request may describe."""


async def upsert(api: Context, request: Request) -> Response:
    """Answer ``POST /api/v2/users``: all of the users are read before the first is written."""
    check_server(api.claims(request))
    body = await api.body(request)
    described = fields.needed_object(body, "users")
    if len(described) > MOST_USERS:
        raise BadInput(f"users has {len(described)} entries, at most {MOST_USERS} are possible")
    wanted = [_described(key, value) for key, value in described.items()]
    saved = [await api.store.save_user(*named, api.clock()) for named in wanted]
    content = {
        "users": {user.id: users.full(user) for user in saved},
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


async def guest(api: Context, request: Request) -> Response:
    """Answer ``POST …/guest``: a new user of its own, and a token for it.

    The id gets a random part in front, so that nobody can become somebody. The token is signed for
    the API key that the guest came with, since it will come with it again.
    """
    api_key = request.query_params.get("api_key")
    secret = tokens.secrets_of(api.keys, api_key)[0]
    if not api.guests:
        raise NotAllowed("guests are not admitted here", reason="no_guests")
    body = await api.body(request)
    named = fields.read_user(fields.needed_object(body, "user"), "user")
    user_id = check_user_id(f"guest-{uuid4().hex[:8]}-{named.user_id}", "user.id")
    profile = msgspec.structs.replace(named.profile, role="guest")
    now_ns = api.clock()
    user = await api.store.save_user(user_id, profile, now_ns)
    token = tokens.issue(secret, user_id=user.id, now=now_ns / 1e9, life_s=GUEST_LIFE_S)
    return http.answer(request, {"user": users.response(user), "access_token": token}, 201)
