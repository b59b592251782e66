"""Pages of other origins: they import relay.js and use the relay where it allows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.demo_page import DemoPage
from tests.processes import API_KEY, RelayProcess

CLIENT = (Path(__file__).parents[2] / "web" / "relay.js").read_text()

HTML = """<!doctype html><title>Somebody else's page</title>
<p id="guest"></p><p id="state"></p><p id="reason"></p><p id="event"></p>
<script type="module">
  import { Relay } from "CLIENT_URL";
  const show = (id, text) => (document.getElementById(id).textContent = text);
  const options = { url: "RELAY_URL", apiKey: "API_KEY" };
  const guest = await Relay.guest({ ...options, user: { id: "eve", name: "Eve" } })
    .then(({ user }) => user.name, (error) => error.message);
  show("guest", guest);
  const relay = new Relay({ ...options, user: { id: "eve" }, token: "TOKEN" });
  relay.on("state", ({ state, reason }) => { show("state", state); show("reason", reason ?? ""); });
  const call = relay.watch("CALL");
  call.on("custom", ({ custom, user }) => show("event", `${user.id}: ${custom.text}`));
  call.on("watching", () => call.send({ text: "hello" }).catch((error) => show("event", error)));
</script>"""


@contextmanager
def site(files: dict[str, tuple[str, str]]) -> Iterator[str]:
    """Serve ``path: (type, text)`` from an origin of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, text = files.get(self.path, ("text/plain", ""))
            self.send_response(200 if self.path in files else 404)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def page_of_eve(relay: RelayProcess, client_url: str, cid: str) -> tuple[str, str]:
    """Return a page that uses a relay with the client from ``client_url``."""
    values = {
        "CLIENT_URL": client_url, "RELAY_URL": relay.base_url, "API_KEY": API_KEY,
        "TOKEN": relay.token("eve"), "CALL": cid,
    }  # fmt: skip
    html = HTML
    for name, value in values.items():
        html = html.replace(name, value)
    return "text/html; charset=utf-8", html


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    return open_page().page


def test_a_page_elsewhere_imports_the_client_from_the_relay_and_uses_it(
    page: Page, cid: str
) -> None:
    files: dict[str, tuple[str, str]] = {}
    with site(files) as origin, RelayProcess(allowed_origins=origin) as relay:
        files["/"] = page_of_eve(relay, f"{relay.base_url}/relay.js", cid)
        page.goto(origin)
        expect(page.locator("#guest")).to_have_text("Eve")
        expect(page.locator("#state")).to_have_text("open")
        expect(page.locator("#event")).to_have_text("eve: hello")


def test_a_page_of_an_origin_that_is_not_allowed_cannot_connect_and_is_told(
    page: Page, cid: str
) -> None:
    files = {"/relay.js": ("text/javascript", CLIENT)}  # its own copy of the client
    with site(files) as origin, RelayProcess(allowed_origins="https://app.example") as relay:
        files["/"] = page_of_eve(relay, "/relay.js", cid)
        page.goto(origin)
        expect(page.locator("#guest")).to_have_text("the relay cannot be reached")
        expect(page.locator("#state")).to_have_text("waiting")
        expect(page.locator("#reason")).to_contain_text("does not allow this page")
        expect(page.locator("#event")).to_have_text("")


def test_the_demo_page_says_so_when_its_own_address_is_not_allowed(
    open_page: OpenPage, cid: str
) -> None:
    with RelayProcess("demo", allowed_origins="https://app.example") as relay:
        ada: DemoPage = open_page()
        ada.open(relay.base_url, cid)
        ada.page.get_by_label("Your name").fill("Ada")
        ada.page.get_by_role("button", name="Join the call").click()
        ada.expect_state("waiting")
        expect(ada.notice).to_contain_text("Not connected.")
        expect(ada.notice).to_contain_text("does not allow this page")
