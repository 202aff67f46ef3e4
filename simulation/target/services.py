"""The backing services of the engine under test: where they are, and which processes they are."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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
"""The end of the name of a private service of several nodes."""
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
    stack: Stack | None = None
    """The private stack that they belong to, if the run may stop and start them."""


def services_of(stack: Stack) -> Services:
    """Return the services of a private stack, of one machine or of three."""
    urls = {name.removesuffix(CLUSTERED): url for name, url in stack.urls.items()}
    return Services(
        redis_url=urls["redis"],
        postgres_url=urls["postgres"],
        amqp_url=urls.get("rabbitmq"),
        pids=find_pids(stack),
        nodes=_name_nodes(stack),
        queue_logs=_list_queue_logs(stack),
        stack=stack,
    )


def find_pids(stack: Stack) -> dict[str, int]:
    """Return the serving process of each service, or of each of its nodes that runs."""
    state = read_state(stack.data_dir)
    found: dict[str, int] = {}
    for service in stack.urls:
        name, processes = service.removesuffix(CLUSTERED), state[service].processes
        if service == "postgres-cluster":
            found |= _find_servers(processes[0].pid)
        elif nodes := _NODES.get(service):
            found |= {f"{name} {number}": process.pid for number, process in enumerate(processes[:nodes], 1)}
        else:
            found[name] = processes[0].pid
    return found


def _find_servers(promoter: int) -> dict[str, int]:
    """Return PostgreSQL's promoter, and the servers that it started."""
    found = {"promoter": promoter}
    for child in psutil.Process(promoter).children():
        with contextlib.suppress(psutil.Error):
            for number, name in enumerate(_SERVERS, 1):
                if f"cluster_name={name}" in child.cmdline():
                    found[f"postgres {number}"] = child.pid
    return found


def _name_nodes(stack: Stack) -> dict[str, str]:
    """Return the names of a cluster's nodes by their places. Each machine has as many of them."""
    urls, names = stack.urls, dict[str, str]()
    if entry := read_state(stack.data_dir).get("redis-cluster"):
        hosts = [host for host, _ in read_redis_url(urls["redis-cluster"]).nodes]
        each = len(entry.ports) // len(hosts)
        for number, port in enumerate(entry.ports):
            names[f"{hosts[number // each]}:{port}"] = f"redis {number + 1}"
    for service in {"postgres-cluster", "rabbitmq-cluster"} & set(urls):
        for number, place in enumerate(split_hosts(urls[service]), 1):
            names[place] = f"{service.removesuffix(CLUSTERED)} {number}"
    return names


def _list_queue_logs(stack: Stack) -> dict[str, Path]:
    """Return the logs of RabbitMQ's nodes by the nodes' names."""
    if "rabbitmq-cluster" not in stack.urls:
        return {}
    folder = stack.data_dir / "rabbitmq-cluster"
    return {f"rabbitmq {number}": log_of(folder / name) for number, name in enumerate(_SERVERS, 1)}


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
    rows = stack_status(Path(settings.data_dir))
    urls = {row.name.removesuffix(CLUSTERED): row.url for row in rows}
    pids = {row.name.removesuffix(CLUSTERED): row.pid for row in rows if row.pid}
    if not urls["redis"] or not urls["postgres"]:
        return None
    return Services(
        redis_url=urls["redis"], postgres_url=urls["postgres"], amqp_url=urls["rabbitmq"], pids=pids
    )
