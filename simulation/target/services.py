"""The backing services of the engine under test: where they are, and which processes they are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engine.local.stack import Stack, stack_status
from engine.local.state import read_state
from engine.settings import Settings
from simulation.errors import EngineError

CLUSTERED: Final = "-cluster"
"""The end of the name of a private service of several nodes."""
_NODES: Final = {"redis-cluster": 9, "rabbitmq-cluster": 3}
"""Nodes that are processes of the stack's; PostgreSQL's promoter starts its own."""
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
    stack: Stack | None = None
    """The private stack that they belong to, if the run may stop and start them."""


def services_of(stack: Stack) -> Services:
    """Return the services of a private stack, of one machine or of three."""
    urls = {name.removesuffix(CLUSTERED): url for name, url in stack.urls.items()}
    return Services(
        redis_url=urls["redis"],
        postgres_url=urls["postgres"],
        amqp_url=urls.get("rabbitmq"),
        pids=_list_nodes(stack),
        stack=stack,
    )


def _list_nodes(stack: Stack) -> dict[str, int]:
    """Return the serving process of each service, or of each of its nodes."""
    state = read_state(stack.data_dir)
    found: dict[str, int] = {}
    for service in stack.urls:
        name, nodes = service.removesuffix(CLUSTERED), _NODES.get(service, 0)
        for number, process in enumerate(state[service].processes[: nodes or 1], 1):
            found[f"{name} {number}" if nodes else name] = process.pid
    return found


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
