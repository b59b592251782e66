"""How a turn's batch reaches the sockets: past the transports where nothing waits in them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from relay.gateway.call import Batch, Changes, WatchedCall
from tests.gateway.conftest import unbalanced
from tests.gateway.fakes import CID, FakeWatcher, texts_in


class DirectWatcher(FakeWatcher):
    """One with a real socket to be written to; ``peer`` is the other end."""

    def __init__(self) -> None:
        super().__init__()
        self.socket, self.peer = socket.socketpair()
        self.socket.setblocking(False)
        self.peer.setblocking(False)
        self.direct = self.socket

    def fill(self) -> None:
        """Leave no room for a single byte."""
        for piece in (b"." * 65_536, b"."):
            try:
                while True:
                    self.socket.send(piece)
            except BlockingIOError:
                pass

    def took(self) -> list[bytes]:
        """What went to the socket itself since it was asked last."""
        try:
            return list(texts_in(self.peer.recv(1 << 20)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        self.socket.close()
        self.peer.close()


@pytest.fixture
def direct() -> Iterator[DirectWatcher]:
    watcher = DirectWatcher()
    yield watcher
    watcher.close()


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def call(changes: Changes, direct: DirectWatcher, john: FakeWatcher) -> WatchedCall:
    call = WatchedCall(CID, changes)
    call.enter(direct)
    call.enter(john)
    return call


def publish(call: WatchedCall, *bodies: bytes) -> None:
    for body in bodies:
        call.add(body)
    call.flush()


def test_a_turn_leaves_in_one_write(
    call: WatchedCall, direct: DirectWatcher, john: FakeWatcher
) -> None:
    publish(call, b"1", b"2")
    assert direct.took() == list(texts_in(john.writes[0])) == [b"1", b"2"]
    assert direct.writes == []


def test_what_does_not_fit_goes_to_the_transport(
    call: WatchedCall, direct: DirectWatcher, john: FakeWatcher
) -> None:
    direct.fill()
    publish(call, b"1")
    assert direct.writes == john.writes == [b"\x81\x011"]


def test_only_the_rest_of_a_write_that_was_cut_short_goes_to_the_transport(
    call: WatchedCall, direct: DirectWatcher, john: FakeWatcher
) -> None:
    body = b"x" * 10_000_000
    publish(call, body)
    [rest] = direct.writes
    assert 0 < len(rest) < len(body)
    assert john.writes[0].endswith(rest)


class BuggyWatcher(DirectWatcher):
    """One that nothing can be delivered to."""

    def deliver(self, batch: Batch) -> int:
        raise ValueError("a bug")

    def write(self, data: bytes) -> None:
        raise ValueError("a bug")


@pytest.mark.parametrize("is_direct", [True, False])
def test_one_that_cannot_be_written_to_is_cut_off_and_the_others_get_theirs(
    changes: Changes, is_direct: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    buggy, others = BuggyWatcher(), [FakeWatcher("ann"), DirectWatcher(), FakeWatcher("joe")]
    buggy.fill()
    if not is_direct:
        buggy.direct = None
    call = WatchedCall(CID, changes)
    for watcher in (others[0], buggy, *others[1:]):
        call.enter(watcher)
    owed, _ = unbalanced()
    publish(call, b"1", b"2")
    assert buggy.aborted == ["internal"]
    assert isinstance(others[1], DirectWatcher)
    assert [list(texts_in(other.writes[0])) for other in (others[0], others[2])] == [
        [b"1", b"2"], [b"1", b"2"],
    ]  # fmt: skip
    assert others[1].took() == [b"1", b"2"]
    assert [other.aborted for other in others] == [[], [], []]
    assert "delivery failed" in capsys.readouterr().out
    assert unbalanced()[0] == owed - 2 * 4, "what the hub owed is accounted for"
    others[1].close()
    buggy.close()


class UnreadableWatcher(FakeWatcher):
    """One of which nobody can tell how it is written to."""

    @property
    def direct(self) -> socket.socket | None:
        raise ValueError("a bug")

    @direct.setter
    def direct(self, direct: socket.socket | None) -> None:
        pass


def test_who_may_lack_something_is_cut_off_and_what_comes_next_is_written(
    call: WatchedCall, direct: DirectWatcher, john: FakeWatcher, capsys: pytest.CaptureFixture[str]
) -> None:
    jane = UnreadableWatcher("jane")
    call.enter(jane)
    call.add(b"1")
    call.flush()
    call.leave(jane)
    assert direct.aborted == john.aborted == ["internal"]
    assert "flush failed" in capsys.readouterr().out
    assert call.add(b"2"), "it is this turn's first"
    call.flush()
    assert direct.took() == [b"2"]


def test_an_error_is_the_transports_to_find(
    call: WatchedCall, direct: DirectWatcher, john: FakeWatcher
) -> None:
    direct.peer.close()
    publish(call, b"1")
    assert direct.writes == john.writes


def test_a_socket_is_not_written_to_directly_once_it_may_not(
    call: WatchedCall, changes: Changes, direct: DirectWatcher
) -> None:
    publish(call, b"1")
    direct.took()
    kept, direct.direct = direct.direct, None
    changes.count += 1
    publish(call, b"2")
    assert (direct.took(), direct.writes) == ([], [b"\x81\x012"])
    direct.direct = kept
    changes.count += 1
    publish(call, b"3")
    assert direct.took() == [b"3"]


def test_who_comes_and_goes_is_written_to_in_between_only(
    call: WatchedCall, direct: DirectWatcher
) -> None:
    late = DirectWatcher()
    publish(call, b"1")
    call.enter(late)
    publish(call, b"2")
    call.leave(late)
    publish(call, b"3")
    assert (direct.took(), late.took()) == ([b"1", b"2", b"3"], [b"2"])
    late.close()
