"""Sign and verify webhooks: Stream's scheme and Standard Webhooks.

Pure: no clock, no I/O. Both sign the raw, uncompressed body; nothing is ever checked against a
body that was parsed and written again. Used by ``ingress`` (verify) and by the command line (sign).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import zlib
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final

from relay.errors import BadInput, BadSignature, TooLarge

_HEX_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}")
_GZIP_MAGIC: Final = b"\x1f\x8b"
_KEY_PREFIX: Final = "whsec_"


def stream_signature(body: bytes, secret: str) -> str:
    """Return Stream's signature of a body: lower-case hex HMAC-SHA256."""
    return hmac.new(secret.encode(), body, sha256).hexdigest()


def verify_stream(body: bytes, signature: str | None, secrets: Iterable[str]) -> None:
    """Raise ``BadSignature`` unless ``signature`` is that of ``body`` under one of the secrets."""
    if not signature:
        raise BadSignature("X-SIGNATURE is missing", reason="signature_missing")
    if not _HEX_SIGNATURE.fullmatch(signature):
        raise BadSignature(
            "X-SIGNATURE must be 64 lower-case hex digits", reason="signature_malformed"
        )
    if not _any_equal(signature, [stream_signature(body, secret) for secret in secrets]):
        raise BadSignature(
            "X-SIGNATURE does not match the uncompressed body under the secret of X-API-KEY"
        )


def standard_signature(webhook_id: str, timestamp: str, body: bytes, secret: str) -> str:
    """Return one entry of the ``webhook-signature`` list: ``v1,`` and base64 HMAC-SHA256.

    Source: the Standard Webhooks specification, "Signature scheme".
    """
    said = b"%b.%b.%b" % (webhook_id.encode(), timestamp.encode(), body)
    digest = hmac.new(standard_key(secret), said, sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def standard_secret(secret: str) -> str:
    """Return the ``whsec_`` form of a secret that is any text: what receivers configure."""
    return _KEY_PREFIX + base64.b64encode(secret.encode()).decode()


def standard_key(secret: str) -> bytes:
    """Return the key bytes of a ``whsec_`` secret (base64; the prefix may be missing).

    Raises ``ValueError`` when it is not base64.
    """
    try:
        return base64.b64decode(secret.removeprefix(_KEY_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a Standard Webhooks secret is 'whsec_' and base64") from None


def verify_standard(
    body: bytes, webhook_id: str, timestamp: str, signatures: str, secrets: Sequence[str]
) -> None:
    """Raise ``BadSignature`` unless one entry of the space-separated list is ours."""
    given = [entry for entry in signatures.split(" ") if entry.startswith("v1,")]
    if not given:
        raise BadSignature(
            "webhook-signature must hold an entry 'v1,<base64>'", reason="signature_malformed"
        )
    ours = [standard_signature(webhook_id, timestamp, body, secret) for secret in secrets]
    if not any(_any_equal(entry, ours) for entry in given[:8]):
        raise BadSignature("webhook-signature does not match the body under any known secret")


def _any_equal(given: str, expected: Iterable[str]) -> bool:
    """Compare with each candidate, each in a time that tells nothing about how close it came."""
    data = given.encode("utf-8", "surrogateescape")
    return any(hmac.compare_digest(data, candidate.encode()) for candidate in expected)


def inflated(body: bytes, limit: int) -> bytes:
    """Return the body uncompressed: gzip is known by its magic bytes, not by a header.

    Raises ``TooLarge`` as soon as more than ``limit`` bytes come out (a bomb is never unpacked),
    ``BadInput`` when the stream is damaged, cut short or followed by something else.
    """
    if not body.startswith(_GZIP_MAGIC):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(body, limit + 1)
    except zlib.error:
        raise BadInput("the gzip body is damaged", reason="bad_gzip") from None
    if len(plain) > limit:
        raise _too_large(limit)
    if not unzip.eof or unzip.unused_data:
        raise BadInput("the gzip body is cut short or has a tail", reason="bad_gzip")
    return plain


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body has more than {limit} bytes uncompressed", reason="body_too_large")
