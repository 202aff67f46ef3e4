"""The server: starts the stages as processes, starts a dead one again, and stops all of them in order."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client.multiprocess import mark_process_dead
from redis.exceptions import RedisError

from engine.errors import FlashgridError, GateUnavailable, LedgerUnavailable, SettingsError
from engine.gate.client import connect_redis
from engine.ledger.ledger import Ledger
from engine.settings import PREFIX, Settings
from engine.stages.process import LEAVING, READY, Role
from engine.stages.reconciliation import reconciling

log = logging.getLogger(__name__)

_BACKING_S: Final = 30.0
"""How long the backing services may take to answer when the server starts."""
_GRACE_S: Final = 5.0
"""What a stage gets beyond its own time to settle before it is killed."""
_STEADY_S: Final = 5.0
"""A process that lived this long is started again at once when it dies."""


async def serve(settings: Settings, roles: Collection[Role], on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` hears what is being served, once all of it works.

    Raises SettingsError, StackError, GateUnavailable or LedgerUnavailable if it can't start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_or_give_up, stop)

    async with AsyncExitStack() as cleanup:
        listener = None
        if Role.FRONT_DOOR in roles:
            listener = cleanup.enter_context(bind(settings))
        settings = await _provide_services(settings, roles, cleanup)
        await check_gate(settings)
        await _create_schema(settings)
        await _open_new_gate(settings)
        environment = _make_environment(settings, cleanup)
        stages = _plan_stages(settings, roles, listener, environment)
        cleanup.push_async_callback(_stop_in_order, stages, settings.drain_s + _GRACE_S)
        for stage in stages:
            stage.start()
        starting = asyncio.gather(*(stage.ready.wait() for stage in stages))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if not stop.is_set():
            on_ready(_describe(listener, stages))
            await stop.wait()
        log.info("stopping")
    log.info("stopped")


def bind(settings: Settings) -> socket.socket:
    """The listening socket that all front-door workers share.

    It belongs to the server, so that a connection that waits for a worker outlives the worker that died.
    Raises SettingsError if the address is taken, or open to the world without an admin token.
    """
    if settings.admin_token is None and not is_loopback(settings.host):
        raise SettingsError(
            f"{PREFIX}HOST: {settings.host} is not loopback; without {PREFIX}ADMIN_TOKEN anybody opens sales"
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        # A crowd connects within one second; the kernel cuts this to net.core.somaxconn.
        listener.listen(65_535)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise SettingsError(f"can't listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def check_gate(settings: Settings) -> None:
    """Refuse a Redis that may evict gate data; warn of one that may forget an accepted purchase.

    Raises SettingsError or GateUnavailable.
    """
    redis = connect_redis(settings.redis_url or "", settings.gate_timeout_ms)
    try:
        await _retry(redis.ping, (RedisError, OSError), GateUnavailable, "Redis")
        try:
            config = {
                name: value.decode() if isinstance(value, bytes) else value
                for name in ("maxmemory-policy", "appendonly", "appendfsync")
                for value in (await redis.config_get(name)).values()
            }
        except RedisError as error:
            log.warning("can't check Redis' settings (%s): it must have maxmemory-policy noeviction", error)
            return
    finally:
        await redis.aclose()
    if config["maxmemory-policy"] != "noeviction":
        raise SettingsError(
            f"Redis may evict gate data: maxmemory-policy is {config['maxmemory-policy']}, must be noeviction"
        )
    if config["appendonly"] != "yes" or config["appendfsync"] != "always":
        log.warning(
            "Redis may lose accepted purchases if it dies: appendonly %s, appendfsync %s (safe: yes, always)",
            config["appendonly"], config["appendfsync"],
        )  # fmt: skip


class StageProcess:
    """One process of a stage, started again whenever it dies, and replaced when it wants to leave."""

    def __init__(
        self, role: Role, name: str, listener: socket.socket | None, environment: dict[str, str]
    ) -> None:
        self.role = role
        self.name = name
        self.ready = asyncio.Event()
        self._listener = listener
        self._environment = environment
        self._running: dict[asyncio.subprocess.Process, asyncio.Task[int]] = {}
        """The processes, in the order of their starts, and who awaits their ends; all but the last leave."""
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process and keep it running."""
        self._task = asyncio.create_task(self._keep_running(), name=self.name)

    async def stop(self, within_s: float) -> None:
        """Ask it to settle and end; kill it if it takes longer."""
        self._stopping.set()
        if self._task is None:
            return
        for process in self._running:
            _tell_to_stop(process)
        try:
            await asyncio.wait_for(asyncio.shield(self._task), within_s)
        except TimeoutError:
            log.error("%s did not settle within %.0f s and is killed", self.name, within_s)
            for process in self._running:
                if process.returncode is None:
                    process.kill()
            await self._task

    async def _keep_running(self) -> None:
        pause_s = 0.1
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            how = await self._run_once()
            if self._stopping.is_set():
                await asyncio.gather(*self._running.values())
                return
            pause_s = 0.1 if loop.time() - started > _STEADY_S else min(pause_s * 2, 5.0)
            log.warning("%s %s and is started again", self.name, how)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
                await asyncio.gather(*self._running.values())
                return

    async def _run_once(self) -> str:
        """Start the process; return how it ended, or once it wants to leave."""
        descriptors = [] if self._listener is None else [self._listener.fileno()]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.stages.process", self.role, *map(str, descriptors),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # A session of its own, so that Ctrl-C reaches the server only, which stops the stages in order.
            env=self._environment, pass_fds=descriptors, start_new_session=True,
        )  # fmt: skip
        ended = self._running[process] = asyncio.create_task(self._await_end(process))
        if self._stopping.is_set():
            _tell_to_stop(process)
        while process.stdout and (line := await process.stdout.readline()):
            if line == LEAVING:
                return "is leaving"
            if line == READY:
                self.ready.set()
                for other in self._running:
                    if other is not process:
                        _tell_to_stop(other)
        return f"ended ({describe_exit(await ended)})"

    async def _await_end(self, process: asyncio.subprocess.Process) -> int:
        code = await process.wait()
        del self._running[process]
        if not self._running:
            self.ready.clear()
        mark_process_dead(process.pid, self._environment["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]
        return code


def _tell_to_stop(process: asyncio.subprocess.Process) -> None:
    """A stage stops in order when its standard input ends."""
    if process.stdin is not None:
        process.stdin.close()


def describe_exit(code: int) -> str:
    """A process's exit code in words."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _stop_or_give_up(stop: asyncio.Event) -> None:
    if stop.is_set():
        log.warning("stopping already; the stages are given their time to settle")
    stop.set()


async def _provide_services(settings: Settings, roles: Collection[Role], cleanup: AsyncExitStack) -> Settings:
    """The settings with a private service for each URL that is not given."""
    needed = {"redis"}
    if Role.FRONT_DOOR in roles or Role.FULFILMENT in roles:
        needed.add("postgres")
    if Role.RELAY in roles or Role.FULFILMENT in roles:
        needed.add("rabbitmq")
    given = {"redis": settings.redis_url, "postgres": settings.postgres_url, "rabbitmq": settings.amqp_url}
    if given["redis"] or given["postgres"]:
        # Who brings services of their own and no bus wants none: fulfilment then reads the outbox itself.
        needed.discard("rabbitmq")
    missing = sorted(name for name in needed if given[name] is None)
    if not missing:
        return settings
    from engine.local.stack import start_stack

    log.info("starting private services under %s: %s", settings.data_dir, ", ".join(missing))
    stack = await start_stack(Path(settings.data_dir), missing)
    cleanup.push_async_callback(stack.stop)
    for note in stack.notes:
        log.warning("%s", note)
    return msgspec.structs.replace(
        settings,
        redis_url=settings.redis_url or stack.urls.redis,
        postgres_url=settings.postgres_url or stack.urls.postgres,
        amqp_url=settings.amqp_url or stack.urls.amqp,
    )


async def _create_schema(settings: Settings) -> None:
    if settings.postgres_url is None:
        return
    url = settings.postgres_url

    async def create() -> None:
        ledger = await Ledger.connect(url)
        try:
            await ledger.create_schema()
        finally:
            await ledger.close()

    await _retry(create, (LedgerUnavailable,), LedgerUnavailable, "PostgreSQL")


async def _open_new_gate(settings: Settings) -> None:
    """Open the gate where there has never been a sale; any other closed gate waits for fulfilment."""
    if settings.postgres_url is None:
        return
    async with reconciling(settings) as reconciliation:
        await _retry(reconciliation.open_new, (FlashgridError, RedisError), GateUnavailable, "the gate")


async def _retry(
    attempt: Callable[[], object],
    transient: tuple[type[Exception], ...],
    failure: type[FlashgridError],
    name: str,
) -> None:
    """Await `attempt()` until it works. Raises `failure` once the services' time to start is over."""
    deadline = asyncio.get_running_loop().time() + _BACKING_S
    while True:
        try:
            await attempt()  # type: ignore[misc]
        except transient as error:
            if asyncio.get_running_loop().time() > deadline:
                raise failure(f"{name} does not answer: {error}") from error
            await asyncio.sleep(0.5)
        else:
            return


def _make_environment(settings: Settings, cleanup: AsyncExitStack) -> dict[str, str]:
    """What the stages find in their environment: every setting, and a folder for their metrics."""
    folder = tempfile.mkdtemp(prefix="flashgrid-metrics-")
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment["PROMETHEUS_MULTIPROC_DIR"] = folder
    for name, value in msgspec.structs.asdict(settings).items():
        if value is not None:
            environment[PREFIX + name.upper()] = str(value)
    return environment


def _plan_stages(
    settings: Settings,
    roles: Collection[Role],
    listener: socket.socket | None,
    environment: dict[str, str],
) -> list[StageProcess]:
    stages = []
    if Role.FRONT_DOOR in roles:
        stages += [
            StageProcess(Role.FRONT_DOOR, f"front-door {number}", listener, environment)
            for number in range(1, settings.workers + 1)
        ]
    if Role.RELAY in roles:
        if settings.amqp_url is not None:
            stages.append(StageProcess(Role.RELAY, "relay", None, environment))
        elif Role.FULFILMENT not in roles:
            raise SettingsError(f"a relay needs {PREFIX}AMQP_URL")
        else:
            log.warning(
                "no RabbitMQ: fulfilment reads the outbox itself; set %sAMQP_URL to use a bus", PREFIX
            )
    if Role.FULFILMENT in roles:
        stages.append(StageProcess(Role.FULFILMENT, "fulfilment", None, environment))
    return stages


async def _stop_in_order(stages: list[StageProcess], within_s: float) -> None:
    """No new purchases first; then what is accepted flows down the line, stage after stage."""
    for role in Role:
        await asyncio.gather(*(stage.stop(within_s) for stage in stages if stage.role is role))


def _describe(listener: socket.socket | None, stages: list[StageProcess]) -> str:
    running = ", ".join(stage.name for stage in stages)
    if listener is None:
        return running
    host, port = listener.getsockname()[:2]
    return f"listening on http://{f'[{host}]' if ':' in host else host}:{port} ({running})"
