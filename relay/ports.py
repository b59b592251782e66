"""The listening socket of a process: how it is opened, and how it is left.

Each process binds one of its own; with ``SO_REUSEPORT`` the kernel spreads connections over them.
The kernel resets what waits in the queue of a listening socket that is closed, so a process that
leaves a shared port first turns newcomers away, then accepts whoever is on the way.
"""

from __future__ import annotations

import asyncio
import ctypes
import select
import socket
import struct
from typing import Final

BACKLOG: Final = 2048
SEND_BUFFER_BYTES: Final = 65_536
"""Without it the kernel hides some 3.8 MiB of a slow peer's bytes from our bounds."""
RECEIVE_BUFFER_BYTES: Final = 65_536
"""What one peer may have in the kernel before we read it: megabytes, were it left to the kernel."""
ON_THE_WAY_S: Final = 0.5
"""How long a handshake that has begun may need. Whoever was turned away knocks again after 1 s."""
LAST_TURNS: Final = 2 * BACKLOG
"""Turns of the loop to accept a backlog in, where newcomers cannot be turned away."""

_SO_ATTACH_FILTER: Final = 26
_NO_NEWCOMERS: Final = (
    (0x30, 0, 0, 13),  # load the flags of the TCP header
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone?
    (0x06, 0, 0, 0),  # then drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else take it
)
"""A classic BPF program: (code, jump if true, jump if false, operand)."""


def listen(host: str, port: int, *, shared: bool, patience_s: float = 30.0) -> socket.socket:
    """Return a bound socket, ``shared`` with other processes or ours alone; raises ``OSError``.

    The kernel gives up a peer that acknowledges nothing, or has no room, for ``patience_s``.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience_s * 1000))
        listener.bind(address)
        if not shared:
            # Two sockets may be bound to one address for as long as neither listens.
            listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def emptied(listener: socket.socket) -> None:
    """Return once nobody waits in the queue of ``listener``; close it in the same loop turn.

    The loop accepts meanwhile. Where others share the port, a newcomer's first packet is dropped
    unanswered: its kernel sends another after a second, and that one goes to them.
    """
    shared = listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    if shared and _turn_newcomers_away(listener):
        await asyncio.sleep(ON_THE_WAY_S)
    quiet_turns = 0
    for _ in range(LAST_TURNS):
        quiet_turns = 0 if _is_waited_for(listener) else quiet_turns + 1
        if quiet_turns == 2:  # who is accepted in one turn is handed to its protocol in the next
            return
        await asyncio.sleep(0)


def _turn_newcomers_away(listener: socket.socket) -> bool:
    """Drop every SYN from now on; False where this kernel has no such filter.

    What is accepted later inherits the filter, which does it no harm: it gets no SYN.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in _NO_NEWCOMERS))
    # struct sock_fprog: how many instructions, and where they are
    fprog = struct.pack("HP", len(_NO_NEWCOMERS), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    except OSError:
        return False
    return True


def _is_waited_for(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
