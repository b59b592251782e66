"""What one run of the benchmarks was asked to do, and the programs it needs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine


@dataclass(frozen=True, slots=True)
class Plan:
    """The arguments of a run, with what they lead to."""

    relay: list[str]
    sockets: int
    window: int
    payload: int
    quick: bool
    kind: str
    scratch: Path

    @property
    def floor_program(self) -> Path:
        """The compiled floor."""
        return self.scratch / "floor"

    @property
    def load_program(self) -> Path:
        """The compiled load client."""
        return self.scratch / "load"


@contextmanager
def compiled() -> Iterator[Path]:
    """Compile the C programs into a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        scratch = Path(name)
        machine.compile_c(scratch, "floor", "floor.c")
        machine.compile_c(scratch, "load", "load.c", "client.c")
        yield scratch
