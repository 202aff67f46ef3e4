"""A stage's process prepares itself for a crowd, and ends when it is told to, whatever hangs in it."""

import asyncio
import logging
import resource
import ssl
import subprocess
import sys

import pytest
import uvloop

from engine.stages.process import READY, ignore_closed_tls

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize(
    ("stage", "foreign"), [("relay", {"aiohttp", "asyncpg"}), ("fulfilment", {"engine.http.app"})]
)
def test_a_stage_loads_no_library_that_only_others_need(stage: str, foreign: set[str]) -> None:
    code = f"import sys, engine.stages.process, engine.stages.{stage}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"engine.stages.{stage}" in loaded
    assert not loaded & foreign


HANGING = """
import asyncio
from engine.settings import Settings
from engine.stages import process, relay

async def hang(settings, stop):
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

relay.run_relay = hang
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


def test_a_tls_connection_that_was_closed_leaves_nothing_in_the_log_and_any_other_error_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def told() -> list[str]:
        # Others may log beside it, such as what earlier tests left behind.
        words = ("Fatal error on SSL", "another", "without an exception")
        return [text for text in caplog.messages if text.startswith(words)]

    async def close_and_write() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(ignore_closed_tls)
        async with await asyncio.start_server(lambda _, to: to.transport.abort(), "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            closed, _ = await loop.create_connection(asyncio.Protocol, *address)
            closed.abort()
            error = None
            while error is None:
                await asyncio.sleep(0)
                try:
                    closed.write(b"x")
                except RuntimeError as caught:
                    # What uvloop raises within its own callback, and hands to the handler.
                    error = caught
            what = "Fatal error on SSL protocol"
            loop.call_exception_handler({"message": what, "exception": error, "transport": closed})
            assert not told()
            for context in (
                {"message": what, "exception": ssl.SSLError("broken"), "transport": closed},
                {"message": "another", "exception": error, "transport": closed},
                {"message": "without an exception"},
            ):
                loop.call_exception_handler(context)

    # A command line that a test ran before this one may have quietened the logger.
    with caplog.at_level(logging.ERROR, "asyncio"):
        uvloop.run(close_and_write())
    assert len(told()) == 3


LOGGING = r"""
import logging
from engine.settings import Settings
from engine.stages.process import set_up_logging
set_up_logging(Settings())
log = logging.getLogger("engine.ledger")
log.warning("%s", "no slot is left\nHINT:  raise max_connections.\r\n")
try:
    raise RuntimeError("this is a bug")
except RuntimeError:
    log.exception("it failed")
"""


def test_a_message_is_one_line_and_a_traceback_follows_it() -> None:
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, check=True)
    first, second, *rest = done.stderr.splitlines()
    assert first.endswith("no slot is left HINT:  raise max_connections.")
    assert second.endswith("it failed")
    assert (rest[0], rest[-1]) == ("Traceback (most recent call last):", "RuntimeError: this is a bug")
