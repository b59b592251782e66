"""Which addresses hooks may reach: every spelling of a closed one is closed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import addresses
from relay.forwarded import read_networks

CLOSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1",
    "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1",
    "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:db8::1", "2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip
OPEN = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1",
    "172.15.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.255", "2606:4700:4700::1111",
    "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("text", CLOSED)
def test_what_only_this_machine_or_its_network_can_reach_is_closed(text: str) -> None:
    assert not addresses.allowed(ip_address(text), ())


@pytest.mark.parametrize("text", OPEN)
def test_what_everybody_can_reach_is_open(text: str) -> None:
    assert addresses.allowed(ip_address(text), ())


def test_an_operator_opens_a_network_for_every_way_to_write_its_addresses() -> None:
    networks = read_networks("10.1.0.0/16, fd00::/8")
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd12::1"):
        assert addresses.allowed(ip_address(text), networks), text
    for text in ("10.2.0.1", "::ffff:10.2.0.1", "fe80::1", "127.0.0.1"):
        assert not addresses.allowed(ip_address(text), networks), text


LOOPBACK = IPv4Address("127.0.0.1")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", LOOPBACK),
        ("127.0.0.1.", LOOPBACK),
        ("127.1", LOOPBACK),
        ("127.0.1", LOOPBACK),
        ("2130706433", LOOPBACK),
        ("0x7f000001", LOOPBACK),
        ("0X7F.1", LOOPBACK),
        ("0x7f.0x0.0x0.0x1", LOOPBACK),
        ("0177.0.0.1", LOOPBACK),
        ("017700000001", LOOPBACK),
        ("0", IPv4Address("0.0.0.0")),
        ("0x", IPv4Address("0.0.0.0")),
        ("169.254.43518", IPv4Address("169.254.169.254")),
        ("::1", IPv6Address("::1")),
        ("fe80::1%eth0", IPv6Address("fe80::1")),
        ("::ffff:7f00:1", IPv6Address("::ffff:127.0.0.1")),
        ("app.example", None),
        ("app.example.", None),
        ("1.example", None),
        ("a_b.internal", None),
        ("0x7f.example", None),
    ],
)
def test_a_host_is_read_as_a_resolver_reads_it(
    host: str, address: IPv4Address | IPv6Address | None
) -> None:
    assert addresses.literal(host) == address


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "256.0.0.1", "1.2.3.4.5", "1.2.3.256", "127.0.0.08", "4294967296", "example.1",
        "a b", "%31%32%37.0.0.1", "①②⑦.0.0.1", "127。0。0。1", "app.example/", ":::", "1::2::3",
        "-", "exa\nmple", "a" * 300,
    ],
)  # fmt: skip
def test_what_is_neither_an_address_nor_a_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        addresses.literal(host)
    assert addresses.refusal(host, ()) is not None


@given(st.integers(0, 2**32 - 1))
def test_every_spelling_of_an_address_is_judged_alike(number: int) -> None:
    address = IPv4Address(number)
    a, b, c, d = address.packed
    spellings = [
        str(address), str(number), hex(number), f"0{number:o}", f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}", f"0x{a:x}.{b}.0{c:o}.{d}", f"::ffff:{address}",
        f"64:ff9b::{address}",
    ]  # fmt: skip
    verdicts = {addresses.refusal(spelling, ()) is None for spelling in spellings}
    assert verdicts == {addresses.allowed(address, ())}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "app.localhost"])
def test_names_of_this_machine_are_closed_unless_it_is_opened(host: str) -> None:
    assert "RELAY_HOOK_ALLOW" in (addresses.refusal(host, ()) or "")
    assert addresses.refusal(host, read_networks("127.0.0.0/8")) is None


def test_a_name_tells_nothing_yet() -> None:
    assert addresses.refusal("app.example", ()) is None


@given(st.text(max_size=80))
def test_no_host_makes_it_raise_anything_else(host: str) -> None:
    addresses.refusal(host, ())
