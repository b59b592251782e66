"""Sources of webhooks: whose signature is checked how, and what event a body becomes.

Pure: headers, body and time come in, an event or a refusal comes out. The scheme is the only thing
that differs between sources; nothing is ever verified on a body that was parsed and written again.
A source judges age only on a time that is signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from relay import events, signing, users, wire
from relay.errors import BadInput, BadSignature
from relay.events import Event, Origin
from relay.tokens import Keys, secrets_of
from relay.users import User

_NS: Final = 1_000_000_000


class Accepted(NamedTuple):
    """What a verified webhook is known by, and the event it brings: None when about no call.

    ``body`` is what it says where it says it in Stream's words; ``origins`` is where relays have
    published it before, when it is a delivery of one.
    """

    event_id: str
    event: Event | None
    origins: tuple[Origin, ...] = ()
    body: Mapping[str, Any] | None = None


class Source(Protocol):
    """One sender of webhooks."""

    @property
    def name(self) -> str:
        """The last part of its path, ``/webhooks/{name}``."""
        ...

    def accept(self, headers: Mapping[str, str], raw: bytes, now_ns: int) -> Accepted:
        """Verify a webhook and return what it says. ``headers`` by lower-case name.

        Raises a ``Refused`` that says what is wrong.
        """
        ...


class StreamSource:
    """Stream's own webhooks, signed with the secret of the API key they name.

    The webhook's id is not signed, so it decides nothing: a body is known by the digest of what it
    says, whichever way it came. ``sender`` is what the digests are remembered under, per key.
    """

    def __init__(
        self, keys: Keys, *, max_bytes: int, freshness_s: float, name: str = "stream"
    ) -> None:
        self.name = name
        self._keys = keys
        self._max_bytes = max_bytes
        self._freshness_s = freshness_s
        self._sender = "stream" if name == "stream" else f"source:{name}"

    def accept(self, headers: Mapping[str, str], raw: bytes, now_ns: int) -> Accepted:
        """Check the signature, then the age, then make an event of the body as it is."""
        if not (signature := headers.get("x-signature")):
            raise BadSignature("X-SIGNATURE is missing", reason="signature_missing")
        api_key = headers.get("x-api-key")
        secrets = secrets_of(self._keys, api_key)
        plain = signing.inflated(raw, self._max_bytes)
        signing.verify_stream(plain, signature, secrets)
        alias = _id_or_none(headers.get("x-webhook-id"))
        return self._read(plain, api_key, now_ns, self._freshness_s, alias)

    def knows(self, api_key: str) -> bool:
        """Tell whether a key is one of this source's."""
        return api_key in self._keys

    def queued(self, raw: bytes, api_key: str, now_ns: int, freshness_s: float) -> Accepted:
        """Return what the copy of a webhook says that came by a queue, unsigned.

        It is the same event as the webhook's of that key. A queue keeps it for hours, so its age is
        judged by another measure. Raises a ``Refused`` that says what is wrong.
        """
        plain = signing.inflated(raw, self._max_bytes)
        return self._read(plain, api_key, now_ns, freshness_s, None)

    def _read(
        self, plain: bytes, api_key: str | None, now_ns: int, freshness_s: float, alias: str | None
    ) -> Accepted:
        body = wire.decode_object(plain)
        events.check_event_type(body.get("type"))
        check_age(wire.parse_time(body.get("created_at")), now_ns, freshness_s)
        digest = events.fingerprint(wire.canonical(body))
        if body.get("call_cid") is None:
            return Accepted(digest, None)
        if origins := events.origins(body):
            return Accepted(digest, _returned(body, origins[0]), origins)
        event = events.given_event(
            body,
            event_id=digest,
            sender=f"{self._sender}:{api_key}",
            identity=digest,
            fingerprint=digest,
            alias=alias,
        )
        return Accepted(digest, event, body=body)


