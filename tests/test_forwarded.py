"""Who is at the other end: only what trusted proxies say counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.forwarded import client_address, read_networks

PROXIES = read_networks("127.0.0.1, 10.0.0.0/8,::1, fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.7", None, "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", " 198.51.100.1 , 10.1.2.3", "198.51.100.1"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.1, 10.1.2.3", "198.51.100.1"),
        ("127.0.0.1", "10.9.9.9", "10.9.9.9"),
        ("127.0.0.1", "nonsense", "nonsense"),
        ("127.0.0.1", "6.6.6.6, nonsense, 10.1.2.3", "nonsense"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:203.0.113.7", "198.51.100.1", "::ffff:203.0.113.7"),
        ("", "198.51.100.1", ""),
    ],
)
def test_the_client_is_the_last_one_that_a_trusted_proxy_names(
    peer: str, forwarded: str | None, client: str
) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    assert client_address("127.0.0.1", "198.51.100.1", ()) == "127.0.0.1"


def test_an_empty_list_names_nobody() -> None:
    assert read_networks(" , ") == ()


@pytest.mark.parametrize("text", ["localhost", "10.0.0.1/8", "10.0.0.0/33"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("/")[0]):
        read_networks(f"127.0.0.1,{text}")


@given(st.text(), st.text())
def test_any_header_is_survived(peer: str, forwarded: str) -> None:
    assert client_address(peer, forwarded, PROXIES) in {
        peer, *(hop.strip() for hop in forwarded.split(",")),
    }  # fmt: skip
