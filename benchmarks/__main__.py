"""``python -m benchmarks [fanout|memory|publish|deliver|hostile]``: measure, print tables."""

import argparse
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import deliver, fanout, hostile, machine, memory, publish
from benchmarks.plan import Plan, compiled
from benchmarks.servers import Broken, Redis, relay_command
from benchmarks.table import AnyRow, Row, render

PARTS: dict[str, Callable[[Plan], Iterator[AnyRow]]] = {
    "fanout": fanout.measure,
    "memory": memory.measure,
    "publish": publish.measure,
    "deliver": deliver.measure,
    "hostile": hostile.measure,
}

LEGEND = """\
server CPU: all CPU time of the relay's process in the slice, with taking the events in, by what
was delivered. C loop: the same of a bare send() loop, in slices between the relay's, on the same
core; it joins as many frames per send() as the relay did. ×: relay / C loop, the median of the
rounds; in brackets the least and the most. events/write: what the relay put into one write, read
from the receivers' TCP. core: the share of its core that the server used. p50 / p99: from the
clock before the publisher writes to the clock after a watcher reads. Hostile peers: the latency of
the others, and how the hostile ones ended, as the relay counted and as they were told (all slices
together; `left` ended their own way)."""


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; return 1 when it cannot run or, with --check, when a row troubles."""
    args = _parser().parse_args(arguments)
    _raise_file_limit(args.sockets)
    print("\n".join(machine.environment()), flush=True)
    if not Redis.installed():
        print("(no redis-server: its rows are left out)")
    try:
        with compiled() as scratch:
            rows = _run(args, scratch)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"\nfailed: {error}", file=sys.stderr)
        return 1
    print(f"\n{render(rows)}\n\n{LEGEND}\n")
    troubled = [row for row in rows if row.trouble]
    for row in troubled:
        print(f"! {row.name}: {row.trouble}")
    if not troubled:
        print("every limit held")
    return 1 if troubled and args.check else 0


def _run(args: argparse.Namespace, scratch: Path) -> list[AnyRow]:
    plan = Plan(
        relay=shlex.split(args.relay) if args.relay else relay_command(),
        sockets=args.sockets,
        window=args.window,
        payload=args.payload,
        quick=args.quick,
        kind=args.kind,
        scratch=scratch,
    )
    rows: list[AnyRow] = []
    with machine.pinned(machine.cores().load):
        for name in PARTS if args.part == "all" else (args.part,):
            for row in _rows(name, plan):
                print(f"  … {row.name}", file=sys.stderr, flush=True)
                rows.append(row)
    return rows


def _rows(part: str, plan: Plan) -> Iterator[AnyRow]:
    try:
        yield from PARTS[part](plan)
    except (Broken, OSError) as error:
        yield Row(what=part, broker="", cost="failed", trouble=str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the relay beside a bare C loop in the same run.",
        epilog="example: python -m benchmarks fanout --quick",
    )
    parser.add_argument(
        "part",
        nargs="?",
        default="all",
        choices=["all", *PARTS],
        help="fanout: cost of a delivery; memory: of an idle socket; publish: of an event; "
        "deliver: of a delivery to a hook; hostile: what others feel of hostile peers",
    )
    parser.add_argument("--quick", action="store_true", help="short slices, for a first look")
    kinds = [kind.script for kind in hostile.KINDS]
    parser.add_argument("--kind", default="", choices=kinds, help="hostile: of one kind alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is missed")
    parser.add_argument("--sockets", type=int, default=1000, help="watchers (%(default)s)")
    parser.add_argument("--window", type=int, default=16, help="events under way (%(default)s)")
    parser.add_argument("--payload", type=int, default=200, help="bytes of custom (%(default)s)")
    parser.add_argument("--relay", help="the command to start, before `serve` (the one installed)")
    return parser


def _raise_file_limit(sockets: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = sockets + 1000
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(need, soft), hard), hard))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
