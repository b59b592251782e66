"""Every setting of the relay: one frozen value, complete when it is made.

Read once, from ``RELAY_*`` in the environment and from flags of the same names. ``relay settings``
prints this table; docs/settings.md is held equal to it by a test.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from relay import forwarded, hook_fields
from relay.errors import BadInput
from relay.tokens import Keys

PREFIX: Final = "RELAY_"

_INJECTED: Final = re.compile(
    r"RELAY_(.+_)?(SERVICE_(HOST|PORT(_.+)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes and Docker links put into the environment for a service that is called relay."""


class SettingsError(Exception):
    """A setting is missing, unknown or malformed; the text says which and what to write."""


class Option(msgspec.Struct, frozen=True):
    """One setting: what its text means, and how it is explained."""

    help: str
    unit: str = ""
    secret: bool = False


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's settings; the explanations are in ``OPTIONS``."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    api_key: str = ""
    api_secret: str = ""
    keys: str = ""
    redis_url: str = ""
    redis_prefix: str = "relay:"
    redis_replicas: int = 0
    allowed_origins: str = "*"
    sources: str = ""
    ingest_sqs_url: str = ""
    ingest_sqs_region: str = ""
    ingest_sqs_key: str = ""
    ingest_sqs_secret: str = ""
    ingest_sqs_api_key: str = ""
    media: str = ""
    hooks: str = ""
    hook_allow: str = ""
    strict_calls: bool = False
    guests: bool = True
    admin_token: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    trusted_proxies: str = "127.0.0.1,::1"
    log_level: str = "info"
    log_format: str = "text"
    history_count: int = 1000
    history_age: float = 3600.0
    dedupe_window: float = 7200.0
    webhook_freshness: float = 3600.0
    webhook_max_bytes: int = 1_048_576
    custom_max_bytes: int = 5120
    http_connections: int = 5000
    head_timeout: float = 10.0
    frame_max_bytes: int = 65_536
    command_rate: float = 20.0
    command_burst: int = 100
    http_rate: int = 300
    first_frame_timeout: float = 10.0
    user_connections: int = 50
    watch_limit: int = 1000
    soft_buffer_bytes: int = 262_144
    hard_buffer_bytes: int = 4_194_304
    slow_timeout: float = 30.0
    publish_timeout: float = 3.0
    drain_notice: float = 0.0
    drain_timeout: float = 10.0
    outbox_bytes: int = 16_777_216
    dead_letter_bytes: int = 4_194_304
    hook_lease: float = 10.0
    hook_attempts: int = 2000

    @property
    def accepted_keys(self) -> Keys:
        """Return every accepted API key with its secrets, the main one first."""
        keys: dict[str, list[str]] = {self.api_key: [self.api_secret]} if self.api_key else {}
        for key, secret in _key_pairs(self.keys):
            keys.setdefault(key, []).append(secret)
        return keys

    @property
    def origins(self) -> tuple[str, ...]:
        """Return the allowed origins; ``("*",)`` means any."""
        return tuple(part.strip() for part in self.allowed_origins.split(",") if part.strip())


