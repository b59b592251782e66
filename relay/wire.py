"""What goes over the wire: JSON, timestamps in both dialects, WebSocket text frames.

Pure. The one home of ``msgspec.json``: every JSON text the relay reads or writes passes here, so
hostile input (endless nesting, lone surrogates, numbers out of range) is refused in one place.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from struct import Struct
from typing import Any, Final, TypeVar

import msgspec

from relay.errors import BadInput

T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Levels of arrays and objects a JSON text may have. Stream's deepest event has about ten."""

_encoder: Final = msgspec.json.Encoder()
_canonical: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder()


def decode(text: bytes | str, what: str = "body") -> Any:
    """Return the value of a JSON text.

    Raises ``BadInput`` naming ``what`` for anything that is not JSON of at most ``MAX_DEPTH``
    levels.
    """
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise _too_deep(what) from None
    except (msgspec.MsgspecError, UnicodeError):
        raise BadInput(f"{what} is not valid JSON", reason="not_json") from None
    if _could_be_deep(text) and _deeper_than(value, MAX_DEPTH):
        raise _too_deep(what)
    return value


def decode_object(text: bytes | str, what: str = "body") -> dict[str, Any]:
    """Return the object of a JSON text; raises ``BadInput`` as ``decode``, and for other values."""
    value = decode(text, what)
    if not isinstance(value, dict):
        raise BadInput(f"{what} must be a JSON object", reason="not_an_object")
    return value


def encode(value: Any) -> bytes:
    """Return ``value`` as compact JSON."""
    return _encoder.encode(value)


def reader(kind: type[T]) -> Callable[[bytes], T]:
    """Return what reads back the values of one kind that ``encode`` wrote. Not for peers' texts."""
    return msgspec.json.Decoder(kind).decode


def canonical(value: Any) -> bytes:
    """Return ``value`` as compact JSON with sorted keys: equal values give equal bytes."""
    return _canonical.encode(value)


def _too_deep(what: str) -> BadInput:
    return BadInput(f"{what} is nested deeper than {MAX_DEPTH} levels", reason="too_deep")


def _could_be_deep(text: bytes | str) -> bool:
    """Tell whether there are brackets enough: counting them is cheap, and most texts have few."""
    if isinstance(text, str):
        return text.count("{") + text.count("[") > MAX_DEPTH
    return text.count(b"{") + text.count(b"[") > MAX_DEPTH


def _deeper_than(value: Any, limit: int) -> bool:
    """Tell whether containers nest deeper than ``limit``; level by level, so it cannot recurse."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


# -- timestamps ---------------------------------------------------------------------------------

_NS: Final = 1_000_000_000
_NS_RANGE: Final = range(10**17, 2**63)
"""1973 to 2262. A smaller integer is seconds, milliseconds or something else: left alone."""

_TIME_FIELDS: Final = frozenset(
    {
        "ban_expires", "banned_until", "end_time", "expires", "last_active", "last_read",
        "revoke_tokens_issued_before", "start_time", "timestamp", "until",
    }
)  # fmt: skip
_TIME_MAPS: Final = frozenset({"accepted_by", "missed_by", "rejected_by"})
"""Fields of a call session that map a user's id to a time."""

_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def rfc3339(ns: int) -> str:
    """Return nanoseconds since 1970 as ``2026-11-23T07:34:33.477260007Z``, always nine digits."""
    seconds, fraction = divmod(ns, _NS)
    return f"{_whole_seconds(seconds)}.{fraction:09d}Z"


@lru_cache(maxsize=64)  # events of one second share it
def _whole_seconds(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def parse_time(value: object, field: str = "created_at") -> int:
    """Return a timestamp of either dialect as nanoseconds since 1970.

    Raises ``BadInput`` naming ``field`` when it is neither integer nanoseconds nor RFC 3339.
    """
    ns = _nanoseconds(value)
    if ns is None:
        raise BadInput(
            f"{field} must be a time: RFC 3339 or integer nanoseconds since 1970", reason="bad_time"
        )
    return ns


def _nanoseconds(value: object) -> int | None:
    ns = _integer_dialect(value)
    return _parse_rfc3339(value) if ns is None and isinstance(value, str) else ns


def _integer_dialect(value: object) -> int | None:
    """Return integer nanoseconds, given as a number or as a string of digits."""
    if isinstance(value, str) and 18 <= len(value) <= 19 and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and value in _NS_RANGE else None


def _parse_rfc3339(text: str) -> int | None:
    """Parse with all nine digits: ``datetime`` keeps six, so the fraction is read apart."""
    if not (parts := _RFC3339.fullmatch(text)):
        return None
    whole, fraction, zone = parts.groups()
    try:
        moment = msgspec.convert(whole + zone, datetime)
        seconds = calendar.timegm(moment.utctimetuple())
    except (msgspec.ValidationError, OverflowError):
        return None
    ns = seconds * _NS + int((fraction or "")[:9].ljust(9, "0"))
    return ns if ns in _NS_RANGE else None


def with_rfc3339(body: dict[str, Any]) -> dict[str, Any]:
    """Return ``body`` with its integer-nanosecond timestamps as RFC 3339, at every depth.

    What stands under a key ``custom`` is the application's own and stays as it is.
    """
    return {key: _field(key, value) for key, value in body.items()}


def _field(key: str, value: Any) -> Any:
    if key == "custom":
        return value
    if isinstance(value, int | str):
        ns = _integer_dialect(value) if _is_time(key) else None
        return value if ns is None else rfc3339(ns)
    if isinstance(value, dict):
        if key in _TIME_MAPS:
            return {name: _field("created_at", inner) for name, inner in value.items()}
        return with_rfc3339(value)
    if isinstance(value, list):
        return [_field(key, item) for item in value]
    return value


def nanosecond_times(body: bytes) -> bytes:
    """Return a JSON object with its RFC 3339 timestamps as integer nanoseconds, at every depth.

    The inverse of ``with_rfc3339``. Everything else stays byte for byte as it is written, so that
    no number of an application's ``custom`` is read and written again.
    """
    return _encoder.encode(_raw_members("", msgspec.Raw(body)))


_raw_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_array: Final = msgspec.json.Decoder(list[msgspec.Raw])


def _raw_members(key: str, raw: msgspec.Raw) -> dict[str, Any]:
    members = _raw_object.decode(raw)
    if key in _TIME_MAPS:
        return {name: _raw_field("created_at", value) for name, value in members.items()}
    return {
        name: value if name == "custom" else _raw_field(name, value)
        for name, value in members.items()
    }


def _raw_field(key: str, raw: msgspec.Raw) -> Any:
    match bytes(memoryview(raw)[:1]):
        case b"{":
            return _raw_members(key, raw)
        case b"[":
            return [_raw_field(key, item) for item in _raw_array.decode(raw)]
        case b'"' if _is_time(key):
            ns = _nanoseconds(_decoder.decode(raw))
            return raw if ns is None else ns
    return raw


def _is_time(key: str) -> bool:
    return key.endswith("_at") or key in _TIME_FIELDS


# -- frames -------------------------------------------------------------------------------------


_SHORT: Final = Struct(">BB")
_MIDDLE: Final = Struct(">BBH")
_LONG: Final = Struct(">BBQ")


def text_frame(payload: bytes) -> bytes:
    """Return an unmasked, unfragmented WebSocket text frame (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return _SHORT.pack(0x81, length) + payload
    if length < 65536:
        return _MIDDLE.pack(0x81, 126, length) + payload
    return _LONG.pack(0x81, 127, length) + payload
