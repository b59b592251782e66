"""The page for everyone: on a phone, at night, without motion, without a mouse."""

from __future__ import annotations

from typing import Final

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.demo_page import ANIMATIONS, DemoPage
from tests.processes import RelayProcess

PHONE: Final = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2,
    "is_mobile": True, "has_touch": True, "color_scheme": "dark",
}  # fmt: skip
SMALL_PHONE: Final = {**PHONE, "viewport": {"width": 320, "height": 568}}
FINGERTIP_PX: Final = 44

_SIDEWAYS: Final = "document.scrollingElement.scrollWidth - innerWidth"

_SMALL_TARGETS: Final = f"""() => [...document.querySelectorAll("button, a, input")]
  .map((element) => [element, element.getBoundingClientRect()])
  .filter(([, box]) => box.width > 0 && Math.min(box.width, box.height) < {FINGERTIP_PX} - 0.5)
  .map(([element, box]) => `${{element.outerHTML.slice(0, 80)}} ${{box.width}}×${{box.height}}`)"""

_COVERED_TILES: Final = """() => [...document.querySelectorAll(".tile")].filter((tile) => {
  tile.scrollIntoView({ block: "center", behavior: "instant" });
  const { x, y, width, height } = tile.getBoundingClientRect();
  return !tile.contains(document.elementFromPoint(x + width / 2, y + height / 2));
}).map((tile) => tile.textContent)"""

# WCAG's contrast of each text with the first opaque background behind it.
_PALE_TEXTS: Final = """() => {
  const paint = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => rgba(color).slice(0, 3)
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const color = element ? getComputedStyle(element).backgroundColor : "white";
    return rgba(color)[3] === 255 ? color : behind(element.parentElement);
  };
  const texts = "h1, h2, p, label, button:not(.tile), time, code, .row b, #status-text";
  return [...document.querySelectorAll(texts)].filter((element) => element.checkVisibility())
    .map((element) => {
      const shades = [light(getComputedStyle(element).color), light(behind(element))];
      const contrast = (Math.max(...shades) + 0.05) / (Math.min(...shades) + 0.05);
      return [contrast, element.outerHTML.slice(0, 90)];
    }).filter(([contrast]) => contrast < 4.5);
}"""


def fill_log(page: DemoPage) -> None:
    for animation in ANIMATIONS:
        page.button(animation).click()
    expect(page.rows()).to_have_count(len(ANIMATIONS))


@pytest.mark.parametrize("device", [PHONE, SMALL_PHONE], ids=["390", "320"])
def test_on_a_phone_nothing_scrolls_sideways_and_every_target_fits_a_finger(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str, device: dict[str, object]
) -> None:
    ada = open_page(**device)
    ada.open(memory_relay.base_url, cid)
    assert ada.page.evaluate(_SIDEWAYS) <= 0
    assert ada.page.evaluate(_SMALL_TARGETS) == []
    ada.join(memory_relay.base_url, cid, "Ada Augusta King, Countess of Lovelace")
    fill_log(ada)
    for tab in ("curl", "relay send", "redis-cli"):
        ada.page.get_by_role("tab", name=tab, exact=True).tap()
        assert ada.page.evaluate(_SIDEWAYS) <= 0
    assert ada.page.evaluate(_SMALL_TARGETS) == []
    assert ada.page.evaluate(_COVERED_TILES) == []


def test_on_a_phone_the_connection_state_stays_in_sight(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page(**PHONE).join(memory_relay.base_url, cid, "Ada")
    fill_log(ada)
    expect(ada.status).to_be_in_viewport(ratio=1)
    ada.page.get_by_text("self-hosted, real-time").scroll_into_view_if_needed()
    assert ada.page.evaluate("scrollY") > 200
    expect(ada.status).to_be_in_viewport(ratio=1)
    expect(ada.status).to_have_text("Live")


@pytest.mark.parametrize("device", ["phone", "desktop"])
def test_captions_hide_no_control(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str, device: str
) -> None:
    ada = open_page(**(PHONE if device == "phone" else {}))
    ada.join(memory_relay.base_url, cid, "Ada Augusta King, Countess of Lovelace")
    ada.button("hearts").click()
    expect(ada.captions).to_have_count(1)
    caption = ada.captions.bounding_box()
    top = ada.page.get_by_role("banner").bounding_box()
    status = ada.status.bounding_box()
    assert caption is not None
    assert top is not None
    assert status is not None
    assert caption["y"] + caption["height"] <= top["y"] + top["height"]
    assert caption["x"] + caption["width"] <= status["x"]
    expect(ada.captions).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str, scheme: str
) -> None:
    ada = open_page(color_scheme=scheme)
    ada.open(memory_relay.base_url, cid)
    assert ada.page.evaluate(_PALE_TEXTS) == []
    ada.join(memory_relay.base_url, cid, "Ada")
    ada.page.evaluate("relayDemo.call.send({ n: 1 })")
    expect(ada.rows()).to_have_count(1)
    assert ada.page.evaluate(_PALE_TEXTS) == []
    paper = ada.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == {"light": "rgb(250, 246, 240)", "dark": "rgb(19, 16, 26)"}[scheme]


def test_where_motion_is_not_wanted_a_still_badge_says_who_sent_what(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page(reduced_motion="reduce").join(memory_relay.base_url, cid, "Ada")
    for number, animation in enumerate(ANIMATIONS, 1):
        ada.button(animation).click()
        badge = ada.captions.last
        expect(badge).to_have_attribute("data-kind", animation)
        expect(badge).to_contain_text("Ada")
        shift = "element => getComputedStyle(element).transform"
        assert badge.evaluate(shift) == "none", "the badge moves"
        stats = ada.stats()
        assert (stats["calm"], stats["drawn"], stats["particles"]) == (number, 0, 0)
        assert ada.painted() == 0
    assert ada.stats()["frames"] == 0
    assert ada.page.locator("html.night").count() == 0


def test_the_keyboard_alone_joins_and_sends(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page()
    ada.open(memory_relay.base_url, cid)
    press = ada.page.keyboard.press
    name = ada.page.get_by_label("Your name")
    for _ in range(5):
        if name.evaluate("field => field === document.activeElement"):
            break
        press("Tab")
    expect(name).to_be_focused()
    ada.page.keyboard.type("Ada")
    press("Enter")
    ada.expect_state("open")
    expect(ada.button("balloons")).to_be_focused()
    press("Enter")
    ada.expect_drawn("balloons")
    press("Tab")
    expect(ada.button("confetti")).to_be_focused()
    press("Space")
    ada.expect_drawn("confetti")
    ada.page.get_by_role("tab", name="curl").focus()
    press("ArrowRight")
    expect(ada.page.get_by_role("tab", name="relay send")).to_be_focused()
    expect(ada.snippet).to_contain_text("relay send")


def test_a_form_that_cannot_be_sent_says_what_is_wrong(
    memory_relay: RelayProcess, open_page: OpenPage
) -> None:
    ada = open_page()
    ada.open(memory_relay.base_url, "no%20call")
    alert = ada.page.get_by_role("alert")
    expect(alert).to_contain_text("type:id")
    ada.page.get_by_role("button", name="Join the call").click()
    expect(alert).to_have_text("Please give a name.")
    expect(ada.page.get_by_label("Your name")).to_be_focused()
    ada.page.get_by_label("Your name").fill("Ada")
    ada.page.get_by_label("Call").fill("standup")
    ada.page.get_by_role("button", name="Join the call").click()
    expect(alert).to_contain_text("type:id")
    expect(ada.page.get_by_label("Call")).to_be_focused()
    expect(ada.status).to_have_attribute("data-state", "idle")
