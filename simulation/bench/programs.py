"""The programs that the benchmark starts: wrk, nginx and the baselines. Each is gone when its block ends."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

import msgspec

from engine.local.process import free_port
from simulation.errors import BenchError

START_S: Final = 30.0
"""Longest time until a program listens."""
STOP_S: Final = 10.0
SCRIPT: Final = Path(__file__).with_name("purchase.lua")
INSTALL: Final = {"wrk": "apt-get install wrk", "nginx": "apt-get install nginx-light"}
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


class WrkReport(msgspec.Struct, frozen=True):
    """What wrk counted."""

    requests: int
    duration_us: int
    refused: int
    """Answers of 400 and above."""
    socket_errors: int
    p50_us: int
    p99_us: int

    @property
    def rps(self) -> float:
        """Answers per second."""
        return self.requests / self.duration_us * 1e6


def find_program(name: str) -> str | None:
    """Where the program is, None if it is not installed."""
    return shutil.which(name, path=_PATH)


def describe_missing(name: str) -> str:
    """One line that says how to get it."""
    return f"{name} is not installed (Debian, Ubuntu: {INSTALL[name]})"


async def run_wrk(url: str, connections: int, seconds: float, products: int | None = None) -> WrkReport:
    """Loads `url` for so long: one thread, each connection sends its next request when it has its answer.

    With `products` each request is for a random one of that many. Raises BenchError.
    """
    program = find_program("wrk")
    if program is None:
        raise BenchError(describe_missing("wrk"))
    command = [
        program, "--threads=1", f"--connections={connections}", f"--duration={max(1, round(seconds))}s",
        "--timeout=10s", f"--script={SCRIPT}", url, *(["--", str(products)] if products else []),
    ]  # fmt: skip
    async with _running(command, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate()
    found = re.search(rb"^\{.*\}$", output, re.MULTILINE)
    if process.returncode or not found:
        raise BenchError(f"wrk ended with code {process.returncode}: {output.decode()[-300:]}")
    report = msgspec.json.decode(found[0], type=WrkReport)
    if not report.requests:
        raise BenchError(f"{url} answered nothing to wrk on {connections} connections")
    return report


@asynccontextmanager
async def serve_nginx() -> AsyncIterator[str]:
    """nginx with one worker that answers 429 to everything; yields its URL. Raises BenchError."""
    program = find_program("nginx")
    if program is None:
        raise BenchError(describe_missing("nginx"))
    folder = Path(tempfile.mkdtemp(prefix="flashsim-nginx-"))
    try:
        # Its worker has no privileges, and must reach the folders that it keeps long bodies in.
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - pathlib's would count as blocking
        port = free_port()
        text = files("simulation.bench.baselines").joinpath("nginx.conf").read_text()
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536)
        config = folder / "nginx.conf"
        config.write_text(Template(text).substitute(port=port, files=limit))
        async with _serving([program, "-p", str(folder), "-e", "error.log", "-c", str(config)], port) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def serve_baseline(name: str, *arguments: str) -> AsyncIterator[str]:
    """A module of simulation.baselines on a free port; yields its URL. Raises BenchError."""
    port = free_port()
    command = [sys.executable, "-m", f"simulation.bench.baselines.{name}", str(port), *arguments]
    async with _serving(command, port) as url:
        yield url


@asynccontextmanager
async def _serving(command: list[str], port: int) -> AsyncIterator[str]:
    async with _running(command) as process:
        deadline = asyncio.get_running_loop().time() + START_S
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                break
            if process.returncode is not None or asyncio.get_running_loop().time() > deadline:
                raise BenchError(f"{' '.join(command[:3])} does not listen")
            await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def _running(
    command: list[str], stdout: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        # A session of its own: Ctrl-C is for the benchmark, which then ends its programs in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
