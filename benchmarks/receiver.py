"""A receiver of webhooks, as light as Python allows: ``python -m benchmarks.receiver PORT``.

It answers 204 and keeps the connection; on a path that begins with ``/slow`` after some seconds. On
the line ``report`` on stdin it prints what came on ``/fast`` since the last one.
"""

import asyncio
import json
import random
import sys
import time

ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
SLOW_S = (2.0, 5.5)
"""Of a slow answer, the least and the most: never so many at once that they are a burst."""
SENT = b'"sent_ns":"'


class Received:
    """How many came, and how long each took from the publisher's clock on, in ns."""

    def __init__(self) -> None:
        self.total = 0
        self.delays: list[int] = []

    def report(self) -> str:
        """Return what came since the last report, as JSON: the total, and delays in ms."""
        delays, self.delays = sorted(self.delays), []
        at = [delays[int(len(delays) * part)] / 1e6 if delays else 0 for part in (0.5, 0.99)]
        return json.dumps({"total": self.total, "new": len(delays), "p50": at[0], "p99": at[1]})


class Receiver(asyncio.Protocol):
    """One connection of a sender that waits for each answer."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._buffer = b""
        self._began = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request once it is complete; its time is that of its first bytes."""
        if not self._buffer:
            self._began = time.time_ns()
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = b""
        if head.startswith(b"POST /slow"):
            asyncio.get_running_loop().call_later(
                random.uniform(*SLOW_S), self._transport.write, ANSWER
            )
            return
        self._received.total += 1
        sent = body.partition(SENT)[2][:19]
        self._received.delays.append(self._began - int(sent))
        self._transport.write(ANSWER)


async def main(port: int) -> None:
    """Serve until stdin ends."""
    received, ended = Received(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_line() -> None:
        if not sys.stdin.readline():
            ended.set()
            return
        print(received.report(), flush=True)

    loop.add_reader(sys.stdin.fileno(), on_line)
    async with await loop.create_server(
        lambda: Receiver(received), "127.0.0.1", port, backlog=4096
    ):
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
