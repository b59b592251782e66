"""The app's hooks over HTTP: changed by servers, read back without secrets, asked whether there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.api.app import change_hooks
from relay.api.hooks_file import HooksFile
from relay.broker import HookList
from relay.broker.memory import MemoryOutbox, MemoryStore
from relay.errors import Unavailable
from relay.forwarded import read_networks
from relay.hook_fields import REDACTED
from relay.hooks import Hook, Hooks, HookType, Rules
from relay.settings import SettingsError
from tests.edges import NOW_NS, Edges, edges, token

pytestmark = pytest.mark.anyio

APP, PARAMS = "/api/v2/app", {"api_key": "key"}
WEBHOOK = {"hook_type": "webhook", "webhook_url": "https://app.example/events"}
QUEUE = "https://sqs.eu-central-1.amazonaws.com/123456789012/calls"
SQS = {"hook_type": "sqs", "sqs_queue_url": QUEUE, "sqs_key": "AKIA", "sqs_secret": "very-secret"}
TOPIC = "arn:aws:sns:us-east-1:123456789012:calls"


async def patch(relay: Edges, body: object, **headers: str) -> Any:
    return await relay.client.patch(APP, json=body, params=PARAMS, headers=headers or token())


async def read(relay: Edges) -> dict[str, Any]:
    response = await relay.client.get(APP, params=PARAMS, headers=token())
    assert response.status_code == 200
    app: dict[str, Any] = response.json()["app"]
    return app


async def test_a_server_lists_its_hooks_and_reads_them_back_without_secrets(relay: Edges) -> None:
    response = await patch(relay, {"event_hooks": [WEBHOOK, SQS]})
    assert response.status_code == 200
    assert response.json()["app"] == await read(relay)
    webhook, queue = (await read(relay))["event_hooks"]
    assert len(webhook["id"]) == 36
    assert (webhook["webhook_url"], webhook["enabled"]) == (WEBHOOK["webhook_url"], True)
    assert webhook["created_at"] == NOW_NS  # server SDKs read integer nanoseconds
    assert (queue["sqs_key"], queue["sqs_secret"]) == ("AKIA", REDACTED)
    assert "very-secret" not in response.text
    stored = (await relay.store.hooks()).hooks.hooks
    assert stored[1].sqs_secret == "very-secret"


async def test_what_was_read_back_is_the_same_when_it_is_sent_again(relay: Edges) -> None:
    await patch(relay, {"event_hooks": [WEBHOOK, SQS]})
    before = await relay.store.hooks()
    relay.clock.forward(5)
    await patch(relay, {"event_hooks": (await read(relay))["event_hooks"]})
    assert await relay.store.hooks() == before


async def test_other_settings_of_the_app_are_ignored(relay: Edges) -> None:
    response = await patch(relay, {"multi_tenant_enabled": True, "grants": {"user": []}})
    assert response.status_code == 200
    assert (await read(relay))["multi_tenant_enabled"] is False
    await patch(relay, {"enable_hook_payload_compression": True})
    assert (await read(relay))["enable_hook_payload_compression"] is True


async def test_only_a_server_may(relay: Edges) -> None:
    for method in ("GET", "PATCH"):
        response = await relay.client.request(method, APP, params=PARAMS, headers=token("john"))
        assert (response.status_code, response.json()["code"]) == (403, 17)
    for check in ("check_sqs", "check_sns"):
        response = await relay.post(f"/api/v2/{check}", {}, headers=token("john"))
        assert response.status_code == 403


async def test_a_refusal_names_the_field_and_changes_nothing(relay: Edges) -> None:
    await patch(relay, {"event_hooks": [WEBHOOK]})
    before = await relay.store.hooks()
    bad = {**WEBHOOK, "webhook_url": "http://169.254.169.254/latest/meta-data"}
    response = await patch(relay, {"event_hooks": [WEBHOOK, bad]})
    assert (response.status_code, response.json()["code"]) == (400, 4)
    assert response.json()["message"].startswith("event_hooks[1].webhook_url: 169.254.169.254 is")
    assert await relay.store.hooks() == before


async def test_networks_and_the_library_are_those_of_this_relay() -> None:
    private = {**WEBHOOK, "webhook_url": "http://10.0.0.7/"}
    async with edges(hook_networks=read_networks("10.0.0.0/8"), aws=False) as relay:
        assert (await patch(relay, {"event_hooks": [private]})).status_code == 200
        response = await patch(relay, {"event_hooks": [SQS]})
        assert "install relay[aws]" in response.json()["message"]


# -- checks ---------------------------------------------------------------------------------------


async def test_a_check_asks_the_queue_that_it_describes(relay: Edges) -> None:
    body = {"sqs_url": QUEUE, "sqs_key": "AKIA", "sqs_secret": "secret"}
    answer = (await relay.post("/api/v2/check_sqs", body, headers=token())).json()
    assert (answer["status"], answer["data"]) == ("ok", {"arn": QUEUE})
    [asked] = relay.receivers.asked
    assert (asked.aws.target, asked.aws.key, asked.aws.secret) == (QUEUE, "AKIA", "secret")
    relay.receivers.missing.add(QUEUE)
    answer = (await relay.post("/api/v2/check_sqs", body, headers=token())).json()
    assert (answer["status"], answer["error"]) == ("error", "NotFound: it is not there")


async def test_a_check_of_a_known_queue_uses_its_secret(relay: Edges) -> None:
    await patch(relay, {"event_hooks": [SQS]})
    await relay.post("/api/v2/check_sqs", {"sqs_url": QUEUE}, headers=token())
    await relay.post("/api/v2/check_sqs", {}, headers=token())
    assert [hook.sqs_secret for hook in relay.receivers.asked] == ["very-secret"] * 2


async def test_a_check_asks_a_topic_too(relay: Edges) -> None:
    body = {"sns_topic_arn": TOPIC, "sns_key": "AKIA", "sns_secret": "secret"}
    answer = (await relay.post("/api/v2/check_sns", body, headers=token())).json()
    assert answer["status"] == "ok"
    assert relay.receivers.asked[0].hook_type is HookType.SNS


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("check_sqs", {}, "sqs_url is missing, and no hook of this type is configured"),
        ("check_sqs", {"sqs_url": "q"}, "sqs_url must be a URL"),
        ("check_sqs", {"sqs_url": "http://127.0.0.1/q"}, "sqs_url: 127.0.0.1 is not a public"),
        ("check_sqs", {"sqs_url": QUEUE, "sqs_key": "k"}, "sqs_secret is missing"),
        ("check_sns", {"sns_topic_arn": "x"}, "sns_topic_arn must be a topic"),
    ],
)
async def test_a_check_refuses_what_cannot_be_asked(
    relay: Edges, path: str, body: dict[str, str], message: str
) -> None:
    response = await relay.post(f"/api/v2/{path}", body, headers=token())
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)
    assert relay.receivers.asked == []


# -- others who change the hooks too --------------------------------------------------------------


class Contended(MemoryStore):
    """A store whose hooks others change, ``left`` times, just before they are saved."""

    def __init__(self, left: int) -> None:
        super().__init__(MemoryOutbox(lambda: NOW_NS))
        self.left = left

    async def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        if self.left:
            self.left -= 1
            theirs = Hook(id=f"theirs{self.left}", hook_type=HookType.WEBHOOK)
            now = await self.hooks()
            await super().save_hooks(Hooks((*now.hooks.hooks, theirs)), now, now_ms)
        return await super().save_hooks(hooks, based_on, now_ms)


MINE = Hooks((Hook(id="mine", hook_type=HookType.WEBHOOK),))


def with_mine(now: Hooks) -> Hooks:
    return Hooks((*now.hooks, *MINE.hooks))


async def test_a_change_is_made_anew_when_others_came_in_between() -> None:
    saved = await change_hooks(Contended(2), with_mine, NOW_NS)
    assert [hook.id for hook in saved.hooks.hooks] == ["theirs1", "theirs0", "mine"]


async def test_a_change_is_given_up_when_they_never_stop() -> None:
    with pytest.raises(Unavailable, match="changed by too many at once"):
        await change_hooks(Contended(1000), with_mine, NOW_NS)


class CutOff(MemoryStore):
    """A store whose first save is cut off after the hooks are saved, before all know of them."""

    def __init__(self) -> None:
        super().__init__(MemoryOutbox(lambda: NOW_NS))
        self.failures = 2
        self.told: list[int] = []

    async def save_hooks(self, hooks: Hooks, based_on: HookList, now_ms: int) -> HookList | None:
        saved = await super().save_hooks(hooks, based_on, now_ms)
        assert saved is not None
        await self.tell_hooks(saved)
        return saved

    async def tell_hooks(self, hooks: HookList) -> None:
        if self.failures:
            self.failures -= 1
            raise Unavailable("away")
        self.told.append(hooks.version)


async def test_a_repeat_of_a_save_that_was_cut_off_tells_everybody_before_it_is_answered() -> None:
    store = CutOff()
    for _ in range(2):
        with pytest.raises(Unavailable):
            await change_hooks(store, lambda _: MINE, NOW_NS)
    saved = await change_hooks(store, lambda _: MINE, NOW_NS)
    assert saved.hooks == MINE
    assert store.told == [saved.version]


# -- the operator's file --------------------------------------------------------------------------

RULES = Rules(NOW_NS, lambda: "new")
BILLING = (
    '[[hook]]\nid = "billing"\nhook_type = "webhook"\nwebhook_url = "https://b.example/"\n'
    'event_types = ["call.ended"]\nordered = true\n'
)


def written(folder: Path, text: str) -> str:
    path = folder / "hooks.toml"
    path.write_text(text, "utf-8")
    return str(path)


async def test_hooks_of_a_file_are_there_at_the_start_and_survive_a_patch(
    relay: Edges, tmp_path: Path
) -> None:
    path = written(tmp_path, BILLING)
    await patch(relay, {"event_hooks": [WEBHOOK]})
    await HooksFile(path, RULES).apply(relay.store)
    billing, other = (await read(relay))["event_hooks"]
    assert (billing["id"], billing["read_only"], billing["ordered"]) == ("billing", True, True)
    await patch(relay, {"event_hooks": []})
    assert [hook["id"] for hook in (await read(relay))["event_hooks"]] == ["billing"]
    response = await patch(relay, {"event_hooks": [{**billing, "enabled": False}]})
    assert response.status_code == 403
    await HooksFile("", RULES).apply(relay.store)
    assert (await read(relay))["event_hooks"] == []
    assert other["read_only"] is False


async def test_a_file_whose_hooks_are_there_needs_no_partition_to_be_told(tmp_path: Path) -> None:
    """So a process starts while a part of Redis is away."""
    path = written(tmp_path, BILLING)
    store = CutOff()
    with pytest.raises(Unavailable):
        await HooksFile(path, RULES).apply(store)
    await HooksFile(path, RULES).apply(store)
    assert [hook.id for hook in (await store.hooks()).hooks.hooks] == ["billing"]
    assert store.told == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[hook]]\n", "hook[0].id is missing"),
        ('[[hook]]\nid = "a"\n', "hook[0].hook_type is missing"),
        ("[hook]\n", "hook must be a list of hooks"),
        ("[[hooks]]\n", "'hooks' is not known: each hook is a [[hook]]"),
        ("hook = 1\n", "hook must be a list of hooks"),
        ("= 1", "Invalid statement"),
    ],
)
def test_a_mistake_in_the_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        HooksFile(path, RULES)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
