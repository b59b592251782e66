"""Hooks: where the owner of the relay wants its events delivered, and how a request changes them.

Pure. ``PATCH /api/v2/app`` brings a list of hooks that is the whole truth: a known id is changed,
an entry without one is created, what is missing is deleted. Hooks of the operator's file are
``read_only``: no request changes or deletes them. Secrets are kept and never shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from relay import hook_fields
from relay.errors import BadInput, NotAllowed
from relay.forwarded import Network
from relay.hook_fields import REDACTED

MOST_HOOKS: Final = 2000
TIMEOUT_MS: Final = 6000
PENDING_LIMIT: Final = 100_000
CUSTOM: Final = "custom"


class HookType(StrEnum):
    """How a hook's deliveries are sent."""

    WEBHOOK = "webhook"
    SQS = "sqs"
    SNS = "sns"


class Timestamps(StrEnum):
    """How times are written in what a hook gets."""

    RFC3339 = "rfc3339"
    NANOSECONDS = "nanoseconds"


class AuthType(StrEnum):
    """With which credentials the relay asks AWS."""

    KEYS = "keys"
    """The hook's own."""
    RESOURCE = "resource"
    """Those of the relay's environment: variables, a profile, the machine's or the pod's role."""


class Aws(NamedTuple):
    """A queue or a topic, and how to get at it."""

    target: str
    region: str
    auth_type: AuthType
    key: str
    secret: str
    role_arn: str
    endpoint_url: str


