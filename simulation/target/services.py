"""The backing services of the engine under test: where they are, and which processes they are."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from engine.local.process import log_of
from engine.local.stack import Stack, stack_status
from engine.local.state import read_state
from engine.settings import Settings
from engine.urls import read_redis_url, split_hosts
from simulation.errors import EngineError

CLUSTERED: Final = "-cluster"
"""The end of the private name of a service of several nodes."""
_NODES: Final = {"redis-cluster": 9, "rabbitmq-cluster": 3}
"""Nodes that are processes of the stack's; PostgreSQL's promoter starts its own."""
_SERVERS: Final = ("one", "two", "three")
"""The names of nodes of PostgreSQL and RabbitMQ, in the order of their machines."""
_REDIS_SCHEMES: Final = (
    "redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Services:
    """Redis, PostgreSQL and RabbitMQ of one engine; without `amqp_url` it has no bus."""

    redis_url: str
    postgres_url: str
    amqp_url: str | None = None
    pids: dict[str, int] = field(default_factory=dict)
    """The serving process of each service, or of each of its nodes, if it is known and runs here."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """The names of known nodes by their places (host:port)."""
    queue_logs: Mapping[str, Path] = field(default_factory=dict)
    """The logs of RabbitMQ's nodes by the nodes' names, where it has several."""
    find_pids: Callable[[], dict[str, int]] = dict
    """Finds the processes of a cluster's nodes anew, of which some may have been started again."""
    stack: Stack | None = None
    """The private stack that they belong to, if the run may stop and start them."""

    @property
    def clustered(self) -> list[str]:
        """The services that have several nodes."""
        several = {
            "redis": bool(read_redis_url(self.redis_url).kind),
            "postgres": len(split_hosts(self.postgres_url)) > 1,
            "rabbitmq": len(split_hosts(self.amqp_url or "")) > 1,
        }
        return [name for name, has_nodes in several.items() if has_nodes]


def services_of(stack: Stack) -> Services:
    """Return the services of a private stack, of one machine or of three."""
    return replace(_describe(stack.data_dir, stack.urls), stack=stack)


def _describe(data_dir: Path, private: Mapping[str, str]) -> Services:
    """Return the services of a data folder, whose URLs are given by their private names."""
    urls = {name.removesuffix(CLUSTERED): url for name, url in private.items()}
    logs = data_dir / f"rabbitmq{CLUSTERED}"
    has_logs = logs.name in private
    find = partial(find_pids, data_dir, tuple(private))
    return Services(
        redis_url=urls["redis"],
        postgres_url=urls["postgres"],
        amqp_url=urls.get("rabbitmq"),
        pids=find(),
        find_pids=find if any(name.endswith(CLUSTERED) for name in private) else dict,
        nodes=_name_nodes(data_dir, private),
        queue_logs={f"rabbitmq {n}": log_of(logs / name) for n, name in enumerate(_SERVERS, 1) if has_logs},
    )


def find_pids(data_dir: Path, names: Collection[str]) -> dict[str, int]:
    """Return the serving process of each private service, or of each of its nodes that runs."""
    state = read_state(data_dir)
    found: dict[str, int] = {}
    for private in names:
        name, processes = private.removesuffix(CLUSTERED), state[private].processes
        if nodes := _NODES.get(private):
            found |= {f"{name} {number}": process.pid for number, process in enumerate(processes[:nodes], 1)}
        elif private.endswith(CLUSTERED):
            found |= _find_servers(processes[0].pid)
        else:
            found[name] = processes[0].pid
    return found


def _find_servers(promoter: int) -> dict[str, int]:
    """Return PostgreSQL's promoter, and the servers that it started."""
    found = {"promoter": promoter}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(promoter).children():
            command = child.cmdline()
            for number, name in enumerate(_SERVERS, 1):
                if f"cluster_name={name}" in command:
                    found[f"postgres {number}"] = child.pid
    return found


def _name_nodes(data_dir: Path, urls: Mapping[str, str]) -> dict[str, str]:
    """Return the names of nodes by their places. Each machine has as many of a service as any other."""
    names: dict[str, str] = {}
    for private in [each for each in urls if each.endswith(CLUSTERED)]:
        name, url = private.removesuffix(CLUSTERED), urls[private]
        places = list(split_hosts(url))
        if name == "redis":
            # Its URL names the first node of each machine.
            hosts, ports = (
                [host for host, _ in read_redis_url(url).nodes],
                read_state(data_dir)[private].ports,
            )
            each = len(ports) // len(hosts)
            places = [f"{hosts[number // each]}:{port}" for number, port in enumerate(ports)]
        names |= {place: f"{name} {number}" for number, place in enumerate(places, 1)}
    return names


def find_services(target: str, settings: Settings) -> Services | None:
    """Return the services of a running engine: those of the environment (FLASHGRID_REDIS_URL and so on), or
    else, for an engine on this machine, those that run for the data folder; None if there are none.

    Raises EngineError if the environment names only a part of them, StackError if the folder can't be read.
    """
    given = check_services(settings.redis_url, settings.amqp_url, settings.postgres_url)
    local = urlsplit(target).hostname in ("localhost", "127.0.0.1", "::1")
    return _read_stack(settings) if given is None and local else given


def check_services(redis_url: str | None, amqp_url: str | None, postgres_url: str | None) -> Services | None:
    """Return the services at these URLs, None without any. Raises EngineError in one clear line."""
    schemes = {
        "Redis": (redis_url, _REDIS_SCHEMES),
        "AMQP": (amqp_url, ("amqp", "amqps")),
        "PostgreSQL": (postgres_url, ("postgresql", "postgres")),
    }
    for name, (url, allowed) in schemes.items():
        if url and url.partition("://")[0] not in allowed:
            raise EngineError(f"the {name} URL must begin with {allowed[0]}://")
    if redis_url and postgres_url:
        return Services(redis_url=redis_url, postgres_url=postgres_url, amqp_url=amqp_url or None)
    if redis_url or postgres_url or amqp_url:
        raise EngineError(
            "an engine's services are Redis and PostgreSQL, and RabbitMQ if it has a bus: give all their URLs"
        )
    return None


def _read_stack(settings: Settings) -> Services | None:
    data_dir = Path(settings.data_dir)
    urls = {row.name: row.url for row in stack_status(data_dir) if row.url}
    has_stores = all({name, name + CLUSTERED} & set(urls) for name in ("redis", "postgres"))
    return _describe(data_dir, urls) if has_stores else None
