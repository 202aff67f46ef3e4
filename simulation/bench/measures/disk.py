"""The disk: how long an appended write takes to be on it while nothing else writes.

With `appendfsync always` no purchase is accepted faster than that, and where the disk stalls everybody waits.
"""

import asyncio
import os
import tempfile
import time
from typing import Final

import numpy as np

from simulation.bench.options import Say
from simulation.bench.results import Disk, Spread

WRITE_BYTES: Final = 12_000
"""What Redis appends for a batch of some fifty purchases."""
PAUSE_S: Final = 0.002
"""Between two writes: about as often as the gate of a busy sale has a batch written."""


async def measure_disk(rounds: int, seconds: float, say: Say) -> Disk:
    """Time writes where the private services keep their data."""
    found = []
    for number in range(1, rounds + 1):
        found.append(await asyncio.to_thread(time_writes, seconds))
        p50, p99, longest = found[-1]
        say(f"round {number}/{rounds}: on disk in {p50:.2f} ms, p99 {p99:.2f} ms, longest {longest:.1f} ms")
    p50s, p99s, longests = zip(*found, strict=True)
    return Disk(
        write_bytes=WRITE_BYTES,
        p50_ms=Spread.of(p50s),
        p99_ms=Spread.of(p99s),
        longest_ms=Spread.of(longests),
    )


def time_writes(seconds: float) -> tuple[float, float, float]:
    """p50, p99 and longest of appending and fdatasync, in milliseconds."""
    data = bytes(WRITE_BYTES)
    taken_s = []
    with tempfile.TemporaryFile(buffering=0) as file:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            started_s = time.perf_counter()
            file.write(data)
            os.fdatasync(file.fileno())
            taken_s.append(time.perf_counter() - started_s)
            time.sleep(PAUSE_S)
    p50, p99, longest = np.quantile(taken_s, [0.5, 0.99, 1]) * 1e3
    return float(p50), float(p99), float(longest)
