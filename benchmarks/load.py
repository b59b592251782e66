"""The load client (load.c) as an object: it opens sockets, publishes, and reports what arrived."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Self

from benchmarks import doors, machine
from benchmarks.servers import Broken, Child, Floor, Relay

ANSWER_S = 90.0


@dataclass(frozen=True, slots=True)
class Slice:
    """One measured slice: what arrived, and what it cost the server that sent it."""

    events: int
    deliveries: int
    bytes: int
    writes: int
    wall_s: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    @property
    def us_per_delivery(self) -> float:
        """All CPU time of the server in this slice, over the deliveries in it."""
        return self.cpu_s * 1e6 / self.deliveries

    @property
    def us_per_event(self) -> float:
        """All CPU time of the server in this slice, over the events published in it."""
        return self.cpu_s * 1e6 / self.events

    @property
    def events_per_write(self) -> float:
        """How many frames the server put into one write on average."""
        return self.deliveries / self.writes

    @property
    def frame_bytes(self) -> int:
        """The size of one frame on the wire, on average."""
        return round(self.bytes / self.deliveries)

    @property
    def events_per_s(self) -> float:
        """Events published and delivered to everyone, per second."""
        return self.events / self.wall_s

    @property
    def busy(self) -> float:
        """The share of its core that the server used."""
        return self.cpu_s / self.wall_s


class Load:
    """One load client with its sockets, to one server."""

    def __init__(self, child: Child, server: Relay | Floor) -> None:
        self._child, self._server = child, server
        self._publishers = (0, 0)

    @staticmethod
    def program(path: Path) -> Child:
        """Return the process, to be entered and handed to the constructor."""
        return Child([str(path)], machine.cores().load)

    def to_relay(self, sockets: int, more: int = 0) -> Self:
        """Authenticate and watch the benchmark's call with so many sockets; ``more`` may follow."""
        self._child.tell(f"target {self._server.port} {doors.CONNECT_PATH}")
        for frame in doors.first_frames(sockets + more):
            self._child.tell(f"auth {frame}")
        self._child.tell(f"watch {doors.watch_frame()}")
        self.open(sockets)
        return self

    def to_floor(self, sockets: int) -> Self:
        """Open so many sockets to the floor, which knows no conversation."""
        self._child.tell(f"target {self._server.port} /")
        self.open(sockets)
        return self

    def publish_to(self, relay: Relay) -> Self:
        """Let the publishers that are sockets connect to another relay than the watchers did."""
        self._child.tell(f"target {relay.port} {doors.CONNECT_PATH}")
        for frame in doors.first_frames(doors.PUBLISHERS):
            self._child.tell(f"auth {frame}")
        return self

    def open(self, sockets: int) -> None:
        """Open more of the same sockets, and return when each of them watches."""
        self._ask(f"open {sockets}")

    def publish_by(self, connections: int, port: int, publish: bytes) -> None:
        """Choose where publishers connect (port 0: as sockets, as watchers do) and their bytes."""
        if (connections, port) != self._publishers:
            self._ask(f"publishers {connections} {port}")
            self._publishers = (connections, port)
        self._child.tell(f"template {publish.hex()}")

    def saturate(self, seconds: float, window: int) -> Slice:
        """Publish as fast as ``window`` events under way allow."""
        return self._run(seconds, window, 0)

    def pace(self, seconds: float, per_s: float) -> Slice:
        """Publish so many events a second, evenly."""
        return self._run(seconds, 0, round(1e6 / per_s))

    def _run(self, seconds: float, window: int, every_us: int) -> Slice:
        pids = self._server.pids()
        before = machine.cpu_s(pids)
        answer = self._ask(f"run {round(seconds * 1000)} {window} {every_us}")
        spent = machine.cpu_s(pids) - before
        facts = {key: float(value) for key, _, value in (w.partition("=") for w in answer)}
        return Slice(
            events=int(facts["events"]),
            deliveries=int(facts["deliveries"]),
            bytes=int(facts["bytes"]),
            writes=int(facts["writes"]),
            wall_s=facts["wall_ns"] / 1e9,
            cpu_s=spent,
            p50_ms=facts["p50_us"] / 1000,
            p99_ms=facts["p99_us"] / 1000,
            max_ms=facts["max_us"] / 1000,
        )

    def _ask(self, command: str) -> list[str]:
        self._child.tell(command)
        verb, *words = self._child.hear(ANSWER_S).split()
        if verb == "failed":
            raise Broken(f"{command.split()[0]}: {' '.join(words)}")
        return words


def middle(slices: list[Slice], figure: Callable[[Slice], float]) -> float:
    """Return the median of one figure over several slices."""
    return median(figure(one) for one in slices)
