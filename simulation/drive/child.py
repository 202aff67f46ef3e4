"""A process of a driver, seen from its parent."""

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import numpy.typing as npt

from simulation.drive.job import RESPONSE_EDGES_MS, Snapshot
from simulation.drive.plan import Plan
from simulation.errors import DriverError
from simulation.model.outcome import OUTCOMES


class Child:
    """A process of a driver, seen from its parent: `module`, which does the requests `ops` of the plan."""

    process: asyncio.subprocess.Process

    def __init__(
        self,
        number: int,
        ops: npt.NDArray[np.int64],
        folder: Path,
        *,
        module: str = "simulation.drive.process",
        title: str = "",
    ) -> None:
        self.number = number
        self.ops = ops
        self.module = module
        self.title = title or f"driver process {number}"
        self.plan = folder / f"plan-{number}.npz"
        self.result = folder / f"result-{number}.npz"
        self.errors = folder / f"errors-{number}.txt"
        self.snapshot = Snapshot(0, 0, 0, [0] * len(OUTCOMES), [0] * (len(RESPONSE_EDGES_MS) + 1))
        self.heard_ns: int | None = None
        """When the snapshot came."""

    def write_plan(self, plan: Plan) -> Path:
        """Writes its part of the plan for it to read."""
        np.savez(
            self.plan,
            intended_ns=plan.intended_ns[self.ops],
            user_id=plan.user_id[self.ops],
            product_id=plan.product_id[self.ops],
            key=np.array([plan.key[op] or "" for op in self.ops.tolist()], np.str_),
            pause_ns=np.empty(0) if plan.pause_ns is None else plan.pause_ns[self.ops],
        )
        return self.plan

    async def start(self, job: msgspec.Struct) -> None:
        """Starts the process and gives it its job."""
        with self.errors.open("wb") as errors:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        await self._tell(msgspec.json.encode(job))

    async def await_ready(self) -> None:
        """Waits until it waits for the start. Raises DriverError if it ends before."""
        if await self.hear() != b"ready\n":
            await self._fail()

    async def follow(self, t0_ns: int) -> None:
        """Starts it, and keeps its latest snapshot until it ends."""
        await self._tell(b"%d" % t0_ns)
        while line := await self.hear():
            self.snapshot, self.heard_ns = msgspec.json.decode(line, type=Snapshot), time.monotonic_ns()
        await self.await_end()

    async def await_end(self) -> None:
        """Raises DriverError, with its last words, unless it ends in order."""
        if await self.process.wait() != 0:
            await self._fail()

    async def stop(self) -> None:
        """Lets it make no further request."""
        await self._tell(b"stop")

    async def end(self) -> None:
        """Ends it if it still runs, and waits until it is gone."""
        if not hasattr(self, "process"):
            return
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        if self.process.stdin:
            self.process.stdin.close()
        await self.process.communicate()

    async def _tell(self, line: bytes) -> None:
        stdin = cast(asyncio.StreamWriter, self.process.stdin)
        with contextlib.suppress(ConnectionError):  # what it died of is found when it is listened to
            stdin.write(line + b"\n")
            await stdin.drain()

    async def hear(self) -> bytes:
        """Its next line; empty where it says no more."""
        return await cast(asyncio.StreamReader, self.process.stdout).readline()

    async def _fail(self) -> None:
        code = await self.process.wait()
        said = self.errors.read_text(errors="replace").strip().splitlines()
        raise DriverError(f"{self.title} ended with code {code}: {said[-1] if said else 'no word'}")
