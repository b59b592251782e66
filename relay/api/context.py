"""What every endpoint of the API works with, and who is asking.

Built once by ``routes`` from explicit arguments. Permission rules that several endpoints share live
here, each raising the refusal that Stream's SDKs know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from starlette.requests import Request

from relay import events, http, permissions, tokens, wire
from relay.announcer import is_recent
from relay.api.limits import Meter
from relay.broker import Store
from relay.calls import Call, Session
from relay.doors import Door
from relay.errors import NotAllowed, NotFound, Unauthenticated
from relay.events import Publication
from relay.forwarded import Network
from relay.hooks import Hook
from relay.http import Clock
from relay.media import Media
from relay.tokens import Claims, Keys
from relay.users import Profile, User

ANONYMOUS: Final = "!anon"
"""The user id under which Stream's SDKs ask without a user."""


class Watches(Protocol):
    """The gateway's side: HTTP asks, open sockets get the events, whichever process has them."""

    async def attach(
        self, connection_id: str, user_id: str, cids: Sequence[str], *, returning: bool = False
    ) -> None:
        """Let the connection watch the calls; returns when it does.

        ``returning``: it gets first what the user's last connection missed of them.

        Raises ``UnknownConnection`` when it is not an open socket of this user, ``Unavailable``
        when the process that owns it does not answer in time.
        """
        ...

    async def expel(self, user_id: str, cid: str) -> None:
        """Let every socket of the user cease to watch the call."""
        ...

    async def revoke(self, user_id: str | None, before_s: float) -> None:
        """Close the user's (None = everybody's) sockets whose token was issued earlier."""
        ...


class Announces(Protocol):
    """How news of a call reaches its watchers and its members."""

    async def announce(
        self,
        cid: str,
        kind: str,
        fields: Mapping[str, Any],
        *,
        members: Collection[str] = (),
        event_id: str | None = None,
    ) -> Publication:
        """Publish an event of the call, also to those members' sockets that do not watch it.

        Announced again under the same ``event_id``, it is a duplicate.
        """
        ...

    async def tell(self, user_ids: Collection[str], kind: str, fields: Mapping[str, Any]) -> None:
        """Send an event that is about no call to the sockets of some users."""
        ...

    def has_announced(self, cid: str, event_id: str) -> bool:
        """Tell whether that is known to be announced, which spares announcing it again."""
        ...