class StandardSource:
    """Webhooks by the Standard Webhooks specification, of any backend.

    The body becomes the ``custom`` of an event whose user is the source. ``call`` is a JSON pointer
    (RFC 6901) to the call in the body; with ``call_type`` it points to the call's id alone.
    """

    def __init__(
        self,
        name: str,
        secrets: Sequence[str],
        call: str,
        *,
        max_bytes: int,
        freshness_s: float,
        call_type: str | None = None,
    ) -> None:
        self.name = name
        self._secrets = secrets
        self._call = read_pointer(call)
        self._call_type = call_type
        self._max_bytes = max_bytes
        self._freshness_s = freshness_s

    def accept(self, headers: Mapping[str, str], raw: bytes, now_ns: int) -> Accepted:
        """Check the signature, then the age, then wrap the body."""
        webhook_id, timestamp, signatures = (
            _signed_header(headers, name)
            for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        )
        plain = signing.inflated(raw, self._max_bytes)
        signing.verify_standard(plain, webhook_id, timestamp, signatures, self._secrets)
        event_id = events.check_event_id(webhook_id, "webhook-id")
        check_age(_seconds(timestamp) * _NS, now_ns, self._freshness_s)
        body = wire.decode_object(plain)
        cid = self._cid(body)
        event = self._event(cid, body, event_id, now_ns) if cid else None
        return Accepted(event_id, event, events.origins(body))

    def _cid(self, body: dict[str, Any]) -> str | None:
        value = at_pointer(body, self._call)
        if value is None:
            return None
        if self._call_type is None:
            return events.check_cid(value, "the call in the body")
        # Ids of calls are often numbers in the sender's database.
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise BadInput("the call's id in the body must be a string", reason="bad_cid")
        return events.check_cid(f"{self._call_type}:{value}", "the call in the body")

    def _event(self, cid: str, body: dict[str, Any], event_id: str, now_ns: int) -> Event:
        return events.custom_event(
            cid=cid,
            custom=wire.encode(body),
            user=users.encoded(User(id=self.name, created_at=now_ns, updated_at=now_ns)),
            event_id=event_id,
            now_ns=now_ns,
            sender=f"source:{self.name}",
            minted=False,
        )


def _returned(body: dict[str, Any], origin: Origin) -> Event:
    """Build the event of a delivery of another relay: it keeps its id.

    Deliveries that go in a circle over several relays are known by it the second time.
    """
    event_id = events.check_event_id(origin.event_id)
    return events.given_event(
        body,
        event_id=event_id,
        sender="relay",
        identity=event_id,
        fingerprint=events.fingerprint(events.told(body)),
    )


def check_age(created_ns: int, now_ns: int, freshness_s: float) -> None:
    """Raise ``BadInput`` when a signed time is over ``freshness_s`` old or lies well ahead.

    A replayed webhook must be too old before its first time is forgotten.
    """
    age_s = (now_ns - created_ns) / _NS
    if age_s > freshness_s:
        raise BadInput(
            f"the webhook is {age_s:.0f} s old, over {freshness_s:g} s are refused", reason="stale"
        )
    if age_s < -events.CLOCK_AHEAD_S:
        raise BadInput(
            f"the webhook's time lies {-age_s:.0f} s ahead: check the sender's clock",
            reason="ahead",
        )


def _id_or_none(value: str | None) -> str | None:
    try:
        return events.check_event_id(value)
    except BadInput:
        return None


def _signed_header(headers: Mapping[str, str], name: str) -> str:
    if value := headers.get(name):
        return value
    raise BadSignature(f"{name} is missing", reason="signature_missing")


def _seconds(timestamp: str) -> int:
    if timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12:
        return int(timestamp)
    raise BadInput("webhook-timestamp must be whole seconds since 1970", reason="bad_time")


# -- JSON pointers (RFC 6901) -------------------------------------------------------------------

Pointer = tuple[str, ...]


def read_pointer(text: str) -> Pointer:
    """Return the parts of a JSON pointer; raises ``ValueError`` when it is none."""
    first, *parts = text.split("/")
    if first or any("~" in part.replace("~0", "").replace("~1", "") for part in parts):
        raise ValueError(f"{text!r} is not a JSON pointer such as '/data/call_cid'")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def at_pointer(value: Any, pointer: Pointer) -> Any:
    """Return what ``pointer`` points to in a JSON value, None when nothing is there."""
    for part in pointer:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and _is_index(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10 and (part == "0" or part[0] != "0")
