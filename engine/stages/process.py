"""One process of a stage: `python -m engine.stages.process ROLE`, started by the server.

It takes its settings from the environment and says "ready" on standard output. It stops in order when its
standard input ends, because the server closes it or is gone; it hears "retire" some time before if the whole
server stops. On SIGTERM it says "leaving" and goes on; once the server has started another process in its
place, it closes the input of this one. Ctrl-C and
a terminal that closes are the server's affair.
"""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from enum import StrEnum
from importlib import import_module
from typing import Any, Final

import uvloop

from engine.errors import FlashgridError
from engine.settings import Settings, read_settings

READY: Final = b"ready\n"
LEAVING: Final = b"leaving\n"
RETIRE: Final = b"retire\n"
_GRACE_S: Final = 3.0
"""What the process gives itself beyond its time to finish; less than the server gives it."""
_MOST_FILES: Final = 1_000_000
"""Open files for which a front door asks; some systems refuse "unlimited"."""

_COLLECTED_AFTER: Final = (5_000, 5, 5)
"""Objects more than before until the collector looks at them, and so many looks until it looks at older ones.

It holds up everything meanwhile, so it looks at few objects at a time.
"""

log = logging.getLogger(__name__)


class Role(StrEnum):
    """A stage that runs as processes of its own."""

    FRONT_DOOR = "front-door"
    RELAY = "relay"
    FULFILMENT = "fulfilment"


async def run_stage(role: Role, settings: Settings) -> None:
    """Run one stage until it is told to stop; a front door, on the sockets that the server gave it."""
    retiring, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def leave() -> None:
        _say(LEAVING)
        # If the server starts none in its place.
        loop.call_later(10, begin_stop_alone)

    def read_input() -> None:
        if os.read(sys.stdin.fileno(), 4096):
            retiring.set()
        else:
            loop.remove_reader(sys.stdin.fileno())
            begin_stop()

    def begin_stop_alone() -> None:
        if not retiring.is_set():
            begin_stop()

    def begin_stop() -> None:
        if not stop.is_set():
            stop.set()
            loop.call_later(settings.drain_s + _GRACE_S, give_up, role)

    loop.set_exception_handler(ignore_closed_tls)
    loop.add_signal_handler(signal.SIGTERM, leave)
    loop.add_reader(sys.stdin.fileno(), read_input)
    if role is Role.FRONT_DOOR:
        from engine.stages.front_door import run_front_door

        log.info("up to %d open files, and so a few connections less", raise_file_limit())
        (buyers, *siblings), operations = [
            [socket.socket(fileno=int(descriptor)) for descriptor in descriptors.split()]
            for descriptors in sys.argv[2:]
        ]
        listeners = [buyers, *operations]
        await run_front_door(settings, listeners, retiring, stop, lambda: _say(READY), siblings)
    elif role is Role.RELAY:
        from engine.stages.relay import run_relay

        _say(READY)
        await run_relay(settings, stop)
    else:
        from engine.stages.fulfilment import run_fulfilment

        _say(READY)
        await run_fulfilment(settings, stop)


def give_up(role: Role) -> None:
    """End the process at once. As in a crash, nothing that was accepted is lost."""
    log.error("the %s does not stop in time, and ends as it is", role)
    os._exit(1)


def ignore_closed_tls(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle what no task has caught: nothing is said of a TLS connection that this process has closed.

    One that is closed as its handshake ends, as by a wait that is given up at that moment, is an error to
    uvloop, which goes on to read from it.
    """
    is_closed = str(context.get("exception")).endswith("the handler is closed")
    if not (is_closed and context["message"] == "Fatal error on SSL protocol"):
        loop.default_exception_handler(context)


def raise_file_limit() -> int:
    """Raise the limit of open files, one for each connection, to the hard limit; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _say(line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # the server is gone, and so is standard input
        os.write(sys.stdout.fileno(), line)


class _Lines(logging.Formatter):
    """Writes each message as one line, whatever a service says; a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return " ".join(super().formatMessage(record).splitlines())


def set_up_logging(settings: Settings) -> None:
    """Send log lines to standard error: time, level, module, text."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Lines("%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s[%(process)d] %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # Their lines at each lost connection repeat what the engine's say.
    for name in ("aio_pika", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A line for each connect that fails, and a traceback for each malformed request, would fill the disk.
    for name in ("aiormq", "aiohttp.server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    """Run the stage named on the command line; a front door also gets its listening sockets' descriptors."""
    role = Role(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        settings = read_settings()
        set_up_logging(settings)
        if role is not Role.FRONT_DOOR:
            # The outbox can wait, a crowd at the front door can't.
            os.nice(settings.background_nice)
        # No other stage: each start would take twice as long, and each process more memory.
        import_module(f"engine.stages.{role.replace('-', '_')}")
        # What was imported stays, and is most of what there is: the collector never looks at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTED_AFTER)
        uvloop.run(run_stage(role, settings))
    except FlashgridError as error:
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
