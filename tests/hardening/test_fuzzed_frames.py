"""Any conversation that ``websockets``' own client can lead is understood by both sides.

The client frames, fragments, pings and closes as hypothesis likes, the bytes arrive in pieces of
any size, and its own parser judges what the gateway answers.
"""

from __future__ import annotations

import asyncio
import json
import os
from itertools import pairwise
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from tests.gateway.conftest import gateways
from tests.gateway.fakes import FakeTimeLoop, turns
from tests.gateway.peer import Peer
from tests.hardening.autobahn import check, frame

SOAK = int(os.environ.get("SOAK", "1"))

Step: TypeAlias = tuple[str, bytes, list[int]]
"""What the client does, with what, and where it is cut into fragments."""

DATA = st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode), st.just(check()))
STEPS = st.one_of(
    st.tuples(st.just("text"), DATA, st.lists(st.integers(0, 60), max_size=4)),
    st.tuples(st.just("text"), st.just(check()), st.lists(st.integers(0, 23), max_size=4)),
    st.tuples(st.sampled_from(["ping", "pong"]), st.binary(max_size=125), st.just([])),
    st.tuples(st.sampled_from(["binary", "close"]), st.binary(max_size=20), st.just([])),
)


class Client:
    """``websockets``' client on a fake wire to a logged-in gateway."""

    def __init__(self, peer: Peer, sizes: list[int]) -> None:
        self.protocol = ClientProtocol(parse_uri("ws://relay/"), state=State.OPEN, max_size=None)
        self._peer = peer
        self._sizes = sizes
        self._heard = 0
        self.take()  # what came at the login

    def send(self) -> None:
        """Let what the client wrote arrive, in pieces."""
        data = b"".join(self.protocol.data_to_send())
        while data:
            size = self._sizes.pop() if self._sizes else len(data)
            self._peer.raw(data[:size])
            data = data[size:]

    def take(self) -> list[Frame]:
        """Return what the gateway wrote since, as the client's parser understands it."""
        sent = bytes(self._peer.transport.sent).partition(b"\r\n\r\n")[2]
        news, self._heard = sent[self._heard :], len(sent)
        self.protocol.receive_data(news)
        assert self.protocol.parser_exc is None, self.protocol.parser_exc
        return [event for event in self.protocol.events_received() if isinstance(event, Frame)]

    def do(self, step: Step) -> None:
        what, data, cuts = step
        match what:
            case "text":
                self._text(data, cuts)
            case "ping":
                self.protocol.send_ping(data)
            case "pong":
                self.protocol.send_pong(data)
            case "binary":
                self.protocol.send_binary(data)
            case "close":
                self.protocol.send_close(1000, data.decode("utf-8", "ignore"))
        self.send()

    def _text(self, data: bytes, cuts: list[int]) -> None:
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        parts = [data[start:end] for start, end in pairwise(edges)]
        for index, part in enumerate(parts):
            fin = index == len(parts) - 1
            if index:
                self.protocol.send_continuation(part, fin=fin)
            else:
                self.protocol.send_text(part, fin=fin)


def check_answers(step: Step, answers: list[Frame]) -> None:
    """Each step has exactly the answer that belongs to it."""
    what, data, _ = step
    opcodes = [answer.opcode for answer in answers]
    if what == "pong":
        assert opcodes == []
    elif what == "ping":
        assert [(answer.opcode, bytes(answer.data)) for answer in answers] == [(Opcode.PONG, data)]
    elif what in ("binary", "close") or not is_utf8(data):
        assert opcodes == [Opcode.CLOSE]
        code = int.from_bytes(bytes(answers[0].data)[:2], "big")
        assert code == {"binary": 1003, "close": 1000, "text": 1007}[what]
    else:
        assert Opcode.TEXT in opcodes
        for answer in answers:
            assert json.loads(bytes(answer.data))["type"] in ("health.check", "error")


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=200 * SOAK, deadline=None)
@given(st.lists(STEPS, max_size=12), st.lists(st.integers(1, 50), max_size=40))
def test_what_a_correct_client_says_is_answered_and_the_answer_is_correct(
    steps: list[Step], sizes: list[int]
) -> None:
    async def run() -> None:
        async with gateways() as make:
            peer = await Peer(make(rules={"command_rate": 0})).log_in()
            client = Client(peer, sizes)
            for step in steps:
                client.do(step)
                await turns(2)
                check_answers(step, client.take())
                if client.protocol.state is not State.OPEN:
                    break

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(run())


FRAMES = st.builds(
    frame,
    st.integers(0, 15),
    st.one_of(DATA, st.binary(min_size=120, max_size=130)),
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 4, 7]),
)


@settings(max_examples=300 * SOAK, deadline=None)
@given(st.lists(FRAMES, max_size=12), st.integers(1, 400))
def test_whatever_frames_come_the_answers_are_frames_and_the_end_has_a_code(
    frames: list[bytes], size: int
) -> None:
    async def run() -> None:
        async with gateways() as make:
            peer = await Peer(make(rules={"command_rate": 0})).log_in()
            client = Client(peer, [])
            data = b"".join(frames)
            for start in range(0, len(data), size):
                peer.raw(data[start : start + size])
            await turns()
            client.take()
            if peer.connection.is_open:
                assert client.protocol.state is State.OPEN
            else:
                assert client.protocol.close_rcvd is not None

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(run())
