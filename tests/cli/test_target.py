"""Addresses and connections of the relay a command talks to."""

from __future__ import annotations

import socket
import threading

import pytest

from relay.cli.target import Target, Unreachable, http_url, own_url
from relay.settings import Settings
from tests.cli.conftest import HttpServer


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (Settings(), "http://127.0.0.1:8000"),
        (Settings(host="0.0.0.0", port=9000), "http://127.0.0.1:9000"),
        (Settings(host="::"), "http://[::1]:8000"),
        (Settings(host="relay.test", tls_cert="c", tls_key="k"), "https://relay.test:8000"),
    ],
)
def test_the_settings_say_where_the_relay_of_this_machine_is(settings: Settings, url: str) -> None:
    assert own_url(settings).geturl() == url


def test_a_connection_is_kept_alive(http_server: HttpServer) -> None:
    with Target(http_url(http_server.url), timeout_s=5) as target:
        for _ in range(3):
            target.post("/x", b"{}", {})
    assert len({seen.peer for seen in http_server.seen}) == 1


def answer_once_per_connection(listener: socket.socket) -> None:
    for _ in range(2):
        peer, _ = listener.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def test_a_connection_that_was_lost_is_told_and_opened_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        server = threading.Thread(target=answer_once_per_connection, args=(listener,))
        server.start()
        url = http_url(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with Target(url, timeout_s=5) as target:
            assert target.post("/x", b"", {}).text == "{}"
            with pytest.raises(Unreachable, match="closed the connection"):
                target.post("/x", b"", {})
            assert target.post("/x", b"", {}).status == 200
        server.join()


def test_silence_is_told_apart_from_absence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            Target(http_url(url), timeout_s=0.05) as target,
            pytest.raises(Unreachable, match=r"did not answer within 0\.05 s") as caught,
        ):
            target.post("/x", b"{}", {})
    assert caught.value.timed_out


def test_plain_http_where_tls_was_expected_is_told(http_server: HttpServer) -> None:
    url = http_url(http_server.url.replace("http:", "https:"))
    with (
        Target(url, timeout_s=5) as target,
        pytest.raises(Unreachable, match="does not speak TLS"),
    ):
        target.post("/x", b"{}", {})


def test_a_query_stays_in_the_path() -> None:
    with Target(http_url("http://h/a?b=c"), timeout_s=1) as target:
        assert target.path == "/a?b=c"
