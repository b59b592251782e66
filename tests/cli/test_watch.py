"""``relay watch`` on real sockets, against a server that plays a script."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from relay import tokens
from relay.cli import credentials
from tests.cli.conftest import Relay

ENVIRON = {"RELAY_API_KEY": "k&y", "RELAY_API_SECRET": "s" * 40}
OK = {"type": "connection.ok", "connection_id": "c"}
WATCHING = {"type": "call.watching", "id": 1, "epoch": "k3", "offset": 6}
REFUSED = {"type": "connection.error", "error": {"code": 17, "message": "enough"}}
EVENT = {
    "type": "custom", "created_at": "2026-11-23T07:34:33.477260007Z", "user": {"id": "john"},
    "custom": {"a": 1}, "epoch": "k3", "offset": 7,
}  # fmt: skip

Script = Callable[[ServerConnection], None]


class Sockets:
    """A real WebSocket server; each script plays one connection, the last one every further."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.frames: list[dict[str, object]] = []
        self.paths: list[str] = []
        self._server: Server = serve(self._play, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _play(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.paths.append(connection.request.path)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        script(connection)

    def get(self, connection: ServerConnection) -> None:
        self.frames.append(json.loads(connection.recv(timeout=5)))

    def watched(self, connection: ServerConnection, **fields: object) -> None:
        """Take the login and the watch."""
        self.get(connection)
        connection.send(json.dumps(OK))
        self.get(connection)
        connection.send(json.dumps(WATCHING | fields))

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    server = Sockets()
    yield server
    server.close()


def refuse(connection: ServerConnection) -> None:
    connection.send(json.dumps(REFUSED))


def test_it_logs_in_watches_and_prints_events(relay: Relay, sockets: Sockets) -> None:
    def play(connection: ServerConnection) -> None:
        sockets.watched(connection)
        connection.send(json.dumps(EVENT))
        refuse(connection)

    sockets.scripts = [play]
    answer = relay("watch", "default:demo", "--url", sockets.url, "--user", "ann", **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stdout == '07:34:33.477  #7  custom  john  {"a":1}\n'
    assert answer.stderr.splitlines() == [
        "relay: watching default:demo from k3:6",
        "relay: refused: enough (code 17)",
    ]
    assert sockets.paths == ["/video/connect?api_key=k%26y&stream-auth-type=jwt"]
    login, command = sockets.frames
    claims = tokens.verify(str(login["token"]), "k&y", {"k&y": ["s" * 40]}, time.time())
    assert claims.user_id == "ann"
    assert command == {"type": "call.watch", "id": 1, "call_cid": "default:demo"}


def test_it_connects_again_and_recovers(relay: Relay, sockets: Sockets) -> None:
    def first(connection: ServerConnection) -> None:
        sockets.watched(connection)
        connection.send(json.dumps(EVENT))
        connection.close(1012)

    def second(connection: ServerConnection) -> None:
        sockets.watched(connection, recovered=True, offset=8)
        connection.send(json.dumps(EVENT | {"offset": 8}))
        refuse(connection)

    sockets.scripts = [first, second]
    answer = relay("watch", "default:demo", "--url", sockets.url)
    assert [line.split()[1] for line in answer.stdout.splitlines()] == ["#7", "#8"]
    assert "the socket was closed (1012): connecting again in 0." in answer.stderr
    assert "again, nothing was lost" in answer.stderr
    assert sockets.frames[-1]["since"] == {"epoch": "k3", "offset": 7}


def test_since_is_sent_and_a_gap_told(relay: Relay, sockets: Sockets) -> None:
    def play(connection: ServerConnection) -> None:
        sockets.watched(connection, recovered=False)
        refuse(connection)

    sockets.scripts = [play]
    answer = relay("watch", "default:demo", "--since", "a:b:2", "--url", sockets.url)
    assert sockets.frames[-1]["since"] == {"epoch": "a:b", "offset": 2}
    assert "events were missed between a:b:2 and k3:6" in answer.stderr


def test_json_prints_what_came(relay: Relay, sockets: Sockets) -> None:
    def play(connection: ServerConnection) -> None:
        sockets.watched(connection)
        connection.send(json.dumps(EVENT))
        refuse(connection)

    sockets.scripts = [play]
    answer = relay("watch", "default:demo", "--json", "--url", sockets.url)
    assert answer.stdout == json.dumps(EVENT) + "\n"


def test_the_demo_s_credentials_log_in_when_none_are_set(relay: Relay, sockets: Sockets) -> None:
    def play(connection: ServerConnection) -> None:
        sockets.get(connection)
        refuse(connection)

    sockets.scripts = [play]
    answer = relay("watch", "default:demo", "--url", sockets.url)
    keys = {"demo": [credentials.DEMO.secret]}
    assert tokens.verify(str(sockets.frames[0]["token"]), "demo", keys, time.time())
    assert "'relay demo'" in answer.stderr


def test_a_server_that_is_no_relay_is_told(relay: Relay, sockets: Sockets) -> None:
    def play(connection: ServerConnection) -> None:
        sockets.get(connection)
        connection.send("hello")

    sockets.scripts = [play]
    answer = relay("watch", "default:demo", "--url", sockets.url, **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stderr == "relay: the relay's frame is not valid JSON: is this a relay?\n"


def test_nobody_listening_at_first_is_one_line_and_code_1(relay: Relay) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        answer = relay("watch", "default:demo", "--url", f"http://{address}", **ENVIRON)
    assert answer.exit_code == 1
    assert answer.stderr == (
        f"relay: ws://{address}/video/connect: nothing listens there: is the relay running?\n"
    )


def test_ctrl_c_ends_quietly(
    process: Callable[..., subprocess.Popen[str]], sockets: Sockets
) -> None:
    def play(connection: ServerConnection) -> None:
        sockets.watched(connection)
        connection.send(json.dumps(EVENT))
        for _ in connection:
            """Nothing more is expected."""

    sockets.scripts = [play]
    child = process("watch", "default:demo", "--url", sockets.url, **ENVIRON)
    assert child.stdout is not None
    assert "#7" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    rest, complaints = child.communicate(timeout=10)
    assert (child.returncode, rest) == (0, "")
    assert complaints == "relay: watching default:demo from k3:6\n"
