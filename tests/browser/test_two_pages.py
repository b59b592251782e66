"""Two browsers in one call: a press in one is seen in the other."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.demo_page import ANIMATIONS
from tests.processes import RelayProcess


def test_every_button_of_one_page_draws_in_the_other(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(memory_relay.base_url, cid, "Ada")
    bob = open_page().join(memory_relay.base_url, cid, "Bob")
    for animation in ANIMATIONS:
        bob.page.evaluate("relayDemo.effects.clear()")
        assert bob.painted() == 0
        ada.button(animation).click()
        bob.expect_drawn(animation)
        expect(bob.rows(animation)).to_have_count(1)
        expect(bob.rows(animation)).to_contain_text("Ada")
        expect(bob.rows(animation)).to_have_attribute("data-via", "another page")
        expect(ada.rows(animation)).to_have_attribute("data-via", "this page")
    assert bob.stats()["played"] == ada.stats()["played"] == dict.fromkeys(ANIMATIONS, 1)


def test_night_falls_for_fireworks_and_nothing_is_left_of_them_in_the_end(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(memory_relay.base_url, cid, "Ada")
    html, title = ada.page.locator("html"), ada.page.locator("#room-title")
    ada.button("fireworks").click()
    expect(html).to_have_class("night")
    ada.until(lambda: _brightness(title.evaluate(_COLOR)) > 200, "light on dark")
    expect(html).not_to_have_class("night", timeout=15_000)
    ada.until(lambda: ada.page.evaluate(_STANDS_STILL), "at rest")
    assert ada.painted() == 0


def test_many_at_once_stay_within_the_bounds(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(memory_relay.base_url, cid, "Ada")
    bob = open_page().join(memory_relay.base_url, cid, "Bob")
    ada.page.evaluate(
        "for (let i = 0; i < 60; i += 1) document.querySelectorAll('.tile')[i % 6].click()"
    )
    expect(bob.rows()).to_have_count(60)
    bob.until(lambda: bob.stats()["particles"] > 300, "full of particles")
    assert bob.stats()["particles"] <= 1500
    assert bob.offsets() == list(range(1, 61))


def test_pages_list_each_other_until_one_is_closed(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(memory_relay.base_url, cid, "Ada")
    bob = open_page().join(memory_relay.base_url, cid, "Bob")
    for page in (ada, bob):
        for name in ("Ada", "Bob"):
            expect(page.watcher(name)).to_have_count(1)
    bob.page.close()
    expect(ada.watcher("Bob")).to_have_count(0)
    expect(ada.watcher("Ada")).to_have_count(1)
    expect(ada.page.get_by_text("Just you so far")).to_be_visible()


def test_who_is_listed_already_stays_untouched_when_others_come(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(memory_relay.base_url, cid, "Ada")
    ada.page.get_by_test_id("watchers").evaluate(_COUNT_REMOVALS)
    open_page().join(memory_relay.base_url, cid, "Bob")
    expect(ada.watchers).to_have_count(2)
    assert ada.page.evaluate("removals") == 0


def test_two_windows_of_one_browser_are_two_guests(
    memory_relay: RelayProcess, open_page: OpenPage, cid: str
) -> None:
    one = open_page().join(memory_relay.base_url, cid, "Ada")
    two = open_page().join(memory_relay.base_url, cid, "Ada")
    for page in (one, two):
        expect(page.watcher("Ada")).to_have_count(2)


_COUNT_REMOVALS = """list => {
  window.removals = 0;
  new MutationObserver((records) => {
    for (const { removedNodes } of records) window.removals += removedNodes.length;
  }).observe(list, { childList: true });
}"""
_STANDS_STILL = """async () => {
  const { frames } = relayDemo.effects.stats();
  for (let i = 0; i < 3; i += 1) await new Promise(requestAnimationFrame);
  return relayDemo.effects.stats().frames === frames;
}"""
_COLOR = "element => getComputedStyle(element).color"


def _brightness(color: str) -> float:
    numbers = [float(part) for part in color.strip("rgb()").split(",")[:3]]
    return sum(numbers) / 3
