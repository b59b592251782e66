"""Hooks: what a PATCH of the app makes of them, what is refused and how, what is shown."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import hooks, wire
from relay.errors import BadInput, NotAllowed, Refused
from relay.forwarded import read_networks
from relay.hook_fields import REDACTED
from relay.hooks import AuthType, Hook, Hooks, HookType, Rules, Timestamps

NOW_NS = 1_800_000_000 * 10**9
QUEUE = "https://sqs.eu-central-1.amazonaws.com/123456789012/calls"
TOPIC = "arn:aws:sns:us-east-1:123456789012:calls"
WEBHOOK: dict[str, Any] = {"hook_type": "webhook", "webhook_url": "https://app.example/events"}
SQS = {"hook_type": "sqs", "sqs_queue_url": QUEUE, "sqs_key": "AKIA", "sqs_secret": "very-secret"}
SNS = {"hook_type": "sns", "sns_topic_arn": TOPIC, "sns_key": "AKIA", "sns_secret": "so-secret"}


def rules(now_ns: int = NOW_NS, allow: str = "", *, aws: bool = True) -> Rules:
    numbers = itertools.count(1)
    return Rules(now_ns, lambda: f"id{next(numbers)}", read_networks(allow), aws)


NONE = Hooks()


def patch(entries: object, current: Hooks = NONE, **given: Any) -> Hooks:
    return hooks.patched(current, {"event_hooks": entries}, rules(**given))


def one(entry: dict[str, Any], **given: Any) -> Hook:
    [hook] = patch([entry], **given).hooks
    return hook


def refusal(entry: object, **given: Any) -> str:
    with pytest.raises(BadInput) as caught:
        patch([entry], **given)
    return caught.value.message


# -- the list is the whole truth ------------------------------------------------------------------


def test_an_entry_without_an_id_is_created_with_one() -> None:
    hook = one(WEBHOOK)
    assert (hook.id, hook.created_at, hook.updated_at) == ("id1", NOW_NS, NOW_NS)
    assert hook.hook_type is HookType.WEBHOOK
    assert hook.webhook_url == "https://app.example/events"
    assert (hook.enabled, hook.event_types, hook.timeout_s) == (True, (), 6.0)
    assert (hook.timestamps, hook.ordered, hook.gzip) == (Timestamps.RFC3339, False, False)


@pytest.mark.parametrize("unknown", ["mine", "", None, 7, [], "x" * 10_000])
def test_an_id_nobody_knows_becomes_one_of_ours(unknown: object) -> None:
    assert one({**WEBHOOK, "id": unknown}).id == "id1"


def test_a_known_id_is_changed_and_what_is_missing_is_deleted() -> None:
    before = patch([WEBHOOK, {**WEBHOOK, "enabled": False}])
    entry = {**WEBHOOK, "id": "id2", "webhook_url": "https://new.example/"}
    [hook] = patch([entry], before, now_ns=NOW_NS + 5).hooks
    assert (hook.id, hook.webhook_url, hook.enabled) == ("id2", "https://new.example/", True)
    assert (hook.created_at, hook.updated_at) == (NOW_NS, NOW_NS + 5)
    assert patch([], before).hooks == ()


def test_what_a_request_does_not_name_stays() -> None:
    before = patch([WEBHOOK])
    assert hooks.patched(before, {}, rules()) == before
    assert hooks.patched(before, {"event_hooks": None, "grants": {}}, rules()) == before


def test_a_hook_that_comes_back_as_it_was_shown_is_the_same_hook() -> None:
    before = patch([WEBHOOK, SQS, SNS, {**WEBHOOK, "retry_schedule": [60]}])
    shown = [hooks.shown(hook) for hook in before.hooks]
    assert patch(shown, before, now_ns=NOW_NS + 5) == before


def test_the_relays_own_fields_stay_on_a_hook_that_an_sdk_cannot_describe_in_full() -> None:
    own = {"timestamps": "nanoseconds", "retry_schedule": [60], "compression": True}
    before = patch([{**WEBHOOK, **own, "event_types": ["custom"]}])
    [hook] = patch([{**WEBHOOK, "id": "id1"}], before).hooks
    assert (hook.timestamps, hook.retry_schedule) == ("nanoseconds", (60,))
    assert hook.gzip
    assert hook.event_types == ()  # Stream's own field: absent means every type
    again = {**WEBHOOK, "id": "id1", "retry_schedule": [], "compression": None}
    [hook] = patch([again], before).hooks
    assert (hook.retry_schedule, hook.gzip) == ((), False)


def test_null_is_the_default() -> None:
    named = dict.fromkeys(Hook.__struct_fields__)
    assert one({**named, **WEBHOOK}) == one(WEBHOOK)
    assert one({**named, **SQS}) == one(SQS)


def test_an_id_stands_once_in_a_list() -> None:
    before = patch([WEBHOOK])
    again = {**WEBHOOK, "id": "id1"}
    with pytest.raises(BadInput) as caught:
        patch([again, WEBHOOK, again], before)
    assert caught.value.message.startswith("event_hooks[2].id is that of event_hooks[0].id")


# -- compression ----------------------------------------------------------------------------------


def test_the_apps_compression_is_for_hooks_that_do_not_say() -> None:
    before = patch([WEBHOOK, {**WEBHOOK, "compression": False}, {**WEBHOOK, "compression": True}])
    assert [hook.gzip for hook in before.hooks] == [False, False, True]
    after = hooks.patched(before, {"enable_hook_payload_compression": True}, rules(NOW_NS + 5))
    assert [hook.gzip for hook in after.hooks] == [True, False, True]
    assert after.compression
    assert [hook.updated_at for hook in after.hooks] == [NOW_NS] * 3
    with pytest.raises(BadInput, match="enable_hook_payload_compression must be true or false"):
        hooks.patched(before, {"enable_hook_payload_compression": "yes"}, rules())


# -- which events ---------------------------------------------------------------------------------


def test_a_hook_gets_every_type_or_those_it_names() -> None:
    every, some = one(WEBHOOK), one({**WEBHOOK, "event_types": ["custom", "call.ended", "custom"]})
    assert every.wants("call.some_future_event")
    assert some.event_types == ("custom", "call.ended")
    assert some.wants("call.ended")
    assert not some.wants("call.created")
    assert not one({**WEBHOOK, "enabled": False}).wants("custom")


def test_custom_events_can_be_left_out() -> None:
    entry = {**WEBHOOK, "should_send_custom_events": False}
    assert not one(entry).wants("custom")
    assert one(entry).wants("call.ended")
    assert one({**entry, "event_types": ["custom"]}).wants("custom")


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "name"), [(SQS, "sqs_secret"), (SNS, "sns_secret")])
def test_secrets_are_kept_and_never_shown(entry: dict[str, Any], name: str) -> None:
    before = patch([entry])
    assert hooks.shown(before.hooks[0])[name] == REDACTED
    assert entry[name] not in repr(before)
    known = {**entry, "id": "id1"}
    absent = {field: value for field, value in known.items() if field != name}
    for again in (absent, {**known, name: REDACTED}, {**known, name: ""}, {**known, name: None}):
        [hook] = patch([again], before).hooks
        assert getattr(hook, name) == entry[name]
    [hook] = patch([{**known, name: "another"}], before).hooks
    assert getattr(hook, name) == "another"


def test_a_secret_goes_with_its_key() -> None:
    before = patch([SQS])
    [hook] = patch([{"id": "id1", "hook_type": "sqs", "sqs_queue_url": QUEUE}], before).hooks
    assert (hook.sqs_auth_type, hook.sqs_key, hook.sqs_secret) == (AuthType.RESOURCE, "", "")


def test_what_a_type_of_hook_has_no_use_for_is_not_kept() -> None:
    before = patch([{**SQS, **SNS, **WEBHOOK}])
    assert before.hooks[0].sqs_secret == before.hooks[0].sns_secret == ""
    [hook] = patch([{**WEBHOOK, **SQS, "id": "id1", "sns_secret": "x"}], before).hooks
    assert (hook.hook_type, hook.webhook_url, hook.sns_secret) == (HookType.SQS, "", "")
    assert not any(name.startswith(("webhook_", "sns_")) for name in hooks.shown(hook))


def test_there_is_no_secret_to_keep_for_a_hook_nobody_knows() -> None:
    message = refusal({**SQS, "sqs_secret": REDACTED})
    assert message.startswith("event_hooks[0].sqs_secret is what the relay shows")
    before = patch([SNS])
    assert "sqs_secret" in refusal({**SQS, "id": "id1", "sqs_secret": REDACTED}, current=before)


def test_hooks_survive_being_written_down() -> None:
    before = patch([WEBHOOK, {**SQS, "ordered": True}, SNS])
    again = wire.decode(wire.encode(before))
    assert hooks.msgspec.convert(again, Hooks) == before


# -- SQS and SNS ----------------------------------------------------------------------------------


def test_region_and_authentication_follow_from_the_rest() -> None:
    queue, topic = one(SQS).aws, one(SNS).aws
    assert (queue.target, queue.region, queue.auth_type) == (QUEUE, "eu-central-1", AuthType.KEYS)
    assert (topic.target, topic.region, topic.secret) == (TOPIC, "us-east-1", "so-secret")
    role = "arn:aws:iam::123456789012:role/relay"
    byrole = one({"hook_type": "sqs", "sqs_queue_url": QUEUE, "sqs_role_arn": role}).aws
    assert (byrole.auth_type, byrole.role_arn, byrole.key) == (AuthType.RESOURCE, role, "")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.us-gov-west-1.amazonaws.com/1/q", "us-gov-west-1"),
        ("https://eu-west-1.queue.amazonaws.com/1/q", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
    ],
)
def test_aws_writes_the_region_into_the_address(url: str, region: str) -> None:
    assert one({"hook_type": "sqs", "sqs_queue_url": url}).aws.region == region


@pytest.mark.parametrize(
    ("url", "region", "endpoint"),
    [
        (QUEUE, "eu-central-1", ""),
        ("https://vpce-1-x.sqs.eu-west-3.vpce.amazonaws.com/1/q", "eu-west-3",
         "https://vpce-1-x.sqs.eu-west-3.vpce.amazonaws.com"),
        ("https://mq.example:9324/1/q", "us-east-1", "https://mq.example:9324"),
        ("https://sqs.eu-west-1.amazonaws.com.evil.example/1/q", "us-east-1",
         "https://sqs.eu-west-1.amazonaws.com.evil.example"),
    ],
)  # fmt: skip
def test_a_queue_that_is_not_at_awss_own_address_is_asked_for_where_it_is(
    url: str, region: str, endpoint: str
) -> None:
    aws = one({**SQS, "sqs_queue_url": url}).aws
    assert (aws.region, aws.endpoint_url) == (region, endpoint)


@pytest.mark.parametrize(
    "entry", [{**SQS, "sqs_queue_url": f"{QUEUE}.fifo"}, {**SNS, "sns_topic_arn": f"{TOPIC}.fifo"}]
)
def test_fifo_queues_and_topics_get_each_calls_events_in_order(entry: dict[str, Any]) -> None:
    assert one(entry).ordered
    assert "retry_schedule must be empty" in refusal({**entry, "retry_schedule": [60]})
    assert not one(SQS).ordered


def test_a_server_of_ones_own_speaks_sqs_and_sns() -> None:
    local = {"endpoint_url": "http://10.0.0.5:9324", "sqs_queue_url": "http://localhost:9324/0/q"}
    entry = {**SQS, **local, "sqs_region": "eu-north-1"}
    aws = one(entry, allow="10.0.0.0/8").aws
    assert (aws.endpoint_url, aws.region) == ("http://10.0.0.5:9324", "eu-north-1")
    assert "event_hooks[0].endpoint_url: 10.0.0.5" in refusal(entry)


# -- refusals name the field ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "event_hooks[0] must be a JSON object"),
        ([], "event_hooks[0] must be a JSON object"),
        ({}, "event_hooks[0].hook_type is missing: 'webhook', 'sqs' or 'sns'"),
        ({"hook_type": "kafka"}, "event_hooks[0].hook_type must be 'webhook', 'sqs' or 'sns'"),
        ({"hook_type": "pending_message"}, "event_hooks[0].hook_type 'pending_message' belongs to"),
        ({"hook_type": "webhook"}, "event_hooks[0].webhook_url is missing"),
        ({**WEBHOOK, "enabled": "yes"}, "event_hooks[0].enabled must be true or false"),
        ({**WEBHOOK, "event_types": "custom"}, "event_hooks[0].event_types must be a list"),
        ({**WEBHOOK, "event_types": ["custom", "*"]}, "event_hooks[0].event_types[1] must be"),
        (
            {**WEBHOOK, "event_types": ["a"] * 201},
            "event_hooks[0].event_types must be a list of at",
        ),
        ({**WEBHOOK, "product": "chat"}, "event_hooks[0].product must be 'video' or 'all'"),
        ({**WEBHOOK, "timeout_ms": 99}, "event_hooks[0].timeout_ms must be 100 to 6000"),
        ({**WEBHOOK, "timeout_ms": 6001}, "event_hooks[0].timeout_ms must be 100 to 6000"),
        ({**WEBHOOK, "timeout_ms": True}, "event_hooks[0].timeout_ms must be"),
        ({**WEBHOOK, "timestamps": "iso"}, "event_hooks[0].timestamps must be 'rfc3339' or"),
        ({**WEBHOOK, "compression": "gzip"}, "event_hooks[0].compression must be true or false"),
        ({**WEBHOOK, "retry_schedule": [59]}, "event_hooks[0].retry_schedule[0] must be 60 to"),
        ({**WEBHOOK, "retry_schedule": [60, None]}, "event_hooks[0].retry_schedule[1] must be"),
        ({**WEBHOOK, "retry_schedule": [60] * 21}, "event_hooks[0].retry_schedule must be a list"),
        (
            {**WEBHOOK, "retry_schedule": [60], "ordered": True},
            "event_hooks[0].retry_schedule must be empty where the order is kept",
        ),
        ({**WEBHOOK, "pending_limit": 0}, "event_hooks[0].pending_limit must be 1 to 1000000"),
        ({**WEBHOOK, "failover_config": {"mode": "s3"}}, "event_hooks[0].failover_config is not"),
        (
            {**WEBHOOK, "endpoint_url": "https://a.example"},
            "event_hooks[0].endpoint_url is for sqs",
        ),
        ({**SQS, "sqs_queue_url": ""}, "event_hooks[0].sqs_queue_url is missing"),
        ({**SQS, "sqs_region": "Europe"}, "event_hooks[0].sqs_region must be an AWS region"),
        ({**SQS, "sqs_role_arn": "role"}, "event_hooks[0].sqs_role_arn must be a role"),
        ({**SQS, "sqs_auth_type": "magic"}, "event_hooks[0].sqs_auth_type must be 'keys' or"),
        ({**SQS, "sqs_secret": ""}, "event_hooks[0].sqs_secret is missing"),
        ({**SQS, "sqs_key": "", "sqs_auth_type": "keys"}, "event_hooks[0].sqs_key is missing"),
        ({**SQS, "sqs_key": "a b"}, "event_hooks[0].sqs_key must be a string of at most"),
        ({**SNS, "sns_topic_arn": None}, "event_hooks[0].sns_topic_arn is missing"),
        ({**SNS, "sns_topic_arn": "calls"}, "event_hooks[0].sns_topic_arn must be a topic"),
    ],
)
def test_a_refusal_names_the_field(entry: object, message: str) -> None:
    assert refusal(entry).startswith(message)


@pytest.mark.parametrize(
    "url",
    [
        "app.example", "ftp://app.example/", "//app.example", "https://", "https:///path",
        "https://user:password@app.example/", "https://user@app.example/", "https://@app.example/",
        "https://app.example:0/", "https://app.example:99999/", "https://app.example:x/",
        "https://app.example/#part", "https://app.example\\@evil.example/", "https://[::1/",
        "https://app.example/a b", "https://app.example/\n", "https://ümlaut.example/",
        "https://%31%32%37.0.0.1/", "https://256.1.1.1/", "javascript:alert(1)", "http:app.example",
        "https://app.example/" + "x" * 2048, 7, ["https://app.example"],
    ],
)  # fmt: skip
def test_a_webhook_needs_a_plain_http_url(url: object) -> None:
    assert refusal({**WEBHOOK, "webhook_url": url}).startswith("event_hooks[0].webhook_url")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:10.0.0.1]",
     "[64:ff9b::7f00:1]", "169.254.169.254", "localhost", "10.0.0.1:8080", "[fe80::1%25eth0]"],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused_where_it_is_written(host: str) -> None:
    message = refusal({**WEBHOOK, "webhook_url": f"http://{host}/"})
    assert message.startswith("event_hooks[0].webhook_url")
    assert "RELAY_HOOK_ALLOW" in message
    assert "RELAY_HOOK_ALLOW" in refusal({**SQS, "sqs_queue_url": f"http://{host}/1/q"})


def test_an_operator_can_allow_it() -> None:
    entry = {**WEBHOOK, "webhook_url": "http://127.0.0.1:9000/"}
    assert one(entry, allow="127.0.0.0/8").webhook_url == "http://127.0.0.1:9000/"


def test_there_are_not_endlessly_many() -> None:
    with pytest.raises(BadInput, match="event_hooks has 2001 entries, at most 2000"):
        patch([WEBHOOK] * 2001)
    with pytest.raises(BadInput, match="event_hooks must be a list of hooks"):
        patch({"0": WEBHOOK})


def test_without_the_library_sqs_and_sns_are_refused_when_they_are_configured() -> None:
    assert "event_hooks[0].hook_type 'sqs' needs the package aiobotocore" in refusal(SQS, aws=False)
    assert "install relay[aws]" in refusal(SNS, aws=False)
    assert one(WEBHOOK, aws=False).hook_type is HookType.WEBHOOK


@pytest.mark.parametrize("name", ["webhook_url", "webhook_events", "sqs_url", "sns_topic_arn"])
def test_the_older_fields_of_the_app_are_refused_and_say_what_to_use(name: str) -> None:
    with pytest.raises(BadInput, match=f"{name} is not supported: list a hook of hook_type"):
        hooks.patched(Hooks(), {name: "x"}, rules())
    assert hooks.patched(Hooks(), {name: ""}, rules()) == Hooks()


# -- the operator's file --------------------------------------------------------------------------


FILE = [{**WEBHOOK, "id": "billing", "ordered": True}]


def test_hooks_of_the_file_survive_a_patch_and_cannot_be_changed_by_one() -> None:
    before = hooks.with_file(patch([WEBHOOK]), FILE, rules())
    assert [(hook.id, hook.read_only) for hook in before.hooks] == [
        ("billing", True),
        ("id1", False),
    ]
    assert [hook.id for hook in patch([], before).hooks] == ["billing"]
    same = hooks.shown(before.hooks[0])
    assert patch([same, {**WEBHOOK, "id": "id1"}], before) == before
    with pytest.raises(NotAllowed, match=r"event_hooks\[0\] is set in the operator's file"):
        patch([{**same, "enabled": False}], before)


def test_the_file_is_the_whole_truth_about_its_own_hooks() -> None:
    before = hooks.with_file(patch([WEBHOOK]), FILE, rules())
    changed = [{**FILE[0], "webhook_url": "https://b.example/"}, {**WEBHOOK, "id": "more"}]
    after = hooks.with_file(before, changed, rules(NOW_NS + 5))
    assert [hook.id for hook in after.hooks] == ["billing", "more", "id1"]
    assert [(hook.created_at, hook.updated_at) for hook in after.hooks[:2]] == [
        (NOW_NS, NOW_NS + 5),
        (NOW_NS + 5, NOW_NS + 5),
    ]
    assert hooks.with_file(before, FILE, rules(NOW_NS + 5)) == before
    assert [hook.id for hook in hooks.with_file(before, [], rules()).hooks] == ["id1"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "hook must be a list of hooks"),
        ([WEBHOOK], "hook[0].id is missing"),
        ([{**WEBHOOK, "id": "a b"}], "hook[0].id must be 1 to 64 letters"),
        (
            [{**FILE[0], "orderd": True}],
            "hook[0].orderd is not a field of a hook: did you mean ord",
        ),
        ([{**FILE[0], "zzz": 1}], "hook[0].zzz is not a field of a hook: it has no such field"),
        ([{**FILE[0], "gzip": True}], "hook[0].gzip is not a field"),
        ([*FILE, *FILE], "hook[1].id is that of hook[0].id"),
        (
            [{**FILE[0], "webhook_url": "http://127.0.0.1/"}],
            "hook[0].webhook_url: 127.0.0.1 is not",
        ),
    ],
)
def test_a_mistake_in_the_file_is_refused_by_its_place(entries: object, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        hooks.with_file(Hooks(), entries, rules())
    assert caught.value.message.startswith(message)


# -- hostile input --------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
PLAUSIBLE = st.sampled_from(
    [REDACTED, "webhook", "sqs", "sns", "http://[::1]/", "https://a.example/", QUEUE, TOPIC, "keys",
     "id1", "billing", "custom", "", "x" * 5000, "\0", "é", -1, 0, 60, 10**40, float("nan"), True]
)  # fmt: skip
ENTRY = st.dictionaries(
    st.sampled_from([*Hook.__struct_fields__, "failover_config", "other"]),
    ANYTHING | PLAUSIBLE,
    max_size=8,
)


@given(st.lists(ENTRY, max_size=4) | ANYTHING, ANYTHING)
def test_any_json_is_a_list_of_hooks_or_a_refusal(entries: object, compression: object) -> None:
    before = hooks.with_file(patch([SQS]), FILE, rules())
    body = {"event_hooks": entries, "enable_hook_payload_compression": compression}
    try:
        after = hooks.patched(before, body, rules(NOW_NS + 5))
    except Refused as error:
        assert error.message
        assert "very-secret" not in error.message
        return
    assert after.hooks[0].id == "billing"
    for hook in after.hooks:
        assert "very-secret" not in str(hooks.shown(hook))
        wire.encode(hooks.shown(hook))
