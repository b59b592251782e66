"""Stream's tokens: who is asking, and for which calls.

Pure: keys and the time come in as arguments. The one home of ``jwt``. A token is HS256 over the
API secret; without a ``user_id`` it is a server's.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import jwt
import msgspec

from relay.errors import (
    BadInput,
    BadSignature,
    NotAllowed,
    TokenBeforeIssue,
    TokenExpired,
    TokenNotYetValid,
    Unauthenticated,
    UnknownKey,
)
from relay.events import check_cid, check_user_id

LEEWAY_S: Final = 10
"""Seconds by which the clock of whoever issued a token may run ahead of ours."""

Keys = Mapping[str, Sequence[str]]
"""API key → its secrets. More than one while a secret is being rotated."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified token says. ``user_id`` None means a server. ``call_cids`` None means any.

    ``issued`` and ``expires`` are in seconds since 1970, None where the token does not say.
    """

    api_key: str
    user_id: str | None = None
    role: str | None = None
    call_cids: frozenset[str] | None = None
    issued: float | None = None
    expires: float | None = None

    @property
    def is_server(self) -> bool:
        """Whether a backend asks, which may act as any user."""
        return self.user_id is None

    def check_call(self, cid: str) -> None:
        """Raise ``NotAllowed`` when the token is limited to other calls."""
        if self.call_cids is not None and cid not in self.call_cids:
            raise NotAllowed(f"this token is not for the call {cid}", reason="call_not_in_token")

    def disallowed(self, cids: Iterable[str]) -> list[str]:
        """Return those calls of ``cids`` that the token is not for."""
        if self.call_cids is None:
            return []
        return [cid for cid in cids if cid not in self.call_cids]

    def issued_before(self, moment: float) -> bool:
        """Tell whether the token is older; one that does not say so may be."""
        return self.issued is None or self.issued < moment

    def check_revoked(self, before_ns: int) -> None:
        """Raise ``TokenExpired`` when tokens issued before that time are worth nothing.

        No other error makes an SDK ask its token provider for a new one.
        """
        if before_ns and self.issued_before(before_ns / 1e9):
            raise TokenExpired("the token was revoked: get a new one", reason="token_revoked")

    def has_ended(self, now: float) -> bool:
        """Tell whether the token is no longer good at ``now``."""
        return self.expires is not None and now >= self.expires


def secrets_of(keys: Keys, api_key: str | None) -> Sequence[str]:
    """Return the secrets of an API key; raises ``UnknownKey``, also for a missing one."""
    secrets = keys.get(api_key or "")
    if not secrets:
        raise UnknownKey("api_key is missing" if not api_key else "api_key is not known here")
    return secrets


def verify(token: str, api_key: str | None, keys: Keys, now: float) -> Claims:
    """Check a token against the secrets of ``api_key`` and return what it says.

    Raises an ``Unauthenticated`` of the kind that Stream's SDKs act on.
    """
    secrets = secrets_of(keys, api_key)
    payload = _payload(token, secrets)
    claims = _claims(payload, api_key or "")
    if claims.has_ended(now):
        raise TokenExpired("the token has expired: get a new one")
    _check_begun(payload, now)
    return claims


def _payload(token: str, secrets: Sequence[str]) -> dict[str, Any]:
    for secret in secrets:
        try:
            return jwt.decode(
                token, _hmac_key(secret), algorithms=["HS256"], options=_SIGNATURE_ONLY
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.InvalidAlgorithmError as error:
            raise BadSignature("the token must be signed with HS256") from error
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise Unauthenticated(
                "the token is not a JWT: send it bare, without 'Bearer'", reason="bad_token"
            ) from error
    raise BadSignature("the token's signature does not match the secret of api_key")


_SIGNATURE_ONLY: Final[Any] = {
    f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}
"""``jwt`` would read the clock; the times are checked here, against the time we are given."""


def _check_begun(payload: Mapping[str, Any], now: float) -> None:
    not_before, issued = (_seconds(payload, name) for name in ("nbf", "iat"))
    if not_before is not None and now + LEEWAY_S < not_before:
        raise TokenNotYetValid("the token is not valid yet: its nbf lies ahead")
    if issued is not None and now + LEEWAY_S < issued:
        raise TokenBeforeIssue("the token is used before it was issued: check the issuer's clock")


def _seconds(payload: Mapping[str, Any], name: str) -> float | None:
    value = payload.get(name)
    if value is None:
        return None
    # Beyond 2**53 a float is no longer exact; nan would compare as neither past nor future.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    raise Unauthenticated(f"the token's {name} must be a number of seconds", reason="bad_token")


def _claims(payload: Mapping[str, Any], api_key: str) -> Claims:
    role, cids = payload.get("role"), payload.get("call_cids")
    if role is not None and not isinstance(role, str):
        raise Unauthenticated("the token's role must be a string", reason="bad_token")
    if cids is not None and not isinstance(cids, list):
        raise Unauthenticated("the token's call_cids must be a list", reason="bad_token")
    try:
        # A user_id of null is no server's: more likely a backend that forgot to fill it in.
        user_id = check_user_id(payload["user_id"]) if "user_id" in payload else None
        call_cids = None if cids is None else frozenset(check_cid(c, "call_cids") for c in cids)
    except BadInput as error:
        raise Unauthenticated(f"in the token {error.message}", reason="bad_token") from None
    return Claims(
        api_key=api_key,
        user_id=user_id,
        role=role,
        call_cids=call_cids,
        issued=_seconds(payload, "iat"),
        expires=_seconds(payload, "exp"),
    )


def issue(
    secret: str,
    *,
    user_id: str | None,
    now: float,
    life_s: float | None = None,
    call_cids: Sequence[str] | None = None,
    role: str | None = None,
) -> str:
    """Return a signed token: a server's without ``user_id``, endless without ``life_s``."""
    claims: dict[str, Any] = {"server": True} if user_id is None else {"user_id": user_id}
    claims["iat"] = int(now)
    if life_s is not None:
        claims["exp"] = int(now + life_s)
    if call_cids is not None:
        claims["call_cids"] = list(call_cids)
    if role is not None:
        claims["role"] = role
    return jwt.encode(claims, _hmac_key(secret), algorithm="HS256")


def _hmac_key(secret: str) -> bytes:
    """Return a secret padded as HMAC pads it anyway, so that ``jwt`` does not warn of a short one.

    ``relay check`` tells the operator once, instead of every token on standard error.
    """
    return secret.encode().ljust(32, b"\0") if secret else b""


def connection_id(incarnation: str, nonce: str, user_id: str, secret: str) -> str:
    """Return an opaque id that names the process owning a socket and binds it to its user."""
    return f"{incarnation}-{nonce}-{_connection_mac(incarnation, nonce, user_id, secret)}"


def connection_owner(connection: str, user_id: str, secret: str) -> str | None:
    """Return the incarnation of the process that owns ``connection``, None when it is forged."""
    incarnation, _, rest = connection.partition("-")
    nonce, _, mac = rest.partition("-")
    expected = _connection_mac(incarnation, nonce, user_id, secret)
    return incarnation if hmac.compare_digest(mac.encode(), expected.encode()) else None


def _connection_mac(incarnation: str, nonce: str, user_id: str, secret: str) -> str:
    said = f"connection\0{incarnation}\0{nonce}\0{user_id}".encode()
    return hmac.new(secret.encode(), said, sha256).hexdigest()[:16]
