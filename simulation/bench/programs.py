"""The programs that the benchmark starts: wrk, nginx and the baselines. Each ends with its block."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
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
from simulation.bench.results import Sample
from simulation.errors import BenchError

START_S: Final = 30.0
"""Longest time until a program listens."""
SCRIPT: Final = Path(__file__).with_name("purchase.lua")
INSTALL: Final = {"wrk": "apt-get install wrk", "nginx": "apt-get install nginx-light"}
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def find_program(name: str) -> str | None:
    """Return the path of a program, None if it is not installed."""
    return shutil.which(name, path=_PATH)


def describe_missing(name: str) -> str:
    """Return one line that says how to install the program."""
    return f"{name} is not installed (Debian, Ubuntu: {INSTALL[name]})"


def _require(name: str) -> str:
    if (program := find_program(name)) is None:
        raise BenchError(describe_missing(name))
    return program


async def run_wrk(url: str, connections: int, seconds: float, products: int | None = None) -> Sample:
    """Load `url` by one thread; each connection sends its next request when it has its answer.

    With `products`, each request is for a random one of that many. Raises BenchError.
    """
    program = _require("wrk")
    command = [
        program, "--threads=1", f"--connections={connections}", f"--duration={max(1, round(seconds))}s",
        "--timeout=10s", f"--script={SCRIPT}", url, *(["--", str(products)] if products else []),
    ]  # fmt: skip
    async with _running(command, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate()
    found = re.search(rb"^\{.*\}$", output, re.MULTILINE)
    if process.returncode or not found:
        raise BenchError(f"wrk ended with code {process.returncode}: {output.decode()[-300:]}")
    sample = msgspec.json.decode(found[0], type=Sample)
    if not sample.requests:
        raise BenchError(f"{url} answered nothing to wrk on {connections} connections")
    if sample.socket_errors:
        return msgspec.structs.replace(sample, fault=f"{sample.socket_errors} socket errors")
    return sample


@asynccontextmanager
async def serve_nginx() -> AsyncIterator[str]:
    """Serve 429 to everything by one worker of nginx; yield its URL. Raises BenchError."""
    program = _require("nginx")
    with tempfile.TemporaryDirectory(prefix="flashsim-nginx-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # The worker runs without privileges and must reach the folders for long bodies.
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - pathlib's would count as blocking
        port = free_port()
        text = files("simulation.bench.baselines").joinpath("nginx.conf").read_text()
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536)
        config = folder / "nginx.conf"
        config.write_text(Template(text).substitute(port=port, files=limit))
        async with _serving([program, "-p", str(folder), "-e", "error.log", "-c", str(config)], port) as url:
            yield url


@asynccontextmanager
async def serve_baseline(name: str, *arguments: str) -> AsyncIterator[str]:
    """Run a module of simulation.bench.baselines on a free port; yield its URL. Raises BenchError."""
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
        # In a session of its own Ctrl-C does not reach it: the benchmark ends its programs in order.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # The session is the program with its workers.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
