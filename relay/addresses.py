"""Which addresses the relay may send to: public ones, and networks that the operator listed.

Pure. Whoever can configure a hook chooses where the relay connects, so the relay must not reach
what only its own machine or network can: itself, its neighbours, a cloud's metadata service.
``relay.hooks`` refuses what a URL spells out; ``egress`` checks every address it connects to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from relay.forwarded import Network

Address = IPv4Address | IPv6Address

_CLOSED: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # "this" host: Linux connects to itself
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared by a carrier's customers; a cloud's metadata service
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's machine agent, a public address reached from inside
            "169.254.0.0/16",  # link-local: metadata services
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
            "2001::/23",  # Teredo, ORCHID and other protocols
            "2001:db8::/32",
            "2002::/16",  # 6to4: any IPv4 address in disguise
            "3fff::/20",
        ),
    )
)
"""What is not public among IPv4 and the global unicast addresses of IPv6.

Source: the IANA special-purpose address registries.
"""
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
_NAT64: Final = ip_network("64:ff9b::/96")

_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?")
_NUMBER: Final = re.compile(r"0[xX][0-9A-Fa-f]*|[0-9]+")


def literal(host: str) -> Address | None:
    """Return the address that a URL's host spells in any form a resolver takes; None: it is a name.

    IPv4 also as ``0x7f000001``, ``2130706433``, ``0177.0.0.1`` or ``127.1``; IPv6 without brackets,
    a zone is left out. Raises ``ValueError`` for what is neither an address nor a host's name.
    """
    if ":" in host:
        return IPv6Address(host.partition("%")[0])
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a host")
    labels = host.removesuffix(".").split(".")
    if not _NUMBER.fullmatch(labels[-1]):
        return None
    return _classic(labels)


def _classic(labels: Sequence[str]) -> IPv4Address:
    """Read an IPv4 address as ``inet_aton`` does: the last number fills what the others leave."""
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise ValueError("a host that ends in a number must be an IPv4 address")
    *heads, last = (_number(label) for label in labels)
    if any(head > 255 for head in heads) or last >= 256 ** (4 - len(heads)):
        raise ValueError("a number of the IPv4 address is too large")
    value = sum(head << (24 - 8 * place) for place, head in enumerate(heads))
    return IPv4Address(value + last)


def _number(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if text.startswith("0") else int(text)


def allowed(address: Address, networks: Sequence[Network]) -> bool:
    """Tell whether the relay may connect to ``address``: public, or in one of ``networks``.

    An IPv4 address inside an IPv6 one (mapped, or behind NAT64) counts as what it leads to.
    """
    target = _target(address)
    if any(target in network for network in networks if network.version == target.version):
        return True
    if target.version == 6 and target not in _GLOBAL_UNICAST:
        return False
    return not any(target in network for network in _CLOSED if network.version == target.version)


def _target(address: Address) -> Address:
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address


def refusal(host: str, networks: Sequence[Network]) -> str | None:
    """Return why the relay may not connect to a URL's host, as far as its text tells; None: it may.

    A name tells only that it is one: what it resolves to is checked at each connection.
    """
    try:
        address = literal(host)
    except ValueError as error:
        return str(error)
    if address is None:
        address = _loopback_name(host)
    if address is None or allowed(address, networks):
        return None
    return f"{host} is not a public address: an operator can list its network in RELAY_HOOK_ALLOW"


def _loopback_name(host: str) -> Address | None:
    name = host.lower().removesuffix(".")
    local = name == "localhost" or name.endswith(".localhost")
    return ip_address("127.0.0.1") if local else None
