"""Every error the relay answers with, each knowing its HTTP status, Stream code and close code.

    RelayError
    ├── Refused                     the peer's fault; the text is shown to the peer
    │   ├── BadInput                400 / 4
    │   │   └── UnknownConnection   400 / 46
    │   ├── Unauthenticated         401 / 5
    │   │   ├── UnknownKey          401 / 2
    │   │   ├── TokenExpired        401 / 40
    │   │   ├── TokenNotYetValid    401 / 41
    │   │   ├── TokenBeforeIssue    401 / 42
    │   │   └── BadSignature        401 / 43
    │   ├── NotAllowed              403 / 17
    │   ├── NotFound                404 / 16
    │   │   └── NotServed           404 / 16, unrecoverable
    │   ├── MethodNotAllowed        405 / 4
    │   ├── TooSlow                 408 / 23
    │   ├── TooLarge                413 / 22
    │   └── RateLimited             429 / 9
    └── Unavailable                 503 / -1, ours and temporary: the same request may be repeated

No handler chooses a status or a code: it raises one of these. The text of a ``Refused`` is written
for its reader (what was wrong, what to do) and never holds a secret.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class Close(IntEnum):
    """Why a socket was closed. What a client does at each: docs/protocol.md, "Close codes"."""

    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_TEXT = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    TOKEN_EXPIRED = 4001
    NO_AUTHENTICATION = 4002
    FLOOD = 4003
    REFUSED = 4004


class RelayError(Exception):
    """Root of the tree.

    ``reason`` is a short word for counters and logs, ``retry_after`` seconds (or None).
    """

    status: ClassVar[int] = 500
    code: ClassVar[int] = -1
    close: ClassVar[Close] = Close.INTERNAL_ERROR
    unrecoverable: ClassVar[bool] = False
    reason: str = "internal"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        if reason is not None:
            self.reason = reason

    def body(self, duration: str = "0.00ms") -> dict[str, Any]:
        """Return the six keys that every error body carries (Stream's SDKs fail on five).

        A seventh tells them not to try again.
        """
        return {
            "code": self.code,
            "message": self.message,
            "StatusCode": self.status,
            "duration": duration,
            "more_info": "",
            "details": [],
            **({"unrecoverable": True} if self.unrecoverable else {}),
        }


class Refused(RelayError):
    """The peer asked for something it cannot have."""

    status = 400
    code = 4
    close = Close.REFUSED
    reason = "refused"


class BadInput(Refused):
    """The request is malformed; the message names the field."""

    reason = "bad_input"


class UnknownConnection(BadInput):
    """The ``connection_id`` belongs to no open socket of this user."""

    code = 46
    reason = "unknown_connection"


class Unauthenticated(Refused):
    """No credentials, or none that can be read."""

    status = 401
    code = 5
    reason = "unauthenticated"


class UnknownKey(Unauthenticated):
    """The API key is not one of the relay's."""

    code = 2
    reason = "unknown_key"


class TokenExpired(Unauthenticated):
    """The token's ``exp`` has passed."""

    code = 40
    close = Close.TOKEN_EXPIRED
    reason = "token_expired"


class TokenNotYetValid(Unauthenticated):
    """The token's ``nbf`` lies ahead."""

    code = 41
    reason = "token_not_yet_valid"


class TokenBeforeIssue(Unauthenticated):
    """The token's ``iat`` lies ahead by more than the leeway."""

    code = 42
    reason = "token_before_issue"


class BadSignature(Unauthenticated):
    """The signature does not match, or is not of the algorithm the relay accepts."""

    code = 43
    reason = "bad_signature"


class NotAllowed(Refused):
    """Known, but not allowed to do this."""

    status = 403
    code = 17
    reason = "not_allowed"


class NotFound(Refused):
    """No such path, call or source."""

    status = 404
    code = 16
    reason = "not_found"


class NotServed(NotFound):
    """Stream has it, the relay does not and will not: trying again is of no use."""

    unrecoverable = True
    reason = "not_served"


class MethodNotAllowed(Refused):
    """The path exists, but not with this method."""

    status = 405
    reason = "method_not_allowed"


class TooSlow(Refused):
    """The rest of the request did not arrive in time."""

    status = 408
    code = 23
    reason = "too_slow"


class TooLarge(Refused):
    """Over a size limit; the message states the limit."""

    status = 413
    code = 22
    close = Close.TOO_BIG
    reason = "too_large"


class RateLimited(Refused):
    """Too many requests; ``retry_after`` says when the next one is welcome."""

    status = 429
    code = 9
    close = Close.FLOOD
    reason = "rate_limited"


class Unavailable(RelayError):
    """Redis is away or slow. Nothing was lost: repeat the request under the same id."""

    status = 503
    code = -1
    close = Close.TRY_AGAIN_LATER
    reason = "unavailable"
