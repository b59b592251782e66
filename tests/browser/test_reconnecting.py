"""The line is cut, a process dies, a relay starts anew: what the page says, and what it shows.

Between the browser and the relays is a wire of our own, as a load balancer would be.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.demo_page import DemoPage
from tests.browser.forwarder import Forwarder
from tests.processes import RelayProcess
from tests.redis_server import RedisServer

GHOST_LIMIT_S = 18.0
"""A process counts as dead 10 s after its last sign of life; then the others are told."""


@pytest.fixture
def wire(memory_relay: RelayProcess) -> Iterator[Forwarder]:
    """A way to the relay with the embedded broker."""
    with Forwarder(memory_relay.port) as forwarder:
        yield forwarder


def expect_waiting(page: DemoPage) -> None:
    """The page says that it is cut off, why, and counts down to the next try."""
    page.expect_state("waiting")
    expect(page.notice).to_have_attribute("data-kind", "waiting")
    expect(page.notice).to_contain_text("Connection lost")
    expect(page.markers("lost")).to_have_count(1)
    # The first waits are short; with every failure the next one may be twice as long.
    expect(page.status).to_have_text(re.compile(r"Retry in \d+ s"))
    expect(page.notice).to_contain_text(re.compile(r"Trying again in \d+ s"))


def expect_caught_up(page: DemoPage, missed: list[str], limit_s: float = 15.0) -> None:
    """It connects by itself and lists what it missed, each once and none as if it were new."""
    page.expect_state("open", limit_s)
    text = f"Caught up: {len(missed)} event{'s' * (len(missed) != 1)} you missed"
    expect(page.markers("caught-up")).to_have_text(text)
    expect(page.notice).to_have_attribute("data-kind", "caught-up")
    rows = page.events.locator("[data-missed=true]")
    expect(rows).to_have_count(len(missed))
    shown = rows.evaluate_all("rows => rows.map(row => row.dataset.animation)")
    assert list(reversed(shown)) == missed
    assert page.offsets() == list(range(1, max(page.offsets()) + 1))


def test_a_cut_line_is_said_and_what_was_missed_is_shown_once(
    memory_relay: RelayProcess, wire: Forwarder, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(wire.base_url, cid, "Ada")
    bob = open_page().join(memory_relay.base_url, cid, "Bob")
    bob.button("hearts").click()
    expect(ada.rows("hearts")).to_have_count(1)
    wire.cut()
    expect_waiting(ada)
    expect(bob.watcher("Ada")).to_have_count(0)
    bob.button("balloons").click()
    bob.button("snow").click()
    expect(bob.rows("snow")).to_have_count(1)
    wire.restore()
    expect_caught_up(ada, ["balloons", "snow"])
    expect(bob.watcher("Ada")).to_have_count(1)
    assert ada.stats()["played"]["balloons"] == 0, "what was missed is listed, not played"
    ada.rows("balloons").get_by_role("button", name="Play").click()
    ada.expect_drawn("balloons")
    bob.button("confetti").click()
    ada.expect_drawn("confetti")
    expect(ada.rows("confetti")).to_have_attribute("data-missed", "false")
    assert ada.offsets() == [1, 2, 3, 4]


def test_what_is_sent_while_the_line_is_cut_follows_once(
    memory_relay: RelayProcess, wire: Forwarder, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(wire.base_url, cid, "Ada")
    bob = open_page().join(memory_relay.base_url, cid, "Bob")
    wire.cut()
    expect_waiting(ada)
    ada.button("hearts").click()
    expect(ada.notice).to_contain_text("1 event of yours will follow")
    wire.restore()
    ada.expect_state("open", 15)
    bob.expect_drawn("hearts")
    ada.expect_drawn("hearts")
    ada.button("snow").click()
    for page in (ada, bob):
        expect(page.rows("snow")).to_have_count(1)
        expect(page.rows("hearts")).to_have_count(1)


def test_the_wait_can_be_cut_short(
    memory_relay: RelayProcess, wire: Forwarder, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(wire.base_url, cid, "Ada")
    wire.cut()
    expect_waiting(ada)
    wire.restore()
    ada.page.get_by_role("button", name="Try now").click()
    ada.expect_state("open", 2)
    expect(ada.markers("caught-up")).to_have_text("Caught up: nothing was missed")


def test_a_device_that_goes_offline_notices_a_line_that_only_fell_silent(
    memory_relay: RelayProcess, wire: Forwarder, open_page: OpenPage, cid: str
) -> None:
    ada = open_page().join(wire.base_url, cid, "Ada")
    bob = open_page().join(memory_relay.base_url, cid, "Bob")
    wire.silence()
    ada.page.context.set_offline(True)
    ada.expect_state("waiting", 10)
    bob.button("balloons").click()
    expect(bob.rows("balloons")).to_have_count(1)
    wire.restore()
    ada.page.context.set_offline(False)
    expect_caught_up(ada, ["balloons"])


def test_when_one_of_two_processes_is_killed_its_page_goes_on_with_the_other(
    redis_server: RedisServer, open_page: OpenPage, cid: str
) -> None:
    settings = {"redis_url": redis_server.url, "redis_prefix": "two:"}
    with (
        RelayProcess("demo", **settings) as one,
        RelayProcess("demo", **settings) as two,
        Forwarder(one.port) as wire,
    ):
        ada = open_page().join(wire.base_url, cid, "Ada")
        bob = open_page().join(two.base_url, cid, "Bob")
        gone = open_page().join(one.base_url, cid, "Gone")
        ada.button("balloons").click()
        bob.expect_drawn("balloons")
        expect(bob.watchers).to_have_count(3)

        one.kill()
        killed = time.monotonic()
        expect_waiting(ada)
        gone.expect_state("waiting")
        bob.button("hearts").click()
        expect(bob.rows("hearts")).to_have_count(1)
        wire.targets = (one.port, two.port)  # not before, or the page might be back too soon

        expect_caught_up(ada, ["hearts"])
        ada.button("snow").click()
        bob.expect_drawn("snow")
        rest_s = GHOST_LIMIT_S - (time.monotonic() - killed)
        for page in (ada, bob):
            expect(page.watcher("Gone")).to_have_count(0, timeout=rest_s * 1000)
            expect(page.watcher("Ada")).to_have_count(1)
            expect(page.watcher("Bob")).to_have_count(1)
            expect(page.watchers).to_have_count(2)


def test_when_a_process_stops_its_page_has_moved_before_and_shows_nothing_of_it(
    redis_server: RedisServer, open_page: OpenPage, cid: str
) -> None:
    """A deploy: a new process is there, the old one is told to stop, events go on."""
    settings = {"redis_url": redis_server.url, "redis_prefix": "deploy:", "drain_timeout": 10}
    with RelayProcess("demo", **settings) as old, Forwarder(old.port) as wire:
        ada = open_page().join(wire.base_url, cid, "Ada")
        with RelayProcess("demo", **settings) as new:
            bob = open_page().join(new.base_url, cid, "Bob")
            bob.button("hearts").click()
            expect(ada.rows("hearts")).to_have_count(1)
            before = ada.page.evaluate("relayDemo.relay.connectionId")
            wire.targets = (new.port,)
            old.terminate()
            ada.until(lambda: ada.page.evaluate("relayDemo.relay.connectionId") != before, "moving")
            assert old.wait() == 0
            assert '"why": "drained"' not in old.log, "the page left by itself"
            bob.button("snow").click()
            ada.expect_drawn("snow")
            ada.button("confetti").click()
            bob.expect_drawn("confetti")
            assert ada.offsets() == [1, 2, 3]
            for kind in ("lost", "caught-up", "gap", "error"):
                expect(ada.markers(kind)).to_have_count(0)
            ada.expect_state("open")
            expect(bob.watcher("Ada")).to_have_count(1)


def test_a_restarted_embedded_relay_has_lost_its_history_and_the_page_says_so(
    open_page: OpenPage, cid: str
) -> None:
    with RelayProcess("demo") as before, Forwarder(before.port) as wire:
        ada = open_page().join(wire.base_url, cid, "Ada")
        ada.button("balloons").click()
        expect(ada.rows("balloons")).to_have_count(1)
        before.stop()
        expect_waiting(ada)
        with RelayProcess("demo") as after:
            wire.targets = (after.port,)
            ada.expect_state("open", 15)
            expect(ada.markers("gap")).to_have_count(1)
            expect(ada.notice).to_have_attribute("data-kind", "gap")
            expect(ada.notice).to_contain_text("restarted")
            ada.button("confetti").click()
            ada.expect_drawn("confetti")
            expect(ada.rows("confetti")).to_contain_text("#1")
            ada.notice.get_by_role("button", name="OK").click()
            expect(ada.notice).to_be_hidden()
