"""A process of hostile peers: ``python -m benchmarks.peers PORT KIND COUNT``.

It says ``ready``, begins on the line ``go``, answers ``report`` with JSON (how many are connected,
how they have ended so far) and ends with its stdin. It runs at idle priority: whoever measures on
the same core goes first.
"""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks import doors
from benchmarks.line import PING, TEXT, Gone, Line, frame

LIFE_S = 8.0
"""A peer that nobody ends begins anew."""
HEAR_S = 0.2
"""How long a peer that has said everything waits for what it is told."""
FLOOD = 30
"""Times that a flood of some hundred frames is sent before it begins anew."""
BUSY_CID = "default:busy"
FILL = "x" * 4900
SPEAKERS, SPEAK_S = 10, 0.055
"""Sockets that keep the busy call busy, below the rate that a socket is allowed."""
HERD_S = 1.0
SILENT_S = 4.0
"""Longer than the relay of the benchmark lets a socket be silent."""


@dataclass(slots=True)
class Attack:
    """What all peers of the process share."""

    port: int
    ends: "Counter[str]"
    firsts: list[str]
    connected: int = 0

    def first(self) -> str:
        """Return the first frame of one of the users."""
        return random.choice(self.firsts)


Script = Callable[[Line, Attack], Awaitable[None]]


async def never_authenticates(line: Line, attack: Attack) -> None:
    """Become a socket and say nothing."""
    await line.upgrade()
    await line.listen(SILENT_S)


async def herd(line: Line, attack: Attack) -> None:
    """Become a socket, and leave in the same moment as all others."""
    await line.upgrade()
    now = asyncio.get_running_loop().time()
    await line.listen(HERD_S - now % HERD_S)


async def bad_token(line: Line, attack: Attack) -> None:
    """Log in with a token that somebody else signed."""
    await line.upgrade()
    head, _, tail = attack.first().partition('","products')
    await line.say(frame(TEXT, f'{head[:-4]}AAAA","products{tail}'.encode()))
    await line.listen(HEAR_S)


async def stops_reading(line: Line, attack: Attack) -> None:
    """Watch a busy call and read nothing: its window is shut soon."""
    await _watch_sipping(line, attack, 0)


async def sips(line: Line, attack: Attack) -> None:
    """Watch a busy call and read a byte a second."""
    await _watch_sipping(line, attack, 1)


async def _watch_sipping(line: Line, attack: Attack, size: int) -> None:
    await line.log_in(attack.first())
    line.stop_reading()
    await line.say(_command("call.watch", BUSY_CID))
    while True:
        await asyncio.sleep(1.0)
        line.sip(size)


async def drips(line: Line, attack: Attack) -> None:
    """Send a byte a second of a frame that never ends, half of them before the login."""
    if random.random() < 0.5:
        await line.upgrade()
    else:
        await line.log_in(attack.first())
    for byte in frame(TEXT, bytes(1000)):
        await line.say(bytes([byte]))
        await line.listen(1.0)


async def pings(line: Line, attack: Attack) -> None:
    """Send pings that each ask for as long an answer as there may be."""
    await line.log_in(attack.first())
    await _flood(line, frame(PING, bytes(125)) * 100)


async def fragments(line: Line, attack: Attack) -> None:
    """Send a message in fragments of a byte, without an end."""
    await line.log_in(attack.first())
    await line.say(frame(TEXT, b" ", fin=False))
    await _flood(line, frame(0, b" ", fin=False) * 500)


async def giants(line: Line, attack: Attack) -> None:
    """Send the largest messages there may be, nested as deep as that goes, then a terabyte."""
    await line.log_in(attack.first())
    for _ in range(50):
        await line.say(frame(TEXT, b"[" * 65_535))
    await line.say(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4))
    await _flood(line, bytes(65_536))


async def commands(line: Line, attack: Attack) -> None:
    """Send commands, each for another call, and do not listen to refusals."""
    await line.log_in(attack.first())
    cids = [f"default:{random.getrandbits(40):x}" for _ in range(100)]
    await _flood(line, b"".join(_command("call.watch", cid) for cid in cids))


async def loris(line: Line, attack: Attack) -> None:
    """Send the head of an HTTP request, a byte a second."""
    await line.say(b"POST /webhooks/stream HTTP/1.1\r\n")
    while True:
        await line.say(b"x")
        await line.listen(1.0)


async def _flood(line: Line, data: bytes) -> None:
    for _ in range(FLOOD):
        await line.say(data)
        await asyncio.sleep(0)
    await line.listen(HEAR_S)


def _command(verb: str, cid: str, **more: object) -> bytes:
    message = {"type": verb, "id": 1, "call_cid": cid, **more}
    return frame(TEXT, doors.compact(message))


SCRIPTS: dict[str, Script] = {
    script.__name__: script
    for script in (
        never_authenticates, herd, bad_token, stops_reading, sips, drips, pings, fragments, giants,
        commands, loris,
    )
}  # fmt: skip
SLOW_READERS = ("stops_reading", "sips")


async def peer(attack: Attack, script: Script, pause_s: float) -> None:
    """Do the same again and again."""
    window = 4096 if script.__name__ in SLOW_READERS else 0
    while True:
        try:
            line = await Line.dial(attack.port, attack.ends, window=window)
        except OSError:
            await asyncio.sleep(pause_s)
            continue
        attack.connected += 1
        try:
            async with asyncio.timeout(LIFE_S):
                await script(line, attack)
        except (Gone, TimeoutError):
            pass
        finally:
            attack.connected -= 1
            line.close()
        await asyncio.sleep(random.uniform(0.5, 1.5) * pause_s)


async def speaker(attack: Attack) -> None:
    """Keep the busy call busy, as a client that does nothing wrong."""
    while True:
        line = await Line.dial(attack.port, Counter())
        try:
            await line.log_in(attack.first())
            while True:
                await line.say(_command("call.send", BUSY_CID, custom={"fill": FILL}))
                await line.listen(SPEAK_S)
        except (Gone, TimeoutError):
            line.close()


async def main(port: int, kind: str, count: int, pause_s: float) -> None:
    """Attack from ``go`` until stdin ends."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    attack = Attack(port, Counter(), doors.first_frames(8 * count, "hostile"))
    tasks: list[asyncio.Task[None]] = []

    def on_line() -> None:
        match sys.stdin.readline().strip():
            case "go":
                script = SCRIPTS[kind]
                tasks.extend(loop.create_task(peer(attack, script, pause_s)) for _ in range(count))
                if kind in SLOW_READERS:
                    tasks.extend(loop.create_task(speaker(attack)) for _ in range(SPEAKERS))
            case "report":
                facts = {"connected": attack.connected, "ends": attack.ends}
                attack.ends = Counter()
                print(json.dumps(facts), flush=True)
            case _:
                ended.set()

    loop.add_reader(sys.stdin.fileno(), on_line)
    print("ready", flush=True)
    await ended.wait()


if __name__ == "__main__":
    import uvloop

    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
