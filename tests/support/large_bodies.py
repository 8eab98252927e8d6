"""Bodies that are as hard to take as the limits allow, and a heartbeat that feels them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

MIB = 1 << 20
BEAT_S = 0.002

FILLS: dict[str, Callable[[int], bytes]] = {
    "numbers": lambda size: b"[" + b"1," * (size // 2 - 2) + b"1]",
    "floats": lambda size: b"[" + b"0.125," * (size // 6 - 2) + b"1]",
    "pixels": lambda size: b"[" + b"[0,0,0]," * (size // 8 - 2) + b"1]",
    "rows": lambda size: b"[" + b",".join([b'{"a":1,"b":2}'] * (size // 14)) + b"]",
    "words": lambda size: b"[" + b'"ab",' * (size // 5 - 2) + b"1]",
    "quotes": lambda size: b'["' + b'\\"' * (size // 2 - 4) + b'"]',
    "text": lambda size: b'["' + b"a, b: {c} " * (size // 10 - 1) + b'"]',
}
"""Inputs of about so many bytes, by what they consist of."""


def infer(job_id: str, input_json: bytes) -> bytes:
    """Return a request as JSON."""
    start = json.dumps({"job_id": job_id, "operation_type": "INFER"}).encode()
    return start[:-1] + b',"input":' + input_json + b"}"


def many_names(count: int) -> bytes:
    """Return an object with so many names."""
    return b"{" + b",".join(b'"%07d":1' % number for number in range(count)) + b"}"


class Lags:
    """How late a heartbeat was, each time, in seconds."""

    def __init__(self) -> None:
        self.all: list[float] = []

    @property
    def worst(self) -> float:
        return max(self.all)

    def quantile(self, part: float) -> float:
        return sorted(self.all)[int(part * (len(self.all) - 1))]


@asynccontextmanager
async def feeling() -> AsyncIterator[Lags]:
    """Let a heartbeat run on this event loop; what it has felt is in what this gives."""
    lags = Lags()
    beaten = asyncio.Event()

    async def beat() -> None:
        while True:
            due = time.perf_counter() + BEAT_S
            await asyncio.sleep(BEAT_S)
            lags.all.append(max(0.0, time.perf_counter() - due))
            beaten.set()

    beating = asyncio.create_task(beat())
    try:
        yield lags
        beaten.clear()
        await beaten.wait()  # the one that was due during a stall which lasted until just now
    finally:
        beating.cancel()
