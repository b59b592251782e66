"""Memory of an idle socket: the relay's private memory with many sockets, less that with few.

The few (``FIRST``) stay open: they have paid for what is bought once, such as modules, pools and
the first growth of tables, and nothing that they freed can hide what the others need.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks import machine
from benchmarks.load import Load
from benchmarks.plan import Plan
from benchmarks.servers import Relay
from benchmarks.table import Row

FIRST = 300
LIMIT_KIB = 12.0


def measure(plan: Plan) -> Iterator[Row]:
    """Yield the row of memory and the row of what joining costs."""
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(plan.relay, plan.scratch, None))
        load = Load(stack.enter_context(Load.program(plan.load_program)), relay)
        load.to_relay(FIRST, more=plan.sockets)
        machine.settle(relay.pids())
        memory, cpu = machine.private_bytes(relay.pids()), machine.cpu_s(relay.pids())
        load.open(plan.sockets)
        cpu = machine.cpu_s(relay.pids()) - cpu
        machine.settle(relay.pids())
        kib = (machine.private_bytes(relay.pids()) - memory) / 1024 / plan.sockets
    yield Row(
        what="idle memory",
        broker="embedded",
        cost=f"{kib:.1f} KiB/socket",
        limit=f"{LIMIT_KIB:.0f} KiB",
        trouble="" if kib <= LIMIT_KIB else "over the limit",
    )
    yield Row(
        what="joining (upgrade, token, watch)",
        broker="embedded",
        cost=f"{cpu * 1e6 / plan.sockets:.0f} µs/socket",
    )
