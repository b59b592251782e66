"""Who is at the other end, behind proxies: ``X-Forwarded-For`` from trusted addresses only.

Pure. The gateway reads it itself, because what uvicorn offers for it works on ASGI scopes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


def read_networks(text: str) -> tuple[Network, ...]:
    """Return the addresses and networks of a comma-separated list.

    Raises ``ValueError`` naming the entry that is neither.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> str:
    """Return the address nearest to the client that trusted proxies vouch for.

    Each proxy appends the address it saw, so the list is read from its end for as long as the one
    who says it is trusted; what an untrusted peer claims is not looked at.
    """
    hops = [hop.strip() for hop in (forwarded_for or "").split(",") if hop.strip()]
    address = peer
    while hops and _is_trusted(address, trusted):
        address = hops.pop()
    return address


def _is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    # A socket that listens on both families shows an IPv4 peer as ::ffff:192.0.2.1.
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(parsed in network for network in trusted if network.version == parsed.version)
