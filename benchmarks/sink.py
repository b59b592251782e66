"""The control of the hostile peers: a port that answers a login, and throws everything away.

``python -m benchmarks.sink`` prints its port and ends with its stdin. It checks, keeps and counts
nothing and closes nobody, on the relay's core at idle priority: the relay goes first. What hostile
peers do to others through the machine alone they do here too.
"""

import os
import select
import socket
import sys

from benchmarks.doors import compact, text_frame

UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
WELCOME = text_frame(compact({"type": "connection.ok"}), masked=False)
READ_BYTES = 1 << 18


class Sink:
    """The sockets it has, and how many answers each has had."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(sys.stdin, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._answers: dict[int, int] = {}

    def run(self) -> None:
        """Accept and discard until stdin ends."""
        print(self._listener.getsockname()[1], flush=True)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == sys.stdin.fileno():
                    return
                if descriptor == self._listener.fileno():
                    self._accept()
                else:
                    self._read(descriptor)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        accepted.setblocking(False)
        self._sockets[accepted.fileno()] = accepted
        self._answers[accepted.fileno()] = 0
        self._poll.register(accepted, select.EPOLLIN)

    def _read(self, descriptor: int) -> None:
        accepted = self._sockets[descriptor]
        try:
            data = accepted.recv(READ_BYTES)
            if data and self._answers[descriptor] < 2:
                accepted.send(WELCOME if self._answers[descriptor] else UPGRADED)
                self._answers[descriptor] += 1
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(accepted)
            accepted.close()
            del self._sockets[descriptor], self._answers[descriptor]


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    Sink().run()
