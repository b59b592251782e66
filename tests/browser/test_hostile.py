"""What a hostile sender writes is shown as text, bounded, and breaks nothing."""

from __future__ import annotations

import time
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import expect

from relay import tokens
from relay.cli import credentials
from tests.browser.conftest import OpenPage
from tests.browser.demo_page import DemoPage
from tests.processes import RelayProcess

IMAGE: Final = "<img src=x onerror=pwned=1>"

CUSTOMS: Final[dict[str, Any]] = {
    "markup": {"html": IMAGE, "script": "<script>pwned=1</script>"},
    "prototype": {"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}},
    "prototype_animation": {"render-animation": "__proto__"},
    "method_animation": {"render-animation": "toString"},
    "object_animation": {"render-animation": {"toString": 1, "length": 9}},
    "markup_emoji": {"render-animation": "emoji", "emoji": IMAGE},
    "object_emoji": {"render-animation": "emoji", "emoji": {"trim": 1}},
    "zalgo_emoji": {"render-animation": "emoji", "emoji": "Z" + "\u0315" * 2000},
    "backwards": {"text": "\u202e" + "evil"},
    "5_kb_without_a_space": {"x": "x" * 5100},
    "deep": {"a": {"a": {"a": {"a": {"a": [[[[[[1]]]]]]}}}}},
}


@pytest.fixture
def ada(memory_relay: RelayProcess, open_page: OpenPage, cid: str) -> DemoPage:
    return open_page().join(memory_relay.base_url, cid, "Ada")


def send(relay: RelayProcess, cid: str, *customs: Any) -> None:
    """Send events as a backend does, so that only the page can be what stops them."""
    token = tokens.issue(credentials.DEMO.secret, user_id=None, now=time.time(), life_s=60)
    headers = {"authorization": token, "stream-auth-type": "jwt"}
    path = f"/api/v2/video/call/{cid.replace(':', '/')}/event?api_key={credentials.DEMO.key}"
    with httpx.Client(base_url=relay.base_url, headers=headers) as client:
        for custom in customs:
            response = client.post(path, json={"custom": custom, "user_id": "mallory"})
            assert response.status_code == 201, response.text


def expect_unharmed(page: DemoPage) -> None:
    """Nothing ran, nothing was made into elements, and the page still works."""
    assert page.page.evaluate("typeof pwned") == "undefined"
    assert page.page.evaluate("({}).polluted === undefined")
    assert page.page.locator("main img, main script, #captions img").count() == 0
    assert page.page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    page.button("balloons").click()
    page.expect_drawn("balloons")


def test_hostile_customs_are_text(memory_relay: RelayProcess, ada: DemoPage, cid: str) -> None:
    for number, (name, custom) in enumerate(CUSTOMS.items(), 1):
        send(memory_relay, cid, custom)
        expect(ada.rows()).to_have_count(number)
        row = ada.rows().first.bounding_box()
        assert row is not None, name
        assert row["height"] < 200, name
    expect_unharmed(ada)
    expect(ada.rows()).to_have_count(len(CUSTOMS) + 1)


def test_markup_in_a_custom_is_shown_as_it_was_written(
    memory_relay: RelayProcess, ada: DemoPage, cid: str
) -> None:
    send(memory_relay, cid, CUSTOMS["markup"])
    expect(ada.rows()).to_contain_text(IMAGE)


@pytest.mark.parametrize("name", [IMAGE, "__proto__", "N" * 40, "\u202edrawkcab"])
def test_a_hostile_name_is_text(
    memory_relay: RelayProcess, ada: DemoPage, open_page: OpenPage, cid: str, name: str
) -> None:
    mallory = open_page().join(memory_relay.base_url, cid, name)
    expect(ada.watcher(name)).to_have_count(1)
    mallory.button("hearts").click()
    expect(ada.rows("hearts")).to_contain_text(name)
    expect(ada.captions).to_contain_text(name)
    expect_unharmed(ada)
    expect_unharmed(mallory)


def test_a_storm_leaves_the_newest_rows_and_a_page_that_works(
    memory_relay: RelayProcess, ada: DemoPage, cid: str
) -> None:
    send(memory_relay, cid, *({"n": number} for number in range(260)))
    ada.until(lambda: ada.page.evaluate("relayDemo.call.position.offset") == 260, "up to date")
    expect(ada.rows()).to_have_count(200)
    assert ada.offsets()[-1] == 260
    expect_unharmed(ada)
