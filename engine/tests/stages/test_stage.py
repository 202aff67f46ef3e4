"""A stage's process prepares itself for a crowd, and ends when it is told to, whatever hangs in it."""

import asyncio
import logging
import resource
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from engine.stages.process import READY, ignore_closed_tls

LOWERED = """
import resource
from engine.stages.process import raise_file_limit
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_the_front_door_may_hold_as_many_connections_as_the_hard_limit_of_open_files_allows() -> None:
    done = subprocess.run([sys.executable, "-c", LOWERED], capture_output=True, text=True, check=True)
    said, found = map(int, done.stdout.split())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert said == found
    assert found == (1_000_000 if hard == resource.RLIM_INFINITY else min(hard, 1_000_000))


HANGING = """
import asyncio
from engine.settings import Settings
from engine.stages import process

async def hang(settings, stop):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

process.run_relay = hang
process._GRACE_S = 0.1
asyncio.run(process.run_stage(process.Role.RELAY, Settings(drain_s=0)))
"""


def test_a_stage_that_hangs_ends_all_the_same_when_it_is_told_to_stop() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == READY
    process.communicate(timeout=60)
    assert process.returncode == 1


async def give_up_tls(serving: ssl.SSLContext) -> None:
    """Cancel a connect as its handshake ends."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    loop = asyncio.get_running_loop()

    class Cancelling(asyncio.Protocol):
        def connection_made(self, _: asyncio.BaseTransport) -> None:
            connecting.cancel()

    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=serving) as server:
        port = server.sockets[0].getsockname()[1]
        connecting = asyncio.ensure_future(loop.create_connection(Cancelling, "127.0.0.1", port, ssl=context))
        with suppress(asyncio.CancelledError):
            await connecting
        # Whatever is due by now comes before the answer.
        await loop.run_in_executor(None, lambda: None)


def test_a_tls_connect_that_is_given_up_leaves_nothing_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)

    async def give_up(handled: bool) -> None:
        loop = asyncio.get_running_loop()
        if handled:
            loop.set_exception_handler(ignore_closed_tls)
        await give_up_tls(serving)
        if handled:
            loop.call_soon(lambda: 1 // 0)
            await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        uvloop.run(give_up(handled=False))
        assert [record.message[:27] for record in caplog.records] == ["Fatal error on SSL protocol"]
        caplog.clear()
        uvloop.run(give_up(handled=True))
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError, "any other error is logged"
