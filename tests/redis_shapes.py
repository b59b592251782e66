"""Redis in every shape, as real servers on free ports: Sentinel with its trio, a Cluster.

Servers start side by side; each is ended by its own handle. One that is silent for seconds is not
taken for dead, or a busy machine would replace a primary that a test counts on: a test in which one
dies says ``set_down_after(QUICK_MS)`` then.

With ``fronted`` they name the ports of proxies as their own (tests/broker/proxy.py), which have to
run before the servers start: the relays and the servers' own replication then go through those, a
Cluster's bus and the way to the sentinels do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from relay.broker.slots import key_slot
from tests.redis_server import BINARY, RedisServer, free_port

QUICK_MS = 1000
PATIENT_MS = 15_000
PATIENCE_S = 60.0
AGAIN_S = 5.0


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true; fail naming ``what`` when it does not become so."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)


def ask_until(ask: Callable[[], object], condition: Callable[[], object], what: str) -> None:
    """As ``until``, and ask for it, again every few seconds: servers give up what takes long."""
    asked = -AGAIN_S

    def is_true() -> bool:
        nonlocal asked
        if condition():
            return True
        if time.monotonic() - asked >= AGAIN_S:
            with suppress(ValueError):  # whom to ask is not known yet
                ask()
                asked = time.monotonic()
        return False

    until(is_true, what)


def _is_linked(server: RedisServer) -> bool:
    with server.client() as client:
        return client.info("replication").get("master_link_status") == "up"


class Watched:
    """A primary, its replica, and three sentinels that call it ``main``."""

    def __init__(self, *arguments: str, binary: str = BINARY, fronted: bool = False) -> None:
        quick = ("--repl-diskless-sync-delay", "0", *arguments)
        self.servers = [RedisServer(*quick, binary=binary, fronted=fronted) for _ in range(2)]
        self.sentinels = [RedisServer(sentinel=True, binary=binary) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/main"
        self._stack = ExitStack()

    @property
    def primary(self) -> RedisServer:
        """The server that the sentinels call the primary."""
        with self.sentinels[0].client() as client:
            [_, port] = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return next(server for server in self.servers if server.front == int(port))

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        primary = self.primary
        return next(server for server in self.servers if server is not primary)

    def client(self, **options: Any) -> redis.Redis:
        return self.primary.client(**options)

    def part(self) -> tuple[RedisServer, RedisServer]:
        """Part the replica from its primary, so that it has what came before and nothing after.

        Return both. The replica stands still until it is thawed.
        """
        primary, replica = self.primary, self.replica
        replica.freeze()
        with primary.client() as client:  # or the kernel would keep the rest for it
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        return primary, replica

    def failover(self) -> None:
        """Have the replica promoted, and return once the sentinels say so."""
        before = self.primary
        with self.sentinels[0].client() as client:
            ask_until(
                lambda: client.execute_command("SENTINEL", "FAILOVER", "main"),
                lambda: self.primary is not before,
                "another primary",
            )

    def until_replaced(self, primary: RedisServer) -> None:
        """Return once the sentinels call another one the primary."""
        until(lambda: self.primary is not primary, "another primary")

    def set_down_after(self, ms: int) -> None:
        """Have the sentinels take a server for dead that is silent for so long."""
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                client.execute_command("SENTINEL", "SET", "main", "down-after-milliseconds", ms)

    def until_joined(self) -> None:
        """Return once the other one is a replica of the primary, and has what that has."""
        until(lambda: _is_linked(self.replica), "a replica")

    def __enter__(self) -> Watched:
        with ExitStack() as stack:
            for server in (*self.servers, *self.sentinels):
                stack.callback(server.close)
                server.launch()
            for server in (*self.servers, *self.sentinels):
                server.await_start()
            primary, replica = self.servers
            with replica.client() as client:
                client.replicaof("127.0.0.1", primary.front)
            for sentinel in self.sentinels:
                with sentinel.client() as client:
                    for command in (
                        ("MONITOR", "main", "127.0.0.1", primary.front, 2),
                        ("SET", "main", "down-after-milliseconds", PATIENT_MS),
                        ("SET", "main", "failover-timeout", 3000),
                    ):
                        client.execute_command("SENTINEL", *command)
            until(self._is_complete, "sentinels that know each other and the replica")
            self._stack = stack.pop_all()
        return self

    def _is_complete(self) -> bool:
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                [facts] = client.execute_command("SENTINEL", "MASTERS")
            known = [facts[name] for name in ("num-slaves", "num-other-sentinels", "flags")]
            if known != ["1", "2", "master"]:
                return False
        return _is_linked(self.servers[1])

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Cluster:
    """Primaries that share the slots, each with ``replicas`` replicas.

    With a ``certificate`` (its key.pem beside it) they speak TLS at ``tls_url`` as well.
    """

    def __init__(
        self,
        *arguments: str,
        primaries: int = 3,
        replicas: int = 0,
        certificate: Path | None = None,
        fronted: bool = False,
    ) -> None:
        tls_ports = [free_port() for _ in range(primaries * (1 + replicas))]
        self.tls_url = f"rediss+cluster://localhost:{tls_ports[0]}"
        self._meeting_port = None if certificate is None else tls_ports[0]
        self.servers = [
            RedisServer(
                "--cluster-enabled", "yes", "--cluster-port", str(free_port()),
                "--cluster-node-timeout", str(QUICK_MS),  # or starting would take longer
                "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
                *_tls(certificate, tls_port), *arguments, fronted=fronted,
            )
            for tls_port in tls_ports
        ]  # fmt: skip
        self._primaries = primaries
        self.url = f"redis+cluster://127.0.0.1:{self.servers[0].front}"
        self._stack = ExitStack()

    # -- looking ----------------------------------------------------------------------------------

    def client(self, **options: Any) -> redis.Redis:
        """Return a client of one of the servers."""
        return self.servers[0].client(**options)

    def ranges(self, asked: RedisServer | None = None) -> list[tuple[int, int, int, list[int]]]:
        """Return first and last slot, the primary's front and its replicas', as a node sees it."""
        reply = self.run(asked or self.servers[0], "CLUSTER", "SLOTS")
        return [
            (first, last, primary[1], [replica[1] for replica in replicas])
            for first, last, primary, *replicas in reply
        ]

    def owner(self, key: str) -> RedisServer:
        """Return the primary that serves a key."""
        slot = key_slot(key)
        for asked in self.servers:
            if asked.is_running:
                ports = [p for first, last, p, _ in self.ranges(asked) if first <= slot <= last]
                if ports:  # a node may not know during a change of primaries
                    return next(server for server in self.servers if server.front == ports[0])
        raise AssertionError("no server runs that knows the key's")

    def run(self, server: RedisServer, *command: str | int) -> Any:
        """Run a command on one server."""
        with server.client() as client:
            return client.execute_command(*command)

    def keys(self, pattern: str) -> list[str]:
        """Return the keys on all primaries."""
        ports = {port for _, _, port, _ in self.ranges()}
        found = [self.run(s, "KEYS", pattern) for s in self.servers if s.front in ports]
        return [key for keys in found for key in keys]

    # -- changing ---------------------------------------------------------------------------------

    def begin_migration(self, key: str) -> tuple[RedisServer, RedisServer]:
        """Open the migration of a key's slot; return from where and to where."""
        source = self.owner(key)
        ports = [port for _, _, port, _ in self.ranges() if port != source.front]
        target = next(server for server in self.servers if server.front == ports[0])
        slot = key_slot(key)
        self.run(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.run(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))
        return source, target

    def move_keys(self, key: str, source: RedisServer, target: RedisServer) -> None:
        """Send the keys of a key's slot over."""
        while names := self.run(source, "CLUSTER", "GETKEYSINSLOT", key_slot(key), 100):
            self.run(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)

    def end_migration(self, key: str, source: RedisServer, target: RedisServer) -> None:
        """Send what came meanwhile too, and tell every server who has the slot now."""
        self.move_keys(key, source, target)
        slot = key_slot(key)
        others = [s for s in self.servers if s not in (source, target)]
        for server in (target, source, *others):
            self.run(server, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def migrate(self, key: str) -> None:
        """Move a key's slot to another primary."""
        source, target = self.begin_migration(key)
        self.end_migration(key, source, target)

    def part(self, key: str) -> tuple[RedisServer, RedisServer]:
        """Part the replica of a key's primary from it, as ``Watched.part``."""
        primary = self.owner(key)
        until(lambda: self._replicas(primary), "a replica")
        [replica] = self._replicas(primary)
        replica.freeze()
        self.run(primary, "CLIENT", "KILL", "TYPE", "replica")
        return primary, replica

    def _replicas(self, primary: RedisServer) -> list[RedisServer]:
        ports = {p for _, _, port, found in self.ranges() if port == primary.front for p in found}
        return [server for server in self.servers if server.front in ports]

    def failover(self, key: str, *how: str) -> None:
        """Have a replica take over from the primary that serves a key; ``FORCE`` asks only it."""
        before = self.owner(key)

        def ask() -> None:
            [server] = self._replicas(before)
            self.run(server, "CLUSTER", "FAILOVER", *how)

        self.set_down_after(QUICK_MS)  # for multiples of it no other election is held
        ask_until(ask, lambda: self.owner(key) is not before, "another primary")
        until(self._is_patient, "nodes that all are taken to live")

    def set_down_after(self, ms: int) -> None:
        """Have the servers take one of them for dead that is silent for so long."""
        for server in self.servers:
            if server.is_running:
                self.run(server, "CONFIG", "SET", "cluster-node-timeout", ms)

    def _is_patient(self) -> bool:
        """Be patient from now on if no node is taken for dead: it would be for twice that time."""
        if self._has_failed():
            return False
        self.set_down_after(PATIENT_MS)
        if not self._has_failed():  # meanwhile
            return True
        self.set_down_after(QUICK_MS)
        return False

    def _has_failed(self) -> bool:
        nodes = [self.run(server, "CLUSTER", "NODES") for server in self.servers]
        flags = [line.split()[2].split(",") for known in nodes for line in known.splitlines()]
        return any("fail" in each for each in flags)

    def until_joined(self) -> None:
        """Return once all others are replicas of the primaries, and have what those have."""
        until(self._is_joined, "replicas")

    def _is_joined(self) -> bool:
        replicas = [server for server in self.servers if not self._is_primary(server)]
        is_parted = len(self.servers) - len(replicas) == self._primaries
        return is_parted and all(_is_linked(replica) for replica in replicas)

    def _is_primary(self, server: RedisServer) -> bool:
        return bool(self.run(server, "INFO", "replication")["role"] == "master")

    # -- starting ---------------------------------------------------------------------------------

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            for server in self.servers:
                stack.callback(server.close)
                server.launch()
            for server in self.servers:
                server.await_start()
            self._join()
            self._stack = stack.pop_all()
        return self

    def _join(self) -> None:
        edges = [16384 * n // self._primaries for n in range(self._primaries + 1)]
        for number, server in enumerate(self.servers):
            self._set_epoch(server, number + 1)
            if number < self._primaries:
                span = edges[number], edges[number + 1] - 1
                self.run(server, "CLUSTER", "ADDSLOTSRANGE", *span)
        ask_until(self._meet, self._have_met, "nodes that know each other")
        for number, server in enumerate(self.servers[self._primaries :]):
            primary = self._id(self.servers[number])
            until(lambda s=server, p=primary: self.run(s, "CLUSTER", "REPLICATE", p), "a replica")
        until(self._is_complete, "a cluster whose nodes agree")
        until(self._is_patient, "nodes that all are taken to live")

    def _meet(self) -> None:
        first, *others = self.servers
        bus = int(self.run(first, "CONFIG", "GET", "cluster-port")["cluster-port"])
        for server in others:
            self.run(server, "CLUSTER", "MEET", "127.0.0.1", self._meeting_port or first.port, bus)

    def _have_met(self) -> bool:
        """Tell whether every node knows all; one that is slow to shake hands is forgotten."""
        nodes = [self.run(server, "CLUSTER", "NODES") for server in self.servers]
        return all(
            "handshake" not in known and len(known.splitlines()) == len(self.servers)
            for known in nodes
        )

    def _set_epoch(self, server: RedisServer, epoch: int) -> None:
        """Give a node its epoch. redis-py repeats what is answered late, and Redis refuses that."""
        try:
            self.run(server, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
        except redis.ResponseError as error:
            if "already non-zero" not in str(error):
                raise

    def _id(self, server: RedisServer) -> str:
        return str(self.run(server, "CLUSTER", "MYID"))

    def _is_complete(self) -> bool:
        """Tell whether every node knows the same of all, also by which ports they are reached."""
        replicas = self.servers[self._primaries :]
        each = len(replicas) // self._primaries
        agreed = self._view(self.servers[0])
        if [len(found) for *_, found in agreed] != [each] * self._primaries:
            return False
        for server in self.servers:
            if self._view(server) != agreed:
                return False  # perhaps it knows another by the port that it met it at
            if "cluster_state:ok" not in self.run(server, "CLUSTER", "INFO"):
                return False
        return all(_is_linked(replica) for replica in replicas)

    def _view(self, asked: RedisServer) -> list[tuple[int, int, int, list[int]]]:
        ranges = sorted(self.ranges(asked))
        return [(first, last, port, sorted(found)) for first, last, port, found in ranges]

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _tls(certificate: Path | None, port: int) -> list[str]:
    if certificate is None:
        return []
    return [
        "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-auth-clients", "no",
        "--tls-key-file", str(certificate.with_name("key.pem")),
        "--tls-ca-cert-file", str(certificate), "--tls-cluster", "yes",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def redis_sentinel() -> Iterator[Watched]:
    """Return a primary with sentinels that the tests of a session share."""
    with Watched() as watched:
        yield watched


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """Return a Cluster that the tests of a session share, and do not break."""
    with Cluster() as cluster:
        yield cluster
