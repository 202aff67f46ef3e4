"""The disk: how long an appended write takes to be on it while nothing else writes.

With `appendfsync always` no purchase is accepted faster, and a disk that stalls delays all purchases.
"""

import asyncio
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np

from simulation.bench.results import Disk
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Spread

WRITE_BYTES: Final = 12_000
"""What Redis appends for a batch of some fifty purchases."""
PAUSE_S: Final = 0.002
"""Between two writes, about as often as the gate of a busy sale writes a batch."""

OTHERS_PAUSE_S: Final = 0.02
"""Between two writes of each other log, about as often as bus and ledger of such a sale write."""


async def measure_disk(rounds: Rounds) -> Disk:
    """Time writes where the private services keep their data."""
    (found,) = await rounds.repeat({"disk": partial(asyncio.to_thread, time_writes, rounds.seconds)})
    p50_ms, p99_ms, longest_ms = map(Spread.of, zip(*found, strict=True))
    return Disk(write_bytes=WRITE_BYTES, p50_ms=p50_ms, p99_ms=p99_ms, longest_ms=longest_ms)


def time_writes(seconds: float, others: int = 0) -> tuple[float, float, float]:
    """Return p50, p99 and longest time of append and fdatasync, in milliseconds, while `others` write their
    own logs."""
    with ThreadPoolExecutor(1 + others) as threads:
        beside = [threads.submit(_write, seconds, OTHERS_PAUSE_S) for _ in range(others)]
        taken_s = _write(seconds, PAUSE_S)
        for writing in beside:
            writing.result()
    p50, p99, longest = np.quantile(taken_s, [0.5, 0.99, 1]) * 1e3
    return float(p50), float(p99), float(longest)


def _write(seconds: float, pause_s: float) -> list[float]:
    """Append to a file for so long; return how long each write took to be on disk."""
    data = bytes(WRITE_BYTES)
    taken_s = []
    with tempfile.TemporaryFile(buffering=0) as file:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            started_s = time.perf_counter()
            file.write(data)
            os.fdatasync(file.fileno())
            taken_s.append(time.perf_counter() - started_s)
            time.sleep(pause_s)
    return taken_s
