"""What only a real process has: TLS, proxies in front of it, connections that are kept alive."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from relay import signing
from tests.integration.doors import event_path, webhook
from tests.processes import API_KEY, API_SECRET, RelayProcess
from tests.relay_client import connected

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=relay", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", str(key), "-out", str(certificate),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


async def test_with_a_certificate_it_speaks_https_and_wss(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    with RelayProcess(tls_cert=certificate[0], tls_key=certificate[1]) as relay:
        assert relay.base_url.startswith("https://")
        assert relay.socket_url.startswith("wss://")
        async with (
            connected(relay, "john", ssl=context) as john,
            httpx.AsyncClient(base_url=relay.base_url, verify=context) as client,
        ):
            await john.watch("default:tls")
            response = await client.post(
                event_path("default:tls"),
                params={"api_key": API_KEY},
                json={"custom": {"n": 1}, "user_id": "jane"},
                headers={"authorization": relay.token(), "stream-auth-type": "jwt"},
            )
            assert response.status_code == 201, response.text
            [event] = await john.until_count(1)
            assert event["custom"] == {"n": 1}


async def test_a_socket_over_tls_that_stops_reading_is_cut_off(
    certificate: tuple[Path, Path],
) -> None:
    """The bounds read the transport's buffer, which is another one with TLS."""
    context = ssl.create_default_context(cafile=certificate[0])
    with RelayProcess(
        tls_cert=certificate[0],
        tls_key=certificate[1],
        command_rate=0,
        soft_buffer_bytes=65_536,
        hard_buffer_bytes=262_144,
    ) as relay:
        async with connected(relay, "slow", ssl=context) as slow:
            await slow.watch("default:tls-slow")
            slow.socket.transport.pause_reading()
            async with connected(relay, "john", ssl=context) as john:
                for n in range(4000):
                    await john.send("default:tls-slow", {"n": n, "pad": "x" * 4000})
                    if '"why": "slow"' in relay.log:
                        break
                await anyio.to_thread.run_sync(relay.wait_for_line, '"why": "slow"')
            slow.socket.transport.resume_reading()


@pytest.fixture(params=["127.0.0.1", "192.0.2.1"])
def proxied(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    with RelayProcess(trusted_proxies=request.param) as relay:
        yield relay


async def test_a_forwarded_address_is_believed_from_trusted_proxies_only(
    proxied: RelayProcess, request: pytest.FixtureRequest
) -> None:
    headers = {"X-Forwarded-For": "198.51.100.9, 203.0.113.7"}
    async with connected(proxied, "john", additional_headers=headers) as john:
        await john.socket.send(b"binary")
        assert await john.until_closed() == 1003
    await anyio.to_thread.run_sync(proxied.wait_for_line, "socket closed")
    [line] = [json.loads(line) for line in proxied.lines if '"socket closed"' in line]
    trusted = request.node.callspec.params["proxied"] == "127.0.0.1"
    assert line["peer"] == ("203.0.113.7" if trusted else "127.0.0.1")


async def test_the_webhook_door_keeps_its_connection_for_the_next_request(
    relay: RelayProcess,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        for n in (1, 2):
            body = webhook("default:kept-alive", {"n": n})
            signature = signing.stream_signature(body, API_SECRET)
            writer.write(
                b"POST /webhooks/stream HTTP/1.1\r\nHost: relay\r\nX-Api-Key: %b\r\n"
                b"X-Signature: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (API_KEY.encode(), signature.encode(), len(body), body)
            )
            async with asyncio.timeout(5):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                assert head.startswith(b"http/1.1 200"), head
                assert b"connection: close" not in head
                [length] = [
                    int(line.split(b":")[1])
                    for line in head.splitlines()
                    if line.startswith(b"content-length:")
                ]
                answer = json.loads(await reader.readexactly(length))
            assert (answer["status"], answer["offset"]) == ("published", n)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_an_origin_that_is_not_allowed_gets_no_socket_and_no_answer_it_may_read() -> None:
    with RelayProcess(allowed_origins="https://app.example") as relay:
        async with httpx.AsyncClient(base_url=relay.base_url) as client:
            for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
                headers = {"origin": origin, "access-control-request-method": "POST"}
                answer = await client.options("/video/guest", headers=headers)
                assert (answer.status_code == 200) is allowed
                answer = await client.get("/video/none", headers={"origin": origin})
                assert ("access-control-allow-origin" in answer.headers) is allowed
