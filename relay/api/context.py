"""What every endpoint of the API works with, and who is asking.

Built once by ``routes`` from explicit arguments. Permission rules that several endpoints share live
here, each raising the refusal that Stream's SDKs know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request

from relay import events, http, tokens, wire
from relay.broker import Store
from relay.doors import Door
from relay.errors import NotAllowed, Unauthenticated
from relay.forwarded import Network
from relay.hooks import Hook
from relay.http import Clock
from relay.tokens import Claims, Keys

ANONYMOUS: Final = "!anon"
"""The user id under which Stream's SDKs ask without a user."""


class Watches(Protocol):
    """The gateway's side of a watch: HTTP asks for it, an open socket gets the events."""

    async def attach(self, connection_id: str, user_id: str, cid: str) -> None:
        """Let the connection watch the call; returns when it does.

        Raises ``UnknownConnection`` when it is not an open socket of this user, ``Unavailable``
        when the process that owns it does not answer in time.
        """
        ...


class Checked(Protocol):
    """What a queue or a topic said: ``error`` None means that it is there."""

    @property
    def error(self) -> str | None:
        """What went wrong, in AWS's words."""
        ...

    @property
    def data(self) -> dict[str, str]:
        """What is known of it."""
        ...


class Receivers(Protocol):
    """The deliveries' side: it can ask whether a hook's queue or topic is there."""

    async def check(self, hook: Hook) -> Checked:
        """Ask with the hook's credentials; never raises, bounded in time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The API's collaborators and limits. ``max_bytes`` bounds a request's body.

    ``hook_networks`` may be reached by hooks although they are not public; ``aws`` tells whether
    SQS and SNS are possible.
    """

    keys: Keys
    store: Store
    door: Door
    watches: Watches
    receivers: Receivers
    clock: Clock
    custom_limit: int
    max_bytes: int
    strict_calls: bool
    guests: bool
    hook_networks: Sequence[Network]
    aws: bool

    def claims(self, request: Request) -> Claims:
        """Return who is asking; raises an ``Unauthenticated``, or ``NotAllowed`` for another user.

        An anonymous user may bring a token, which then only says for which calls it is.
        """
        api_key = request.query_params.get("api_key")
        tokens.secrets_of(self.keys, api_key)
        kind = request.headers.get("stream-auth-type", "jwt").lower()
        token = request.headers.get("authorization", "")
        if kind == "anonymous":
            return self._anonymous(api_key, token)
        if kind != "jwt":
            raise Unauthenticated("stream-auth-type must be 'jwt' or 'anonymous'")
        if not token:
            raise Unauthenticated("Authorization is missing: send the token, without 'Bearer'")
        claims = tokens.verify(token, api_key, self.keys, self.clock() / 1e9)
        if claims.user_id is not None:
            check_same_user(claims.user_id, request.query_params.get("user_id"), "user_id")
        return claims

    def _anonymous(self, api_key: str | None, token: str) -> Claims:
        if not token:
            return Claims(api_key=api_key or "", user_id=ANONYMOUS)
        claims = tokens.verify(token, api_key, self.keys, self.clock() / 1e9)
        return msgspec.structs.replace(claims, user_id=ANONYMOUS, role=None)

    async def body(self, request: Request) -> dict[str, Any]:
        """Return the request's JSON object, an empty one when there is no body."""
        raw = await http.read_body(request, self.max_bytes)
        return wire.decode_object(raw) if raw else {}

    def cid(self, request: Request, claims: Claims) -> str:
        """Return the call in the path; raises ``BadInput``, or ``NotAllowed`` for this token."""
        kind, call_id = request.path_params["type"], request.path_params["id"]
        cid = events.check_cid(f"{kind}:{call_id}", "the call in the path")
        claims.check_call(cid)
        return cid


def check_same_user(own: str, given: object, field: str) -> None:
    """Raise ``NotAllowed`` when a user's request names another user."""
    if given is not None and given != own:
        raise NotAllowed(
            f"{field} names another user than the token: a user acts as itself",
            reason="other_user",
        )


def check_server(claims: Claims) -> None:
    """Raise ``NotAllowed`` unless a server asks."""
    if not claims.is_server:
        raise NotAllowed("this needs a server's token, one without user_id", reason="server_only")


def is_anonymous(claims: Claims) -> bool:
    """Tell whether a user asks who did not log in: it may read, and nothing else."""
    return claims.user_id == ANONYMOUS


def check_not_anonymous(claims: Claims, what: str) -> None:
    """Raise ``NotAllowed`` when an anonymous user wants ``what``."""
    if is_anonymous(claims):
        raise NotAllowed(f"an anonymous user cannot {what}: log in first", reason="anonymous")
