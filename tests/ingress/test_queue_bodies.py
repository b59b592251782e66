"""What a message of the queue says, bare or in SNS's envelope."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import BadInput
from relay.ingress.queue_bodies import body_of

EVENT = b'{"type":"custom","call_cid":"default:demo"}'
TOPIC = "arn:aws:sns:eu-central-1:1234:stream-events"
OF_TOPIC: dict[str, Any] = {
    "Type": "Notification",
    "MessageId": "d1b2",
    "TopicArn": TOPIC,
    "Message": EVENT.decode(),
    "Timestamp": "2026-11-25T12:00:00.000Z",
    "SignatureVersion": "1",
    "Signature": "EXAMPLE==",
    "SigningCertURL": "https://sns.example/cert.pem",
    "UnsubscribeURL": "https://sns.example/?Action=Unsubscribe",
}


def envelope(**changes: Any) -> str:
    """Return SNS's envelope with some fields changed; None leaves one out."""
    return json.dumps({k: v for k, v in (OF_TOPIC | changes).items() if v is not None})


def test_base64_with_something_in_between_is_none() -> None:
    assert body_of("e30=") == b"{}"
    with pytest.raises(BadInput, match="must be JSON, base64 of JSON"):
        body_of("e3*0=")


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (EVENT.decode(), EVENT),
        (base64.b64encode(EVENT).decode(), EVENT),
        (base64.b64encode(packed := gzip.compress(EVENT, mtime=0)).decode(), packed),
    ],
)
def test_an_envelope_of_sns_is_what_is_in_it(message: str, body: bytes) -> None:
    assert body_of(envelope(Message=message)) == body
    assert body_of(" \n" + envelope(Message=message, Subject="x", SequenceNumber="1")) == body


@pytest.mark.parametrize(
    "text",
    [
        envelope(type="custom"),
        envelope(Type="notification"),
        envelope(Type=["Notification"]),
        envelope(Type=None),
        envelope(TopicArn=None),
        envelope(TopicArn=[TOPIC]),
        envelope()[:-1],
        f"[{envelope()}]"[1:],
    ],
)
def test_only_what_sns_writes_is_an_envelope(text: str) -> None:
    assert body_of(text) == text.encode()


def test_an_envelope_is_opened_once() -> None:
    assert body_of(envelope(Message=envelope())) == envelope().encode()


@pytest.mark.parametrize("change", [{"Message": None}, {"Message": {}}, {"MessageId": 7}])
def test_an_envelope_without_a_message_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="must have a Message and a MessageId") as caught:
        body_of(envelope(**change))
    assert caught.value.reason == "bad_envelope"


@pytest.mark.parametrize("kind", ["SubscriptionConfirmation", "UnsubscribeConfirmation"])
def test_what_sns_asks_a_queue_of_another_account_is_refused_and_says_what_to_do(kind: str) -> None:
    with pytest.raises(BadInput, match=f"{kind} instead of an event: subscribe the") as caught:
        body_of(envelope(Type=kind, Token="secret"))
    assert caught.value.reason == "sns_unconfirmed"
    assert "secret" not in caught.value.message


@given(st.text() | st.dictionaries(st.sampled_from([*OF_TOPIC, "type"]), st.text()).map(json.dumps))
def test_whatever_a_message_is_it_is_a_body_or_refused(text: str) -> None:
    try:
        assert isinstance(body_of(text), bytes)
    except BadInput as refused:
        assert refused.reason in ("bad_base64", "bad_envelope", "sns_unconfirmed")
