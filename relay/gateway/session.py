"""The conversation on one socket: text in, actions out.

Pure: no I/O, no clock, no randomness; time and fresh ids come in. The connection performs the
actions and reports back what came of them. The protocol is written down in docs/protocol.md.

    FIRST_FRAME ──token──► LOGGING_IN ──welcomed──► OPEN ──► ENDED
         └────────────────── refused, too late, flood ────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import NoneType
from typing import Any, Final, TypeAlias

import msgspec

from relay import events, tokens, users, wire
from relay.errors import (
    BadInput,
    Close,
    NotAllowed,
    RateLimited,
    Refused,
    Unauthenticated,
)
from relay.events import Event, Position
from relay.gateway import frames
from relay.tokens import Claims, Keys
from relay.users import Profile, User

HEARTBEAT_S: Final = 20.0
"""Seconds between unasked health checks: below the 25 s after which Stream's clients send one."""

ARRAY_LIMIT: Final = 16
"""Messages in one frame. Stream's JavaScript client wraps its one health check in an array."""

_COMMAND_IDS: Final = (int, str, NoneType)
_MAX_OFFSET: Final = 2**53
_NS: Final = 1_000_000_000


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What all sessions of a process go by. ``new_id`` mints ids of events."""

    keys: Keys
    new_id: Callable[[], str]
    custom_limit: int = events.CUSTOM_LIMIT
    command_rate: float = 20.0
    command_burst: int = 100
    first_frame_s: float = 10.0


class Write(msgspec.Struct, frozen=True):
    """Send a text."""

    text: bytes


class Refuse(msgspec.Struct, frozen=True):
    """Answer a command with an error, and count it."""

    id: Any
    error: Refused


class Login(msgspec.Struct, frozen=True):
    """Save the user's profile, admit the socket, then call ``welcomed``."""

    user_id: str
    profile: Profile


class Watch(msgspec.Struct, frozen=True):
    """Watch a call, from a position on where one is given; reply with its position."""

    id: Any
    cid: str
    since: Position | None


class Unwatch(msgspec.Struct, frozen=True):
    """Cease to watch a call and reply."""

    id: Any
    cid: str


class Send(msgspec.Struct, frozen=True):
    """Publish an event and reply with its position."""

    id: Any
    event: Event


class Refresh(msgspec.Struct, frozen=True):
    """Cease to watch the calls that the new token does not allow, and reply."""

    id: Any
    claims: Claims


class End(msgspec.Struct, frozen=True):
    """Close the socket, after a last text where there is one. ``why`` is for counters."""

    code: Close
    reason: str
    why: str
    farewell: bytes | None = None


Action: TypeAlias = Write | Refuse | Login | Watch | Unwatch | Send | Refresh | End


class Phase(Enum):
    """How far the conversation has come."""

    FIRST_FRAME = "first frame"
    LOGGING_IN = "logging in"
    OPEN = "open"
    ENDED = "ended"


