"""What a message of the queue says: JSON, base64 of it or of its gzip, bare or in SNS's envelope.

Pure. A queue that is subscribed to a topic gets, unless it asks for raw messages, each of them as
``Message`` of a JSON object that SNS writes. Its signature is not looked at: who may write to the
queue is trusted as it is.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from relay import wire
from relay.errors import BadInput

_HANDSHAKES: Final = ("SubscriptionConfirmation", "UnsubscribeConfirmation")
"""What SNS asks a queue of another account before it sends, and after it has stopped."""


def body_of(text: str) -> bytes:
    """Return the webhook's body in a message, which may still be gzip; raises ``BadInput``."""
    inner = _unwrapped(text)
    return _plain(text if inner is None else inner)


def _plain(text: str) -> bytes:
    text = text.strip()
    if text.startswith("{"):
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInput(
            "the message must be JSON, base64 of JSON or base64 of its gzip", reason="bad_base64"
        ) from None


def _unwrapped(text: str) -> str | None:
    """Return what is in SNS's envelope, None when there is no envelope.

    Raises ``BadInput`` for an envelope without a message.
    """
    if '"TopicArn"' not in text:  # most messages: they need not be parsed twice
        return None
    try:
        shown = wire.decode_object(text, "message")
    except BadInput:
        return None  # said again, of the body
    if not _is_from_topic(shown):
        return None
    if shown["Type"] in _HANDSHAKES:
        raise BadInput(
            f"SNS sent a {shown['Type']} instead of an event: subscribe the queue anew from the "
            "account that owns it, then SNS asks nothing",
            reason="sns_unconfirmed",
        )
    if isinstance(shown.get("Message"), str) and isinstance(shown.get("MessageId"), str):
        return str(shown["Message"])
    raise BadInput("SNS's envelope must have a Message and a MessageId", reason="bad_envelope")


def _is_from_topic(shown: dict[str, Any]) -> bool:
    """Tell SNS's envelope from an event: an event has a ``type``, whatever else it says."""
    return (
        shown.get("Type") in ("Notification", *_HANDSHAKES)
        and isinstance(shown.get("TopicArn"), str)
        and "type" not in shown
    )