OPTIONS: Final[dict[str, Option]] = {
    "host": Option("address to listen on; 0.0.0.0 for every network"),
    "port": Option("port to listen on; 0 picks a free one and prints it"),
    "workers": Option("processes that share the port; more than 1 needs redis_url"),
    "api_key": Option("the relay's API key, public; clients send it as api_key"),
    "api_secret": Option("its secret: signs tokens and webhooks", secret=True),
    "keys": Option("more accepted keys, 'key:secret,key2:secret2', for rotation", secret=True),
    "redis_url": Option(
        "redis://[user:password@]host:port/db, redis+sentinel://host:port,host:port/name/db or "
        "redis+cluster://host:port,host:port; rediss for TLS; empty = embedded broker, one process",
        secret=True,
    ),
    "redis_prefix": Option("what every key and channel in Redis begins with"),
    "redis_replicas": Option(
        "replicas that must have an event before it is accepted; fewer in time = 503", "replicas"
    ),
    "allowed_origins": Option("origins of pages that may connect, comma separated; * = any"),
    "sources": Option("TOML file that lists webhook sources beside 'stream'"),
    "ingest_sqs_url": Option("SQS queue that Stream fills beside its webhooks; empty = none"),
    "ingest_sqs_region": Option("region of that queue; empty = as its address says"),
    "ingest_sqs_key": Option("access key that reads the queue; empty = AWS's usual places"),
    "ingest_sqs_secret": Option("secret of that access key", secret=True),
    "ingest_sqs_api_key": Option("API key of the Stream app that fills the queue; empty = api_key"),
    "media": Option("TOML file that describes the media server whose keys joinCall hands out"),
    "hooks": Option("TOML file that lists hooks: webhooks, queues and topics that get the events"),
    "hook_allow": Option(
        "networks that hooks may reach although they are not public, comma separated"
    ),
    "strict_calls": Option("watching or sending to a call that was never created is refused"),
    "guests": Option("POST /video/guest gives tokens to whoever knows the API key"),
    "admin_token": Option("bearer token that guards operators' endpoints", secret=True),
    "tls_cert": Option("certificate chain file (PEM); with tls_key the relay speaks TLS itself"),
    "tls_key": Option("private key file (PEM) of tls_cert"),
    "trusted_proxies": Option("addresses whose X-Forwarded-For and -Proto headers are believed"),
    "log_level": Option("debug, info, warning or error"),
    "log_format": Option("text for people, json for machines"),
    "history_count": Option("publications kept of each call", "publications"),
    "history_age": Option("how long a publication is kept", "seconds"),
    "dedupe_window": Option(
        "how long a repeat is recognised; at least webhook_freshness, and as long as the queue of "
        "ingest_sqs_url keeps a message",
        "seconds",
    ),
    "webhook_freshness": Option("how old a webhook's signed created_at may be", "seconds"),
    "webhook_max_bytes": Option("size of a webhook's body, uncompressed", "bytes"),
    "custom_max_bytes": Option("size of an event's custom as compact JSON; 0 = no limit", "bytes"),
    "http_connections": Option(
        "connections of one process that speak HTTP at once; 0 = no limit", "connections"
    ),
    "head_timeout": Option(
        "how long the head of an HTTP request, or a TLS handshake, may take", "seconds"
    ),
    "frame_max_bytes": Option("size of a message that a client sends on the socket", "bytes"),
    "command_rate": Option(
        "commands one socket may send in the long run; 0 = no limit", "per second"
    ),
    "command_burst": Option("commands one socket may send at once", "commands"),
    "http_rate": Option(
        "requests a user may make of each operation, over all processes; 0 = no limit",
        "per minute",
    ),
    "first_frame_timeout": Option("how long a socket may take to authenticate", "seconds"),
    "user_connections": Option("sockets one user may hold; 0 = no limit", "sockets"),
    "watch_limit": Option("calls one socket may watch at once", "calls"),
    "soft_buffer_bytes": Option(
        "unsent bytes of a socket above which volatile events skip it", "bytes"
    ),
    "hard_buffer_bytes": Option("unsent bytes of a socket above which it is cut off", "bytes"),
    "slow_timeout": Option(
        "how long a socket may stay above soft_buffer_bytes, or its machine take nothing", "seconds"
    ),
    "publish_timeout": Option(
        "how long a publisher waits for its answer: 503 after that", "seconds"
    ),
    "drain_notice": Option(
        "how long a stopping process is unready before it leaves its port", "seconds"
    ),
    "drain_timeout": Option("how long a stopping process takes to let its sockets go", "seconds"),
    "outbox_bytes": Option(
        "events owed to hooks in one of 256 partitions; beyond, the oldest become dead letters",
        "bytes",
    ),
    "dead_letter_bytes": Option(
        "dead letters kept in one of 256 partitions; beyond, the oldest are dropped", "bytes"
    ),
    "hook_lease": Option(
        "after how long without a sign of life others deliver what a process had to", "seconds"
    ),
    "hook_attempts": Option("attempts to deliver that a process may have under way", "attempts"),
}


def env_name(field: str) -> str:
    """Return the environment's name of a setting."""
    return PREFIX + field.upper()


