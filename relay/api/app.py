"""The app's settings, as far as the relay has them: its hooks.

``PATCH /api/v2/app`` is what ``update_app(event_hooks=…)`` of Stream's SDKs sends. Other settings
are ignored, as Stream ignores what it does not know, and read back with the values they have here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response

from relay import hooks, http, logs
from relay.api.context import Caller, Context
from relay.broker import HookList, Store, Unavailable
from relay.errors import BadInput
from relay.hooks import Hook, Hooks, HookType, Rules

log = logs.get(__name__)

TRIES: Final = 10
"""Times that a change of hooks is made anew when others change them too."""

_CHECK_FIELDS: Final = {
    HookType.SQS: ("sqs_url", "sqs_queue_url"),
    HookType.SNS: ("sns_topic_arn", "sns_topic_arn"),
}
"""What a check calls the queue or topic, and what a hook calls it."""


async def get(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``GET /api/v2/app``."""
    caller.check_server()
    found = await api.store.hooks()
    return http.answer(request, {"app": _shown(api, found.hooks)})


async def update(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``PATCH /api/v2/app``: from the answer on every event is owed to the new hooks."""
    caller.check_server()
    body = await api.body(request)
    rules = hook_rules(api)
    saved = await change_hooks(api.store, lambda now: hooks.patched(now, body, rules), rules.now_ns)
    return http.answer(request, {"app": _shown(api, saved.hooks)})


async def check_sqs(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST /api/v2/check_sqs``."""
    return await _check(api, request, caller, HookType.SQS)


async def check_sns(api: Context, request: Request, caller: Caller) -> Response:
    """Answer ``POST /api/v2/check_sns``."""
    return await _check(api, request, caller, HookType.SNS)


def hook_rules(api: Context) -> Rules:
    """Return what a change of hooks depends on here and now."""
    return Rules(api.clock(), lambda: str(uuid4()), api.hook_networks, api.aws)


async def change_hooks(store: Store, change: Callable[[Hooks], Hooks], now_ns: int) -> HookList:
    """Change the hooks and return them as they are then: every event is owed to these.

    ``change`` is asked again when others came in between. Raises what it raises, ``Unavailable``.
    """
    for _ in range(TRIES):
        before = await store.hooks()
        after = change(before.hooks)
        if after == before.hooks:
            await store.tell_hooks(before)  # perhaps a repeat: the first save may have been cut off
            return before
        if saved := await store.save_hooks(after, before, now_ns // 1_000_000):
            log.info("hooks changed", hooks=len(after.hooks), version=saved.version)
            return saved
    raise Unavailable("the hooks are being changed by too many at once: try again")


# -- checks ---------------------------------------------------------------------------------------


async def _check(api: Context, request: Request, caller: Caller, hook_type: HookType) -> Response:
    """Ask the queue or topic that a request describes, or each one that is configured."""
    caller.check_server()
    body = await api.body(request)
    for hook in await _to_check(api, body, hook_type):
        checked = await api.receivers.check(hook)
        if checked.error is not None:
            content = {"status": "error", "error": checked.error, "data": {"hook_id": hook.id}}
            return http.answer(request, content, 201)
    return http.answer(request, {"status": "ok", "data": checked.data}, 201)


async def _to_check(api: Context, body: dict[str, Any], hook_type: HookType) -> list[Hook]:
    given, field = _CHECK_FIELDS[hook_type]
    known = [h for h in (await api.store.hooks()).hooks.hooks if h.hook_type is hook_type]
    target = body.get(given) or body.get(field)
    if not target:
        if not known:
            raise BadInput(f"{given} is missing, and no hook of this type is configured")
        return known
    same = [hook for hook in known if hook.aws.target == target]
    if same and not body.get(f"{hook_type}_secret"):
        return same
    described = {**body, "hook_type": hook_type.value, field: target, "id": None}
    try:
        found = hooks.patched(Hooks(), {"event_hooks": [described]}, hook_rules(api))
    except BadInput as error:
        message = error.message.replace("event_hooks[0].", "").replace(field, given, 1)
        raise BadInput(message, reason=error.reason) from None
    return list(found.hooks)


# -- the app, in every field that Stream's SDKs look for ------------------------------------------


def _shown(api: Context, current: Hooks) -> dict[str, Any]:
    return {
        **_APP,
        "guest_user_creation_disabled": not api.guests,
        "enable_hook_payload_compression": current.compression,
        "event_hooks": [hooks.shown(hook) for hook in current.hooks],
    }


_NONE: Final = dict.fromkeys(
    (
        "custom_action_handler_url", "enforce_unique_usernames", "moderation_webhook_url",
        "organization", "placement", "sns_key", "sns_secret", "sns_topic_arn", "sqs_key",
        "sqs_secret", "sqs_url", "suspended_explanation", "webhook_url",
    ),
    "",
)  # fmt: skip
_OFF: Final = dict.fromkeys(
    (
        "allow_multi_user_devices", "async_url_enrich_enabled", "auto_translation_enabled",
        "campaign_enabled", "disable_auth_checks", "disable_permissions_checks",
        "feed_audit_logs_enabled", "image_moderation_enabled",
        "member_custom_on_mentioned_users_enabled", "member_custom_on_messages_enabled",
        "member_custom_on_typing_events_enabled", "moderation_audio_call_moderation_enabled",
        "moderation_enabled", "moderation_keyframe_video_enabled",
        "moderation_llm_configurability_enabled", "moderation_multitenant_blocklist_enabled",
        "moderation_video_call_moderation_enabled", "multi_tenant_enabled", "suspended",
        "user_response_time_enabled",
    ),
    False,
)  # fmt: skip
_APP: Final[dict[str, Any]] = {
    **_NONE,
    **_OFF,
    "id": 1,
    "name": "relay",
    "permission_version": "v2",
    "use_hook_v2": True,
    "cdn_expiration_seconds": 0,
    "max_aggregated_activities_length": 0,
    "reminders_interval": 0,
    "user_search_disallowed_roles": [],
    "webhook_events": [],
    "call_types": {},
    "channel_configs": {},
    "grants": {},
    "policies": {},
    "file_upload_config": {"size_limit": 0},
    "image_upload_config": {"size_limit": 0},
    "push_notifications": {
        "offline_only": False,
        "version": "v2",
        "apn": {"development": False, "enabled": False},
        "firebase": {"enabled": False},
        "huawei": {"enabled": False},
        "xiaomi": {"enabled": False},
    },
}
"""Stream's other settings, all off: without them its Python SDK warns of each one."""
