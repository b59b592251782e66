"""Every door leads to balloons on the screen, with either broker.

The lines are those that the page itself shows, copied with its button and run by a shell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.demo_page import DemoPage
from tests.processes import RelayProcess
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
PERMISSIONS = ["clipboard-read", "clipboard-write"]


@pytest.fixture(params=["memory", "redis"])
def relay(request: pytest.FixtureRequest) -> RelayProcess:
    """A relay with each broker."""
    process: RelayProcess = request.getfixturevalue(f"{request.param}_relay")
    return process


@pytest.fixture
def ada(relay: RelayProcess, open_page: OpenPage, cid: str) -> DemoPage:
    """Somebody who watches."""
    return open_page(permissions=PERMISSIONS).join(relay.base_url, cid, "Ada")


class Shell:
    """Runs lines as a user would who has the relay installed and nothing set."""

    def __init__(self, folder: Path) -> None:
        # Tests run in a checkout, installed or not; a user has the command.
        command = folder / "relay"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m relay "$@"\n')
        command.chmod(0o755)
        ours = {name: value for name, value in os.environ.items() if name[:6] != "RELAY_"}
        self._env = {**ours, "PATH": f"{folder}{os.pathsep}{ours['PATH']}", "PYTHONPATH": str(ROOT)}

    def run(self, line: str) -> str:
        """Return what a line prints; it has to succeed."""
        done = subprocess.run(
            ["sh", "-c", line], env=self._env, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def copied(page: DemoPage, tab: str) -> str:
    """Return the line of a tab as its button puts it into the clipboard."""
    page.page.get_by_role("tab", name=tab, exact=True).click()
    button = page.page.get_by_test_id("copy")
    button.click()
    expect(button).to_have_text("Copied")
    line: str = page.page.evaluate("navigator.clipboard.readText()")
    assert line == page.snippet.text_content()
    return line


def expect_balloons(page: DemoPage, via: str, who: str, *, kept: bool = True) -> None:
    """The balloons rise, and the log says whose they are and which way they came."""
    page.expect_drawn("balloons")
    row = page.rows("balloons")
    expect(row).to_have_count(1)
    expect(row).to_have_attribute("data-via", via)
    expect(row).to_contain_text(who)
    expect(row).to_contain_text("#1" if kept else "not kept")


def test_the_socket_draws_balloons(ada: DemoPage) -> None:
    ada.button("balloons").click()
    expect_balloons(ada, "this page", "Ada")


def test_the_curl_line_of_the_page_draws_balloons(ada: DemoPage, shell: Shell) -> None:
    answer = json.loads(shell.run(copied(ada, "curl") + " --silent --show-error"))
    assert answer["offset"] == 1
    expect_balloons(ada, "your token", "Ada")


def test_the_relay_send_line_of_the_page_draws_balloons(ada: DemoPage, shell: Shell) -> None:
    shell.run(copied(ada, "relay send"))
    expect_balloons(ada, "a backend", "cli")


def test_a_webhook_draws_balloons(
    ada: DemoPage, shell: Shell, relay: RelayProcess, cid: str
) -> None:
    shell.run(
        f"relay simulate --cid {cid} --url {relay.base_url}/webhooks/stream --gzip --repeat 2"
    )
    expect_balloons(ada, "a backend", "John")


class TestWithRedis:
    """The doors that exist beside a Redis only."""

    @pytest.fixture
    def relay(self, redis_relay: RelayProcess) -> RelayProcess:
        return redis_relay

    def test_the_redis_cli_line_of_the_page_draws_balloons(
        self, ada: DemoPage, shell: Shell, redis_server: RedisServer
    ) -> None:
        line = copied(ada, "redis-cli")
        shell.run(line.replace("redis-cli ", f"redis-cli -p {redis_server.port} ", 1))
        expect_balloons(ada, "a backend", "backend", kept=False)

    def test_xadd_draws_balloons(
        self, ada: DemoPage, shell: Shell, redis_server: RedisServer, cid: str
    ) -> None:
        event = {"call_cid": cid, "custom": {"render-animation": "balloons"}, "user_id": "jane"}
        shell.run(
            f"redis-cli -p {redis_server.port} XADD relay:ingest '*' event '{json.dumps(event)}'"
        )
        expect_balloons(ada, "Redis", "jane")


def test_the_lines_follow_the_button_pressed_last_even_through_quotes(
    ada: DemoPage, shell: Shell
) -> None:
    ada.page.get_by_label("Your own emoji").fill("'")
    ada.button("emoji").click()
    expect(ada.rows("emoji")).to_have_count(1)
    shell.run(copied(ada, "relay send"))
    expect(ada.rows("emoji")).to_have_count(2)
    shell.run(copied(ada, "curl"))
    expect(ada.rows("emoji")).to_have_count(3)
    assert ada.rows("emoji").locator(".icon").all_text_contents() == ["'", "'", "'"]