class Session:
    """One conversation. ``api_key`` and ``auth_type`` come from the URL of the socket."""

    __slots__ = (
        "_allowance", "_allowed", "_api_key", "_auth_type", "_claims", "_counted_at", "_opened_at",
        "_overruns", "_rules", "_sender", "_user_json", "connection_id", "phase", "user",
    )  # fmt: skip

    def __init__(self, rules: Rules, api_key: str | None, auth_type: str, now_ns: int) -> None:
        self._rules = rules
        self._api_key = api_key
        self._auth_type = auth_type
        self._claims: Claims | None = None
        self._opened_at = now_ns
        self._allowance = float(rules.command_burst)
        self._counted_at = now_ns
        self._overruns = 0
        self._allowed: str | None = None
        self._sender = ""
        self._user_json = b""
        self.user: User | None = None
        self.connection_id = ""
        self.phase = Phase.FIRST_FRAME

    @property
    def claims(self) -> Claims:
        """What the token says; there is one from ``LOGGING_IN`` on."""
        assert self._claims is not None, "asked for claims before the first frame"
        return self._claims

    def received(self, text: str, now_ns: int) -> list[Action]:
        """Take a message of the peer."""
        match self.phase:
            case Phase.OPEN:
                return self._message(text, now_ns)
            case Phase.FIRST_FRAME:
                return self._first_frame(text, now_ns)
            case Phase.LOGGING_IN:
                if (wait_s := self._over_rate(now_ns)) is not None:
                    return self._overrun(wait_s)
                early = BadInput("wait for connection.ok before you send commands", reason="early")
                return [Refuse(None, early)]
            case Phase.ENDED:
                return []

    def welcomed(self, user: User, connection_id: str, now_ns: int) -> list[Action]:
        """Learn that the user was saved and the socket admitted."""
        self.user = user
        self._sender = f"user:{user.id}"
        self._user_json = users.encoded(user, online=True)
        self.connection_id = connection_id
        self.phase = Phase.OPEN
        return [Write(frames.connection_ok(user, connection_id, now_ns))]

    def refused(self, error: Refused, now_ns: int) -> list[Action]:
        """Refuse the login: tell why, then close."""
        self.phase = Phase.ENDED
        farewell = frames.connection_error(error, now_ns)
        return [End(Close.REFUSED, error.message, error.reason, farewell)]

    def due(self, now_ns: int) -> list[Action]:
        """Do what time brings: a health check, or the end of a socket whose time is over."""
        if self.phase is Phase.OPEN:
            if self.claims.has_ended(now_ns / _NS):
                self.phase = Phase.ENDED
                return [End(Close.TOKEN_EXPIRED, "the token has expired", "token_expired")]
            return [Write(frames.health_check(self.connection_id, now_ns))]
        if self.phase is not Phase.ENDED and now_ns >= self._login_deadline:
            self.phase = Phase.ENDED
            reason = f"no token within {self._rules.first_frame_s:g} s"
            return [End(Close.NO_AUTHENTICATION, reason, "no_authentication")]
        return []

    def next_due_s(self, now_ns: int) -> float:
        """Return seconds until ``due`` should be called."""
        if self.phase is not Phase.OPEN:
            return max(0.0, (self._login_deadline - now_ns) / _NS)
        if self.claims.expires is None:
            return HEARTBEAT_S
        return max(0.0, min(HEARTBEAT_S, self.claims.expires - now_ns / _NS))

    @property
    def _login_deadline(self) -> int:
        return self._opened_at + int(self._rules.first_frame_s * _NS)

    # -- the first frame --------------------------------------------------------------------------

    def _first_frame(self, text: str, now_ns: int) -> list[Action]:
        try:
            login = self._login(text, now_ns)
        except Refused as error:
            return self.refused(error, now_ns)
        self.phase = Phase.LOGGING_IN
        return [login]

    def _login(self, text: str, now_ns: int) -> Login:
        if self._auth_type == "anonymous":
            raise NotAllowed("anonymous users have no socket: log in as a guest or with a token")
        frame = wire.decode_object(text, "the first frame")
        details = frame.get("user_details")
        if not isinstance(details, dict):
            raise BadInput("user_details must be an object with the user's id")
        self._claims = self._verified(frame.get("token"), now_ns)
        if details.get("id") != self._claims.user_id:
            raise Unauthenticated(
                "user_details.id is not the token's user_id: connect with a token of that user",
                reason="other_user",
            )
        profile = users.read_profile(details)
        assert self._claims.user_id is not None
        return Login(self._claims.user_id, profile)

    def _verified(self, token: object, now_ns: int) -> Claims:
        if not isinstance(token, str):
            tokens.secrets_of(self._rules.keys, self._api_key)
            raise Unauthenticated("token must be a string, a user's JWT", reason="bad_token")
        claims = tokens.verify(token, self._api_key, self._rules.keys, now_ns / _NS)
        if claims.is_server:
            raise NotAllowed("a server's token cannot open a socket: use a user's token")
        return claims

    # -- commands ---------------------------------------------------------------------------------

    def _message(self, text: str, now_ns: int) -> list[Action]:
        if (wait_s := self._over_rate(now_ns)) is not None:
            return self._overrun(wait_s)
        try:
            message = wire.decode(text, "the message")
        except Refused as error:
            return [Refuse(None, error)]
        if isinstance(message, list):
            if len(message) > ARRAY_LIMIT:
                too_many = BadInput(f"an array may hold at most {ARRAY_LIMIT} messages")
                return [Refuse(None, too_many)]
            return self._messages(message, now_ns)
        return self._command(message, now_ns)

    def _messages(self, messages: list[object], now_ns: int) -> list[Action]:
        """Take an array of messages. The first is paid for with the frame, each other one here."""
        actions: list[Action] = []
        for index, message in enumerate(messages):
            if index and (wait_s := self._over_rate(now_ns)) is not None:
                actions += self._overrun(wait_s)
                break
            actions += self._command(message, now_ns)
        return actions

    def _command(self, message: object, now_ns: int) -> list[Action]:
        if not isinstance(message, dict):
            return [
                Refuse(None, BadInput("a message must be a JSON object", reason="not_an_object"))
            ]
        command_id = message.get("id")
        if not isinstance(command_id, _COMMAND_IDS) or len(str(command_id)) > 128:
            return [
                Refuse(None, BadInput("id must be a number or a string of up to 128 characters"))
            ]
        try:
            return [self._action(command_id, message, now_ns)]
        except Refused as error:
            return [Refuse(command_id, error)]

    def _action(self, command_id: Any, message: dict[str, Any], now_ns: int) -> Action:
        match message.get("type"):
            case "call.send":
                return Send(command_id, self._event(message, now_ns))
            case "health.check":
                return Write(frames.health_check(self.connection_id, now_ns))
            case "call.watch":
                since = _since(message.get("since"))
                return Watch(command_id, self._allowed_cid(message), since)
            case "call.unwatch":
                return Unwatch(command_id, events.check_cid(message.get("call_cid")))
            case "token.refresh":
                return self._refresh(command_id, message, now_ns)
            case other:
                raise BadInput(
                    f"type {str(other)[:64]!r} is no command: call.watch, call.unwatch, call.send, "
                    "token.refresh or health.check",
                    reason="unknown_command",
                )

    def _allowed_cid(self, message: dict[str, Any]) -> str:
        """Return the call that a command names; the one named last is not looked at again."""
        if (cid := message.get("call_cid")) is None or cid != self._allowed:
            cid = events.check_cid(cid)
            self.claims.check_call(cid)
            self._allowed = cid
        return cid

    def _event(self, message: dict[str, Any], now_ns: int) -> Event:
        cid = self._allowed_cid(message)
        volatile = message.get("volatile", False)
        if not isinstance(volatile, bool):
            raise BadInput("volatile must be true or false")
        given = message.get("event_id")
        return events.custom_event(
            cid=cid,
            custom=events.check_custom(message.get("custom"), self._rules.custom_limit),
            user=self._user_json,
            event_id=self._rules.new_id() if given is None else events.check_event_id(given),
            now_ns=now_ns,
            sender=self._sender,
            minted=given is None,
            volatile=volatile,
        )

    def _refresh(self, command_id: Any, message: dict[str, Any], now_ns: int) -> Action:
        claims = self._verified(message.get("token"), now_ns)
        if claims.user_id != self.claims.user_id:
            raise NotAllowed("the new token is another user's", reason="other_user")
        self._claims = claims
        self._allowed = None
        return Refresh(command_id, claims)

    # -- the rate ---------------------------------------------------------------------------------

    def _over_rate(self, now_ns: int) -> float | None:
        """Count a message; return None when it is welcome, else seconds until the next one is."""
        rate, burst = self._rules.command_rate, self._rules.command_burst
        if not rate:
            return None
        elapsed_s = max(0, now_ns - self._counted_at) / _NS
        self._counted_at = now_ns
        self._allowance = min(float(burst), self._allowance + elapsed_s * rate)
        if self._allowance >= burst:
            self._overruns = 0
        if self._allowance < 1.0:
            return (1.0 - self._allowance) / rate
        self._allowance -= 1.0
        return None

    def _overrun(self, wait_s: float) -> list[Action]:
        """Tell a peer that is too fast; end the conversation when it does not listen."""
        self._overruns += 1
        if self._overruns > self._rules.command_burst:
            self.phase = Phase.ENDED
            return [End(Close.FLOOD, "too many commands: slow down", "flood")]
        error = RateLimited(
            f"at most {self._rules.command_rate:g} commands per second: wait {wait_s:.2f} s",
            retry_after=wait_s,
        )
        return [Refuse(None, error)]


def _since(value: object) -> Position | None:
    """Return the position a watch continues from; None when none was given."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadInput("since must be an object with epoch and offset")
    epoch, offset = value.get("epoch"), value.get("offset")
    if not (isinstance(epoch, str) and 0 < len(epoch) <= 64):
        raise BadInput("since.epoch must be a string, as a publication or a reply gave it")
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset <= _MAX_OFFSET:
        raise BadInput("since.offset must be a whole number from 0 on")
    return Position(epoch, offset)
