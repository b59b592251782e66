"""The file that ``RELAY_SOURCES`` names: webhook sources beside Stream's own, as TOML.

[[source]]
name = "billing"                      # POST /webhooks/billing, and the id of the events' user
scheme = "standard"                   # Standard Webhooks
secrets = ["whsec_…"]                 # several while one is being rotated
call = "/data/call_cid"               # JSON pointer to the call in the body
call_type = "default"                 # optional: the pointer leads to the call's id alone

[[source]]
name = "stream-eu"
scheme = "stream"                     # Stream's scheme, with API keys of its own
keys = { key = ["secret"] }
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import msgspec

from relay import signing
from relay.ingress.sources import Source, StandardSource, StreamSource, read_pointer
from relay.settings import SettingsError
from relay.tokens import Keys

_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_CALL_TYPE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECRET_BYTES: Final = 16
"""Fewer are guessable, and most likely something that only looks like base64."""


class _Standard(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="scheme", tag="standard"
):
    name: str
    secrets: list[str]
    call: str
    call_type: str | None = None


class _Stream(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="scheme", tag="stream"
):
    name: str
    keys: dict[str, list[str]]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: list[_Standard | _Stream] = []


def load_sources(path: str, keys: Keys, *, max_bytes: int, freshness_s: float) -> dict[str, Source]:
    """Return the sources by name: ``stream`` with the relay's own ``keys``, and those of the file.

    ``path`` may be empty. Raises ``SettingsError`` saying what to correct; secrets are not shown.
    """
    sources: dict[str, Source] = {
        "stream": StreamSource(keys, max_bytes=max_bytes, freshness_s=freshness_s)
    }
    for number, entry in enumerate(_read(path).source if path else [], 1):
        where = f"{path}: source {number} ({entry.name!r})"
        if not _NAME.fullmatch(entry.name):
            raise SettingsError(f"{where}: name must be a-z, 0-9, '_', '-', at most 64 characters")
        if entry.name in sources:
            raise SettingsError(f"{where}: the name is taken")
        try:
            sources[entry.name] = _source(entry, max_bytes, freshness_s)
        except ValueError as error:
            raise SettingsError(f"{where}: {error}") from None
    return sources


def _read(path: str) -> _File:
    try:
        return msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), _File)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{path}: {error}") from None


def _source(entry: _Standard | _Stream, max_bytes: int, freshness_s: float) -> Source:
    """Build a source; raises ``ValueError`` for what the types cannot say."""
    if isinstance(entry, _Stream):
        if not entry.keys or not all(k and s and all(s) for k, s in entry.keys.items()):
            raise ValueError('keys must be { key = ["secret", …], … }')
        return StreamSource(
            entry.keys, max_bytes=max_bytes, freshness_s=freshness_s, name=entry.name
        )
    if not entry.secrets:
        raise ValueError("secrets is empty")
    for secret in entry.secrets:
        if len(signing.standard_key(secret)) < _SECRET_BYTES:
            raise ValueError(f"a secret has less than {_SECRET_BYTES} bytes")
    if not read_pointer(entry.call):
        raise ValueError("call must point into the body, e.g. '/data/call_cid'")
    if entry.call_type is not None and not _CALL_TYPE.fullmatch(entry.call_type):
        raise ValueError("call_type must be the type of a call, e.g. 'default'")
    return StandardSource(
        entry.name,
        entry.secrets,
        entry.call,
        max_bytes=max_bytes,
        freshness_s=freshness_s,
        call_type=entry.call_type,
    )