class Joins(Protocol):
    """Who has joined which call."""

    async def join(self, cid: str, user: User, role: str) -> Session:
        """Let a user join whose socket watches the call, and announce it."""
        ...

    async def sessions(self, cids: Collection[str]) -> dict[str, Session]:
        """Return the running sessions of calls."""
        ...

    async def end(self, cid: str) -> None:
        """End a call's session, if one is running."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``user`` is None for servers, for anonymous users, and for users yet unknown."""

    claims: Claims
    user: User | None

    @property
    def user_id(self) -> str | None:
        """The user who asks, None when a server does."""
        return self.claims.user_id

    @property
    def is_server(self) -> bool:
        """Whether a backend asks, which may act as any user."""
        return self.claims.is_server

    @property
    def is_anonymous(self) -> bool:
        """Whether a user asks who did not log in: it may read, and nothing else."""
        return self.claims.user_id == ANONYMOUS

    @property
    def role(self) -> str:
        """The role that counts for whoever asks: the token's, else the user's."""
        if self.is_anonymous:
            return "anonymous"
        return self.claims.role or ("user" if self.user is None else self.user.role)

    def capabilities(self, call: Call | None) -> frozenset[str]:
        """Return what the caller may do in a call."""
        if self.claims.user_id is None:
            return permissions.BASIC | permissions.MANAGING
        if self.is_anonymous:
            return permissions.of(call, ANONYMOUS, [self.role]) & permissions.GRANTS["anonymous"]
        roles = [self.claims.role, None if self.user is None else self.user.role]
        return permissions.of(call, self.claims.user_id, roles)

    def check_may(self, capability: str, call: Call | None) -> None:
        """Raise ``NotAllowed`` unless the caller has a capability in a call."""
        if capability in self.capabilities(call):
            return
        if call is not None and self.user_id in call.blocked:
            raise NotAllowed(f"this user is blocked in the call {call.cid}", reason="blocked")
        self.check_not_anonymous(f"do that, it needs {capability}")
        raise NotAllowed(
            f"this needs the capability {capability}, which the user does not have in this call",
            reason="no_capability",
        )

    def check_server(self) -> None:
        """Raise ``NotAllowed`` unless a server asks."""
        if not self.is_server:
            raise NotAllowed(
                "this needs a server's token, one without user_id", reason="server_only"
            )

    def check_not_anonymous(self, what: str) -> None:
        """Raise ``NotAllowed`` when an anonymous user wants ``what``."""
        if self.is_anonymous:
            raise NotAllowed(f"an anonymous user cannot {what}: log in first", reason="anonymous")


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
    SQS and SNS are possible. ``repeats_s`` is how long a repeat of a request is recognised.
    """

    keys: Keys
    store: Store
    door: Door
    watches: Watches
    announcer: Announces
    joins: Joins
    meter: Meter
    receivers: Receivers
    clock: Clock
    media: Media | None
    custom_limit: int
    max_bytes: int
    strict_calls: bool
    guests: bool
    hook_networks: Sequence[Network]
    aws: bool
    repeats_s: float

    # -- who is asking ----------------------------------------------------------------------------

    async def caller(self, request: Request, operation: str) -> Caller:
        """Return who is asking and count the request.

        Raises an ``Unauthenticated``, ``NotAllowed`` for another user, or ``RateLimited``.
        """
        claims = self._claims(request)
        if claims.user_id is None or claims.user_id == ANONYMOUS:
            await self.meter.spend(request, claims, operation)
            return Caller(claims, None)
        user, _ = await asyncio.gather(
            self.store.user(claims.user_id), self.meter.spend(request, claims, operation)
        )
        if user is not None:
            claims.check_revoked(user.revoked_before)
        return Caller(claims, user)

    def _claims(self, request: Request) -> Claims:
        """Return what the token says; an anonymous user's only says for which calls it is."""
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

    async def user(self, caller: Caller) -> User:
        """Return the user who asks, created if nobody has heard of it yet."""
        if caller.user is not None:
            return caller.user
        assert caller.user_id is not None, "a server is no user"
        return await self.store.save_user(caller.user_id, Profile(), self.clock())

    def is_recent(self, at_ns: int) -> bool:
        """Tell whether a request for what was done then may repeat one that was cut off."""
        return is_recent(at_ns, self.clock(), self.repeats_s)

    def may_owe(self, at_ns: int, cid: str, event_id: str) -> bool:
        """Tell whether what was done then may still have to be announced, under that id."""
        return self.is_recent(at_ns) and not self.announcer.has_announced(cid, event_id)

    # -- what is asked ----------------------------------------------------------------------------

    async def body(self, request: Request) -> dict[str, Any]:
        """Return the request's JSON object, an empty one when there is no body."""
        raw = await http.read_body(request, self.max_bytes)
        return wire.decode_object(raw) if raw else {}

    def cid(self, request: Request, caller: Caller) -> str:
        """Return the call in the path; raises ``BadInput``, or ``NotAllowed`` for this token."""
        kind, call_id = request.path_params["type"], request.path_params["id"]
        cid = events.check_cid(f"{kind}:{call_id}", "the call in the path")
        caller.claims.check_call(cid)
        return cid

    async def call(self, cid: str) -> Call:
        """Return a call; raises ``NotFound`` when it was never created."""
        if (call := await self.store.call(cid)) is None:
            raise no_such_call(cid)
        return call


def no_such_call(cid: str) -> NotFound:
    """Return the error for a call that was never created, or was deleted."""
    return NotFound(f"the call {cid} was never created", reason="no_such_call")


def check_same_user(own: str, given: object, field: str) -> None:
    """Raise ``NotAllowed`` when a user's request names another user."""
    if given is not None and given != own:
        raise NotAllowed(
            f"{field} names another user than the token: a user acts as itself",
            reason="other_user",
        )