class Hook(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A configured receiver. Times are nanoseconds since 1970.

    From ``ordered`` on the fields are the relay's own; the others are called as Stream calls them.
    """

    id: str
    hook_type: HookType
    enabled: bool = True
    event_types: tuple[str, ...] = ()
    product: str = "video"
    should_send_custom_events: bool = True
    timeout_ms: int = TIMEOUT_MS
    webhook_url: str = ""
    sqs_queue_url: str = ""
    sqs_region: str = ""
    sqs_auth_type: AuthType = AuthType.RESOURCE
    sqs_key: str = ""
    sqs_secret: str = ""
    sqs_role_arn: str = ""
    sns_topic_arn: str = ""
    sns_region: str = ""
    sns_auth_type: AuthType = AuthType.RESOURCE
    sns_key: str = ""
    sns_secret: str = ""
    sns_role_arn: str = ""
    created_at: int = 0
    updated_at: int = 0
    ordered: bool = False
    """Deliveries of one call one after another, in the order of their publication; FIFO queues and
    topics always."""
    timestamps: Timestamps = Timestamps.RFC3339
    compression: bool | None = None
    """Whether bodies are compressed by gzip; None: as the app's setting says."""
    gzip: bool = False
    """What ``compression`` and the app's setting come to."""
    retry_schedule: tuple[int, ...] = ()
    """Waits in seconds, each followed by one more attempt, after the retry table is exhausted."""
    pending_limit: int = PENDING_LIMIT
    """Deliveries that may wait for this hook; beyond it the oldest become dead letters."""
    endpoint_url: str = ""
    """A server that speaks SQS or SNS, instead of AWS."""
    read_only: bool = False
    """Set in the operator's file."""

    def __repr__(self) -> str:
        """Show what is not secret."""
        return f"Hook({shown(self)})"

    def wants(self, event_type: str) -> bool:
        """Tell whether an event of this type is owed to the hook."""
        if not self.enabled:
            return False
        if self.event_types:
            return event_type in self.event_types
        return event_type != CUSTOM or self.should_send_custom_events

    @property
    def timeout_s(self) -> float:
        """How long one attempt may take, in seconds."""
        return self.timeout_ms / 1000

    @property
    def is_fifo(self) -> bool:
        """Whether its queue or topic keeps the order of each message group."""
        return self.aws.target.endswith(".fifo")

    @property
    def aws(self) -> Aws:
        """The queue or the topic of an ``sqs`` or ``sns`` hook."""
        name = self.hook_type.value
        target = self.sqs_queue_url if self.hook_type is HookType.SQS else self.sns_topic_arn
        auth_type, key, secret, role_arn, region = (
            getattr(self, f"{name}_{part}")
            for part in ("auth_type", "key", "secret", "role_arn", "region")
        )
        endpoint = self.endpoint_url
        if not endpoint and self.hook_type is HookType.SQS:
            endpoint = hook_fields.endpoint_of_queue(target)
        return Aws(target, region, auth_type, key, secret, role_arn, endpoint)


class Hooks(msgspec.Struct, frozen=True, omit_defaults=True):
    """All hooks of the relay; ``compression`` is the app's ``enable_hook_payload_compression``."""

    hooks: tuple[Hook, ...] = ()
    compression: bool = False

    def by_id(self) -> dict[str, Hook]:
        """Return the hooks by id."""
        return {hook.id: hook for hook in self.hooks}


class Rules(NamedTuple):
    """What a change of hooks depends on besides the request."""

    now_ns: int
    new_id: Callable[[], str]
    networks: Sequence[Network] = ()
    """Networks that hooks may reach although they are not public."""
    aws: bool = True
    """Whether SQS and SNS are possible here."""


# -- changing -----------------------------------------------------------------------------------


def patched(current: Hooks, body: Mapping[str, Any], rules: Rules) -> Hooks:
    """Return the hooks as a PATCH of the app leaves them; what it does not name stays as it is.

    Raises ``BadInput`` naming the field by its path, e.g. ``event_hooks[2].webhook_url``, and
    ``NotAllowed`` for a change of what is read-only.
    """
    hook_fields.refuse_flat(body)
    compression = hook_fields.boolean(
        body.get("enable_hook_payload_compression"),
        "enable_hook_payload_compression",
        current.compression,
    )
    hooks = current.hooks
    given = body.get("event_hooks")
    if given is not None:
        fixed = tuple(hook for hook in hooks if hook.read_only)
        hooks = fixed + tuple(_listed(current, given, rules))
    return _settled(hooks, compression)


def with_file(current: Hooks, entries: object, rules: Rules) -> Hooks:
    """Return the hooks with those of the operator's file, which replace those of an older file.

    ``entries`` is the file's list ``hook``. Raises ``BadInput`` naming the field by its path, e.g.
    ``hook[0].webhook_url``; unlike in a request, a field that is not known is refused.
    """
    before = current.by_id()
    fixed = []
    for path, entry in hook_fields.entries(entries, "hook", MOST_HOOKS):
        hook_fields.refuse_unknown(entry, path, set(Hook.__struct_fields__) - _DERIVED)
        if not isinstance(entry.get("id"), str) or not entry["id"]:
            raise BadInput(f"{path}.id is missing: a hook of the file needs a name of its own")
        hook_id = hook_fields.hook_id(entry["id"], f"{path}.id")
        hook = _read(entry, path, Hook(id=hook_id, hook_type=HookType.WEBHOOK), None, rules)
        fixed.append(_stamped(msgspec.structs.replace(hook, read_only=True), before, rules.now_ns))
    _refuse_twice([(f"hook[{place}]", hook.id) for place, hook in enumerate(fixed)])
    names = {hook.id for hook in fixed}
    free = tuple(hook for hook in current.hooks if not hook.read_only and hook.id not in names)
    return _settled((*fixed, *free), current.compression)


_DERIVED: Final = {"gzip", "read_only", "created_at", "updated_at"}


def _settled(hooks: Sequence[Hook], compression: bool) -> Hooks:
    """Return the hooks with what follows from the app's setting."""
    return Hooks(
        tuple(
            msgspec.structs.replace(
                hook, gzip=compression if hook.compression is None else hook.compression
            )
            for hook in hooks
        ),
        compression,
    )


def _listed(current: Hooks, given: object, rules: Rules) -> list[Hook]:
    """Return the changeable hooks of a request's list."""
    before = current.by_id()
    found: list[Hook] = []
    named: list[tuple[str, str]] = []
    for path, entry in hook_fields.entries(given, "event_hooks", MOST_HOOKS):
        old = before.get(entry["id"]) if isinstance(entry.get("id"), str) else None
        if old is not None:
            named.append((path, old.id))
        new_id = old.id if old is not None else rules.new_id()
        hook = _read(entry, path, _start(old, new_id), old, rules)
        if old is not None and old.read_only:
            if _differs(hook, old):
                raise NotAllowed(
                    f"{path} is set in the operator's file of hooks and can only be changed there",
                    reason="read_only",
                )
            continue
        found.append(_stamped(hook, before, rules.now_ns))
    _refuse_twice(named)
    return found


def _start(old: Hook | None, hook_id: str) -> Hook:
    """Return what an entry that says nothing means.

    Stream's SDKs cannot carry the relay's own fields, so on a known hook these stay as they were.
    """
    kept = {} if old is None else {name: getattr(old, name) for name in _OWN}
    return Hook(id=hook_id, hook_type=HookType.WEBHOOK, **kept)


_OWN: Final = (
    "ordered", "timestamps", "compression", "retry_schedule", "pending_limit", "endpoint_url",
)  # fmt: skip


def _stamped(hook: Hook, before: Mapping[str, Hook], now_ns: int) -> Hook:
    """Return a hook with the times at which it was created and last changed."""
    old = before.get(hook.id)
    if old is None:
        return msgspec.structs.replace(hook, created_at=now_ns, updated_at=now_ns)
    updated_at = now_ns if _differs(hook, old) else old.updated_at
    return msgspec.structs.replace(hook, created_at=old.created_at, updated_at=updated_at)


def _differs(hook: Hook, old: Hook) -> bool:
    same = {name: getattr(old, name) for name in _DERIVED}
    return msgspec.structs.replace(hook, **same) != old


def _refuse_twice(named: Sequence[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for path, hook_id in named:
        if hook_id in seen:
            raise BadInput(f"{path}.id is that of {seen[hook_id]}.id: each hook is listed once")
        seen[hook_id] = path


# -- reading one entry --------------------------------------------------------------------------


def _read(entry: Mapping[str, Any], path: str, start: Hook, old: Hook | None, rules: Rules) -> Hook:
    """Return the hook that an entry describes, over what ``start`` says."""
    hook_fields.refuse_unsupported(entry, path)
    fields: dict[str, Any] = {}
    hook_type = _hook_type(entry.get("hook_type"), f"{path}.hook_type")
    for name, read in _READERS.items():
        if name in entry and not name.startswith(_OTHERS[hook_type]):
            fields[name] = read(entry[name], f"{path}.{name}", getattr(start, name))
    hook = msgspec.structs.replace(start, **fields, hook_type=hook_type)
    hook = _with_secrets(hook, old, path)
    hook = _CHECKS[hook_type](hook, path, rules)
    if hook.ordered and hook.retry_schedule:
        raise BadInput(
            f"{path}.retry_schedule must be empty where the order is kept: by then later events "
            "of the call have been delivered"
        )
    return hook


def _hook_type(value: object, path: str) -> HookType:
    if value == "pending_message":
        raise BadInput(f"{path} 'pending_message' belongs to chat, which the relay does not have")
    if value is None:
        raise BadInput(f"{path} is missing: 'webhook', 'sqs' or 'sns'")
    return hook_fields.word(value, path, HookType)


def _word(kind: type[StrEnum]) -> hook_fields.Reader:
    def read(value: object, path: str, default: Any) -> Any:
        return default if value in (None, "") else hook_fields.word(value, path, kind)

    return read


_READERS: Final[dict[str, hook_fields.Reader]] = {
    "enabled": hook_fields.boolean,
    "event_types": hook_fields.event_types,
    "product": hook_fields.product,
    "should_send_custom_events": hook_fields.boolean,
    "timeout_ms": hook_fields.whole(100, TIMEOUT_MS, "milliseconds"),
    "webhook_url": hook_fields.text,
    "sqs_queue_url": hook_fields.text,
    "sqs_region": hook_fields.region,
    "sqs_auth_type": _word(AuthType),
    "sqs_key": hook_fields.text,
    "sqs_secret": hook_fields.text,
    "sqs_role_arn": hook_fields.role_arn,
    "sns_topic_arn": hook_fields.text,
    "sns_region": hook_fields.region,
    "sns_auth_type": _word(AuthType),
    "sns_key": hook_fields.text,
    "sns_secret": hook_fields.text,
    "sns_role_arn": hook_fields.role_arn,
    "ordered": hook_fields.boolean,
    "timestamps": _word(Timestamps),
    "compression": hook_fields.boolean_or_none,
    "retry_schedule": hook_fields.retry_schedule,
    "pending_limit": hook_fields.whole(1, 1_000_000, "deliveries"),
    "endpoint_url": hook_fields.text,
}


def _with_secrets(hook: Hook, old: Hook | None, path: str) -> Hook:
    """Return a hook whose redacted or absent secrets are those it had."""
    kept = {}
    for name in ("sqs_secret", "sns_secret"):
        if name.startswith(_OTHERS[hook.hook_type]):
            continue
        given = getattr(hook, name)
        if given and given != REDACTED:
            continue
        kept[name] = getattr(old, name) if old is not None else ""
        if given == REDACTED and not kept[name]:
            raise BadInput(
                f"{path}.{name} is what the relay shows instead of a secret, and it has none to "
                "keep here: send the secret itself"
            )
    return msgspec.structs.replace(hook, **kept)


def _check_webhook(hook: Hook, path: str, rules: Rules) -> Hook:
    hook_fields.check_url(hook.webhook_url, f"{path}.webhook_url", rules.networks)
    if hook.endpoint_url:
        raise BadInput(f"{path}.endpoint_url is for sqs and sns hooks")
    return hook


def _check_sqs(hook: Hook, path: str, rules: Rules) -> Hook:
    # Not where the relay connects to, when there is an endpoint: then it is only a name.
    networks = None if hook.endpoint_url else rules.networks
    hook_fields.check_url(hook.sqs_queue_url, f"{path}.sqs_queue_url", networks)
    return _check_aws(hook, path, rules, hook_fields.region_of_queue(hook.sqs_queue_url))


def _check_sns(hook: Hook, path: str, rules: Rules) -> Hook:
    region = hook_fields.region_of_topic(hook.sns_topic_arn, f"{path}.sns_topic_arn")
    return _check_aws(hook, path, rules, region)


def _check_aws(hook: Hook, path: str, rules: Rules, region: str) -> Hook:
    """Return an AWS hook with its region and the way it authenticates filled in."""
    name = hook.hook_type.value
    if not rules.aws:
        raise BadInput(
            f"{path}.hook_type {name!r} needs the package aiobotocore: install relay[aws]"
        )
    if hook.endpoint_url:
        hook_fields.check_url(hook.endpoint_url, f"{path}.endpoint_url", rules.networks)
    aws = hook.aws
    keyed = aws.auth_type is AuthType.KEYS or bool(aws.key)
    if keyed and not (aws.key and aws.secret):
        missing = "secret" if aws.key else "key"
        raise BadInput(f"{path}.{name}_{missing} is missing: {name}_auth_type 'keys' needs both")
    return msgspec.structs.replace(
        hook,
        ordered=hook.ordered or hook.is_fifo,
        **{
            f"{name}_region": aws.region or region,
            f"{name}_auth_type": AuthType.KEYS if keyed else AuthType.RESOURCE,
            f"{name}_secret": aws.secret if keyed else "",
        },
    )


_CHECKS: Final = {
    HookType.WEBHOOK: _check_webhook,
    HookType.SQS: _check_sqs,
    HookType.SNS: _check_sns,
}


# -- showing ------------------------------------------------------------------------------------


def shown(hook: Hook) -> dict[str, Any]:
    """Return what is read back of a hook: everything but its secrets, and nothing that is empty."""
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name in hook.__struct_fields__
        if (value := getattr(hook, name)) not in ("", None) and name not in _HIDDEN
    }
    for name in ("sqs_secret", "sns_secret"):
        if name in fields:
            fields[name] = REDACTED
    others = _OTHERS[hook.hook_type]
    return {name: value for name, value in fields.items() if not name.startswith(others)}


_HIDDEN: Final = {"gzip"}
_OTHERS: Final = {
    HookType.WEBHOOK: ("sqs_", "sns_"),
    HookType.SQS: ("webhook_", "sns_"),
    HookType.SNS: ("webhook_", "sqs_"),
}
"""How the fields begin that a type of hook has no use for: they are neither read nor shown."""
