"""A wire between a browser and relays that can be cut, fall silent, or lead somewhere else.

Browsers know one address, as they do in front of a load balancer; which relay answers is decided
here, for every new connection: the first of ``targets`` (ports) that accepts it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)


class Forwarder:
    """Listens on a free port of 127.0.0.1 from the start, and passes on what it gets."""

    def __init__(self, *targets: int) -> None:
        self.targets = targets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_refusing = False
        self._flows = threading.Event()
        self._flows.set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Reset every connection, and each new one, until ``restore``."""
        with self._lock:
            self._is_refusing = True
        self._reset_all()

    def silence(self) -> None:
        """Let nothing through any more, without a word to either side, until ``restore``."""
        self._flows.clear()

    def restore(self) -> None:
        """Work again: for new connections, and those that stand pass on what they hold."""
        with self._lock:
            self._is_refusing = False
        self._flows.set()

    def close(self) -> None:
        """End everything and wait for it."""
        self.cut()
        self._flows.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a forwarding thread hangs"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                near, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(near,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, near: socket.socket) -> None:
        far = None if self._is_refusing else self._dial()
        with self._lock:
            refused = far is None or self._is_refusing
            if far is not None and not refused:
                self._open |= {near, far}
        if far is None or refused:
            for one in filter(None, (near, far)):
                _reset(one)
            return
        back = threading.Thread(target=self._pass, args=(far, near))
        back.start()
        self._pass(near, far)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _dial(self) -> socket.socket | None:
        for port in self.targets:
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port), 5)
        return None

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(None)
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._flows.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def _reset_all(self) -> None:
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    one.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reset(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()
