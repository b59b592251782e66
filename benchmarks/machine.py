"""What the operating system tells: the environment, cores, a process's CPU time and memory."""

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("uvloop", "uvicorn", "websockets", "httptools", "msgspec", "redis", "hiredis")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core the measured server has for itself, and which everything else shares."""

    server: int
    load: int


@cache
def cores() -> Cores:
    """Return the last core we may use for the server and the first for the rest.

    Decided once, before anything is pinned.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(server=allowed[-1], load=allowed[0])


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run the body on one core; what it starts inherits that and keeps it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """Return a process and its descendants, so that a supervisor's worker is counted too."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds, user and system, that these processes used since they started.

    The clock is the scheduler's own, in nanoseconds; the ticks of ``/proc/<pid>/stat`` are 10 ms.
    """
    return sum(time.clock_gettime(_cpu_clock(pid)) for pid in pids)


def _cpu_clock(pid: int) -> int:
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
    if error:
        raise OSError(error, f"no CPU clock of process {pid}: {os.strerror(error)}")
    return clock.value


def private_bytes(pids: list[int]) -> int:
    """Return the memory that only these processes hold, in user space; shared pages are left out.

    What the kernel keeps for a socket is in no process's figures.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_"):
                total += int(line.split()[1]) * 1024
    return total


def settle(pids: list[int], within_s: float = 15.0) -> None:
    """Wait until the processes are idle: three half seconds in a row below 5 % of a core."""
    quiet, end = 0, time.monotonic() + within_s
    while quiet < 3 and time.monotonic() < end:
        before = cpu_s(pids)
        time.sleep(0.5)
        quiet = quiet + 1 if cpu_s(pids) - before < 0.025 else 0


def compile_c(folder: Path, name: str, *sources: str) -> Path:
    """Compile C sources of this folder with the system's ``cc`` and return the program."""
    program = folder / name
    paths = [str(HERE / source) for source in sources]
    subprocess.run(["cc", "-O2", "-o", str(program), *paths], check=True)
    return program


def environment() -> list[str]:
    """Return lines that say where the figures come from."""
    chosen = cores()
    shared = " (the same: no figure of this run means much)" if chosen.server == chosen.load else ""
    return [
        f"date      {time.strftime('%Y-%m-%d', time.gmtime())}, relay {_version('relay')}",
        f"CPU       {_cpu_model()}, {os.cpu_count()} cores",
        f"cores     server on {chosen.server}, load and Redis on {chosen.load}{shared}",
        f"kernel    {platform.system()} {platform.release()} {platform.machine()}",
        f"Python    {platform.python_implementation()} {sys.version.split()[0]}",
        "packages  " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        f"programs  {_first_line('cc', '--version')}; {_first_line('redis-server', '--version')}",
    ]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _first_line(program: str, flag: str) -> str:
    if shutil.which(program) is None:
        return f"no {program}"
    answer = subprocess.run([program, flag], capture_output=True, text=True, check=True)
    return " ".join(answer.stdout.splitlines()[0].split()[:4])
