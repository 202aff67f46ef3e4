"""The programs that the benchmark starts: wrk, nginx and the baselines. Each ends with its block."""

import asyncio
import os
import re
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final, NamedTuple

import msgspec

from engine.local.ports import free_port
from engine.local.process import kill_group, wait_until
from simulation.bench.samples import Sample
from simulation.bench.spellings import PLAIN
from simulation.errors import BenchError

START_S: Final = 30.0
"""Longest time until a program listens."""
SCRIPT: Final = Path(__file__).with_name("requests.lua")
INSTALL: Final = {"wrk": "apt-get install wrk", "nginx": "apt-get install nginx-light"}
_CONSTANT: Final = """return 429 '{"status":"SOLD_OUT"}'"""
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def find_program(name: str) -> str:
    """Return the path of a program. Raises BenchError, which says how to install it."""
    if (program := shutil.which(name, path=_PATH)) is None:
        raise BenchError(f"{name} is not installed (Debian, Ubuntu: {INSTALL[name]})")
    return program


class Program(NamedTuple):
    """A server that the benchmark has started."""

    name: str
    url: str
    pid: int
    errors: Path | None = None
    """Where it writes what goes wrong."""


async def run_wrk(url: str, connections: int, seconds: float, requests: Sequence[bytes] = PLAIN) -> Sample:
    """Load `url` by one thread; each connection sends its next request when it has its answer.

    The requests are sent in turn. The sample has wrk's own processor time. Raises BenchError.
    """
    with tempfile.NamedTemporaryFile(prefix="flashsim-requests-") as file:
        file.writelines(b"%d\n%b" % (len(request), request) for request in requests)
        file.flush()
        command = [
            find_program("wrk"), "--threads=1", f"--connections={connections}",
            f"--duration={max(1, round(seconds))}s", "--timeout=10s", f"--script={SCRIPT}", url,
            "--", file.name,
        ]  # fmt: skip
        async with _running(command, stdout=asyncio.subprocess.PIPE) as process:
            output, _ = await process.communicate()
    found = re.search(rb"^\{.*\}$", output, re.MULTILINE)
    if process.returncode or not found:
        raise BenchError(f"wrk ended with code {process.returncode}: {output.decode()[-300:]}")
    sample = msgspec.json.decode(found[0], type=Sample)
    if not sample.requests:
        raise BenchError(f"{url} answered nothing to wrk on {connections} connections")
    fault = f"{sample.socket_errors} socket errors" if sample.socket_errors else ""
    return msgspec.structs.replace(sample, fault=fault)


@asynccontextmanager
async def serve_nginx(behind: str | None = None) -> AsyncIterator[Program]:
    """Serve by one worker of nginx: 429 to everything, or what the server at `behind` answers.

    Raises BenchError.
    """
    program = find_program("nginx")
    with tempfile.TemporaryDirectory(prefix="flashsim-nginx-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # The worker runs without privileges and must reach the folders for long bodies.
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - pathlib's would count as blocking
        port = free_port()
        text = files("simulation.bench.baselines").joinpath("nginx.conf").read_text()
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536)
        answer = f"proxy_pass {behind}" if behind else _CONSTANT
        config = folder / "nginx.conf"
        config.write_text(Template(text).substitute(port=port, files=limit, answer=answer))
        command = [program, "-p", str(folder), "-e", "error.log", "-c", str(config)]
        async with _serving("proxy" if behind else "nginx", command, port) as served:
            yield served._replace(errors=folder / "error.log")


def serve_baseline(name: str, *arguments: str) -> AbstractAsyncContextManager[Program]:
    """Run a module of simulation.bench.baselines on a free port. Raises BenchError."""
    port = free_port()
    command = [sys.executable, "-m", f"simulation.bench.baselines.{name}", str(port), *arguments]
    return _serving(name, command, port)


@asynccontextmanager
async def _serving(name: str, command: list[str], port: int) -> AsyncIterator[Program]:
    async with _running(command) as process:
        await wait_until(lambda: process.returncode is not None or _is_open(port), START_S)
        if not _is_open(port):
            raise BenchError(f"{' '.join(command[:3])} does not listen")
        yield Program(name, f"http://127.0.0.1:{port}", process.pid)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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
        kill_group(process.pid)
        await process.wait()
