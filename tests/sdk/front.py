"""What the SDKs connect to: a front that reads along, in front of one relay or of two.

Sockets go to one relay and every other request to another, so that with two of them a watch never
lands where its socket is. Each answer and each frame is checked against what Stream's protocol
requires, whichever SDK it was for; ``check`` raises for the first that fell short.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.conformance.required import check_answer, check_event
from tests.processes import RelayProcess

CHUNK = 65_536
START_LIMIT_S = 10.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade: *websocket", re.IGNORECASE)
_JSON = re.compile(rb"\r\ncontent-type: *application/json", re.IGNORECASE)


class Answer(NamedTuple):
    """One request and how it was answered."""

    method: str
    path: str
    status: int


class Front:
    """Listens on a free port of 127.0.0.1. ``http`` and ``sockets`` can be exchanged any time."""

    def __init__(self, http: RelayProcess, sockets: RelayProcess | None = None) -> None:
        self.http = http
        self.sockets = http if sockets is None else sockets
        self.answers: list[Answer] = []
        self.kinds: list[str] = []
        self.base_url = ""
        self._faults: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    @property
    def socket_url(self) -> str:
        """Where the sockets connect, without a query."""
        return self.base_url.replace("http", "ws", 1) + "/video/connect"

    def token(
        self, user_id: str | None = None, life_s: float | None = None, **claims: object
    ) -> str:
        """Return a token: a server's without ``user_id``."""
        return self.http.token(user_id, life_s, **claims)

    def count(self, method: str, path: str) -> int:
        """Return how many requests to a path (its end) were answered."""
        return sum(
            answer.method == method and answer.path.endswith(path) for answer in self.answers
        )

    def check(self) -> None:
        """Raise ``AssertionError`` with what fell short of the protocol so far."""
        faults, self._faults = self._faults, []
        assert not faults, "\n".join(faults)

    # -- serving ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=8_000_000)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._stopped.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, near: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._serve(near, writer)
        except asyncio.CancelledError:
            pass  # the front is closing
        except Exception as error:  # noqa: BLE001 - shown by the next check
            self._faults.append(f"the front failed: {error!r}")
        finally:
            writer.close()

    async def _serve(self, near: StreamReader, writer: StreamWriter) -> None:
        """Serve one connection: the first request says which relay it is for."""
        head, body = await _message(near)
        is_socket = _UPGRADE.search(head) is not None
        relay = self.sockets if is_socket else self.http
        far, far_writer = await asyncio.open_connection("127.0.0.1", relay.port, limit=8_000_000)
        try:
            if is_socket:
                far_writer.write(head + body)
                await self._pass_socket(near, writer, far, far_writer)
            while not is_socket:
                await self._exchange(head, body, far, far_writer, writer)
                head, body = await _message(near)
        finally:
            far_writer.close()

    async def _exchange(
        self, head: bytes, body: bytes, far: StreamReader, out: StreamWriter, back: StreamWriter
    ) -> None:
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        out.write(head + body)
        answer_head, answer = await _message(far, has_body=method != "HEAD")
        status = int(answer_head.split(b" ", 2)[1])
        path = urlsplit(target).path
        self.answers.append(Answer(method, path, status))
        if _JSON.search(answer_head) and answer:
            with self._noting():
                check_answer(method, path, status, json.loads(answer))
        back.write(answer_head + answer)
        await back.drain()

    async def _pass_socket(
        self, near: StreamReader, writer: StreamWriter, far: StreamReader, far_writer: StreamWriter
    ) -> None:
        """Pass both ways until one side ends, then let the other one end as well."""
        head, body = await _message(far)
        writer.write(head + body)
        if not head.startswith(b"HTTP/1.1 101"):
            return
        up = asyncio.create_task(_pass(near, far_writer))
        self._tasks.add(up)
        up.add_done_callback(self._tasks.discard)
        frames = _Frames()
        with contextlib.suppress(ConnectionError):
            while data := await far.read(CHUNK):
                for text in frames.feed(data):
                    self._note_frame(text)
                writer.write(data)
        writer.close()
        up.cancel()

    def _note_frame(self, text: bytes) -> None:
        frame = json.loads(text)
        self.kinds.append(frame["type"])
        with self._noting():
            check_event(frame)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self._faults.append(str(error))

    # -- starting and ending ----------------------------------------------------------------------

    def __enter__(self) -> Front:
        self._thread.start()
        assert self._listening.wait(START_LIMIT_S), "the front does not listen"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._loop.close()
        if kind is None:
            self.check()


async def _message(reader: StreamReader, *, has_body: bool = True) -> tuple[bytes, bytes]:
    """Return the head and the body of an HTTP message; neither side sends chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    assert b"\r\ntransfer-encoding:" not in head.lower(), head
    return head, await reader.readexactly(int(length[1])) if length and has_body else b""


async def _pass(source: StreamReader, sink: StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK):
            sink.write(data)
    sink.close()


class _Frames:
    """The text frames in a relay's bytes: not masked, not compressed, in one piece each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that are complete by now."""
        self._rest += data
        found = []
        while (frame := self._next()) is not None:
            opcode, payload = frame
            if opcode == 0x81:
                found.append(payload)
        return found

    def _next(self) -> tuple[int, bytes] | None:
        rest = self._rest
        if len(rest) < 2:
            return None
        length, start = rest[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(rest[2:start], "big")
        if len(rest) < start + length:
            return None
        self._rest = rest[start + length :]
        return rest[0], rest[start : start + length]
