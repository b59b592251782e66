"""Rigs on real Redis: a shared server, or one of a test's own that it may break."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.harness import Recorder, RedisRig, closing
from tests.redis_server import RedisServer, redis_server, running

__all__ = ["redis_server"]


@pytest.fixture
async def rig(redis_server: RedisServer) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(redis_server)) as made:
        yield made


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
async def own_rig(own_server: RedisServer) -> AsyncIterator[RedisRig]:
    async with closing(RedisRig(own_server)) as made:
        yield made


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-keyout {tmp_path / 'key.pem'} -out {tmp_path / 'certificate.pem'} -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    subprocess.run(make.split(), check=True, capture_output=True)
    return tmp_path / "certificate.pem"
