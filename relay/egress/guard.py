"""The address guard: every connection that a delivery needs is made through it.

It looks at the very address that is about to be connected to, after all resolving, so no spelling,
no name and no answer of a name server that changes in between leads anywhere else.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final

from relay import addresses
from relay.forwarded import Network

AddressInfo = tuple[Any, ...]
"""What ``getaddrinfo`` gives: family, type, protocol, canonical name, socket address."""

_TEXT: Final = "the address is not public, and not in RELAY_HOOK_ALLOW"


class ClosedAddress(OSError):
    """The relay must not connect there."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, _TEXT)


def is_closed(error: BaseException) -> bool:
    """Tell whether the guard is why a library's error came about."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ClosedAddress):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def sockets(networks: Sequence[Network]) -> Callable[[AddressInfo], socket.socket]:
    """Return aiohttp's ``socket_factory``: it makes no socket for an address that is closed."""

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, where = info
        address = ip_address(str(where[0]).partition("%")[0])
        if not addresses.allowed(address, networks):
            raise ClosedAddress
        return socket.socket(family, kind, protocol)

    return make