def read(environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of an environment, with ``flags`` (by field name) over it.

    Raises ``SettingsError`` for an unknown ``RELAY_*`` name, with the nearest known one, and for a
    value that is malformed or does not fit the others.
    """
    texts = {name: value for name, value in environ.items() if _is_ours(name, value)}
    known = {env_name(field): field for field in Settings.__struct_fields__}
    for name in texts:
        if name not in known:
            raise SettingsError(_unknown(name, list(known)))
    given: dict[str, Any] = {known[name]: value for name, value in texts.items()}
    given.update({name: value for name, value in (flags or {}).items() if value is not None})
    settings = _converted(given)
    _check(settings)
    return settings


def _is_ours(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    # RELAY_PORT is both ours and what is injected: only the injected one is a URL.
    return not (_INJECTED.fullmatch(name) and (name != "RELAY_PORT" or "://" in value))


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else "'relay settings' lists the known ones"
    return f"{name} is not a setting: {hint}"


def _converted(given: dict[str, Any]) -> Settings:
    for field, value in given.items():
        kind = Settings.__annotations__[field]
        try:
            msgspec.convert(value, _KINDS[kind], strict=False)
        except msgspec.ValidationError:
            raise SettingsError(f"{env_name(field)}={value!r} must be {_WORDS[kind]}") from None
    return msgspec.convert(given, Settings, strict=False)


_KINDS: Final = {"str": str, "int": int, "float": float, "bool": bool}
_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


def _check(settings: Settings) -> None:
    _check_ranges(settings)
    _key_pairs(settings.keys)
    _check_queue(settings)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise SettingsError("RELAY_TLS_CERT and RELAY_TLS_KEY go together: set both or none")
    for field in ("tls_cert", "tls_key", "sources", "media", "hooks"):
        path = getattr(settings, field)
        if path and not Path(path).is_file():
            raise SettingsError(f"{env_name(field)}={path!r}: there is no such file")
    for field in ("trusted_proxies", "hook_allow"):
        try:
            forwarded.read_networks(getattr(settings, field))
        except ValueError as error:
            raise SettingsError(
                f"{env_name(field)} must list addresses and networks such as 10.0.0.0/8: {error}"
            ) from None
    if settings.webhook_freshness > settings.dedupe_window:
        raise SettingsError(
            "RELAY_WEBHOOK_FRESHNESS must not be over RELAY_DEDUPE_WINDOW: a webhook repeated in "
            "between would be published twice"
        )
    if settings.soft_buffer_bytes > settings.hard_buffer_bytes:
        raise SettingsError("RELAY_SOFT_BUFFER_BYTES must not be over RELAY_HARD_BUFFER_BYTES")
    if settings.workers > 1 and not settings.redis_url:
        raise SettingsError(
            "RELAY_WORKERS over 1 needs RELAY_REDIS_URL: without Redis each process would be a "
            "relay of its own"
        )


def _check_queue(settings: Settings) -> None:
    url, region = settings.ingest_sqs_url, settings.ingest_sqs_region
    if not url:
        return
    try:
        hook_fields.check_url(url, "RELAY_INGEST_SQS_URL", None)
        hook_fields.region(region, "RELAY_INGEST_SQS_REGION", "")
    except BadInput as error:
        raise SettingsError(error.message) from None
    if bool(settings.ingest_sqs_key) != bool(settings.ingest_sqs_secret):
        raise SettingsError(
            "RELAY_INGEST_SQS_KEY and RELAY_INGEST_SQS_SECRET go together: set both or none"
        )


SLOW_TIMEOUT_MOST_S: Final = 2_000_000
"""The kernel is told it in milliseconds, and a little more, as an int of C."""

_ZERO_MEANS_OFF: Final = (
    "port", "custom_max_bytes", "command_rate", "http_rate", "user_connections", "redis_replicas",
    "drain_notice", "http_connections",
)  # fmt: skip


def _check_ranges(settings: Settings) -> None:
    for field in Settings.__struct_fields__:
        value = getattr(settings, field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise SettingsError(f"{env_name(field)}={value} must be a number")
        if value < 0 or (value == 0 and field not in _ZERO_MEANS_OFF):
            raise SettingsError(f"{env_name(field)}={value} must be above 0")
    if settings.slow_timeout > SLOW_TIMEOUT_MOST_S:
        raise SettingsError(f"RELAY_SLOW_TIMEOUT must be at most {SLOW_TIMEOUT_MOST_S} seconds")
    if settings.port > 65535:
        raise SettingsError(f"RELAY_PORT={settings.port} must be a port, 0 to 65535")
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise SettingsError("RELAY_LOG_LEVEL must be debug, info, warning or error")
    if settings.log_format not in ("text", "json"):
        raise SettingsError("RELAY_LOG_FORMAT must be text or json")


def _key_pairs(text: str) -> list[tuple[str, str]]:
    pairs = [part.strip().partition(":") for part in text.split(",") if part.strip()]
    if not all(key and secret for key, _, secret in pairs):
        raise SettingsError("RELAY_KEYS must be 'key:secret,key2:secret2'")
    return [(key, secret) for key, _, secret in pairs]


def check_serve(settings: Settings) -> None:
    """Raise ``SettingsError`` when ``serve`` lacks what it cannot invent: a key and its secret."""
    for field in ("api_key", "api_secret"):
        if not getattr(settings, field):
            raise SettingsError(
                f"{env_name(field)} is not set: choose a key and a long random secret, e.g. "
                "RELAY_API_KEY=mykey RELAY_API_SECRET=$(openssl rand -hex 32), "
                "or try 'relay demo'"
            )
