"""Every setting of the engine: name, unit, default, bounds and meaning.

The setting `x` comes from the environment variable `FLASHGRID_X`; empty is unset, and whitespace around a
value is cut. A setting of `FROM_FILES` may come from the file that `FLASHGRID_X_FILE` names.
"""

import math
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engine.errors import SettingsError
from engine.urls import check_amqp_url, check_postgres_url, check_redis_url

PREFIX: Final = "FLASHGRID_"
MOST_SHARDS: Final = 1024
FROM_FILES: Final = ("admin_token", "redis_url", "amqp_url", "postgres_url")
_URLS: Final = {"redis_url": check_redis_url, "amqp_url": check_amqp_url, "postgres_url": check_postgres_url}
_OF_PLATFORM: Final = re.compile(
    # Kubernetes describes each Service to its containers, and Docker each linked container. The name of
    # one called flashgrid, flashgrid-redis and so on makes the variable begin like a setting.
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|START|END)){0,2})=.*"
    r"|(\w+_)?PORT(_START|_END)?=(tcp|udp|sctp)://.*|(\w+_)?NAME=/.*|(\w+_)?ENV_\w+=.*"
)
_LONGEST_FILE: Final = 65_536


_Address = Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):[0-9]{1,5}$")]
_Token = Annotated[str, Meta(pattern="^[!-~]*$", min_length=16, max_length=1024)]


def _setting(meaning: str, unit: str = "", **bounds: Any) -> Meta:
    return Meta(description=meaning, extra_json_schema={"unit": unit}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's settings, validated."""

    # Where it listens
    host: Annotated[
        str, _setting("address that the front door binds; any but loopback needs an admin token")
    ] = "127.0.0.1"
    port: Annotated[int, _setting("port of the front door; 0 takes a free one", ge=0, le=65535)] = 8080
    workers: Annotated[int, _setting("front-door processes that share the port", ge=1, le=256)] = 1
    keepalive_s: Annotated[
        float, _setting("longest time that a connection may be idle between two requests", "s", ge=0.1)
    ] = 75.0
    client_timeout_ms: Annotated[
        int, _setting("longest wait for the rest of a request that has begun, head or body", "ms", ge=100)
    ] = 10_000
    operations_bind: Annotated[
        _Address | None,
        _setting("host:port where alone sales are opened and metrics and readiness shown"),
    ] = None
    admin_token: Annotated[
        _Token | None,
        _setting("bearer token that opening a sale needs, 16 or more visible ASCII characters"),
    ] = None
    dev: Annotated[
        bool, _setting("whether any program on this machine may open a sale without a token; for development")
    ] = False

    # Backing services: each one that is not given is started privately
    redis_url: Annotated[
        str | None,
        _setting("Redis, which holds gate and outbox: redis://…, redis+cluster://… or redis+sentinel://…"),
    ] = None
    amqp_url: Annotated[
        str | None, _setting("RabbitMQ, the bus: amqp://…, also with several hosts: amqp://h1,h2,h3/…")
    ] = None
    postgres_url: Annotated[
        str | None,
        _setting("PostgreSQL, the ledger: postgresql://…, also with several hosts: postgresql://h1,h2,h3/…"),
    ] = None
    data_dir: Annotated[str, _setting("folder of the private backing services", min_length=1)] = ".flashgrid"

    # Gate
    gate_shards: Annotated[
        int,
        _setting(
            "parts of the gate, over which the products are spread; decided when the gate is first opened",
            ge=1,
            le=MOST_SHARDS,
        ),
    ] = 1
    gate_copies: Annotated[
        int,
        _setting("machines that hold what is answered 200, the primary of the shard among them", ge=1, le=16),
    ] = 1
    gate_copies_ms: Annotated[
        int, _setting("longest wait for these copies; less than the wait for the gate's answer", "ms", ge=1)
    ] = 500
    gate_batch: Annotated[int, _setting("most purchases in one script call", "purchases", ge=1, le=4096)] = (
        512
    )
    gate_waiting: Annotated[
        int, _setting("most purchases that wait for the gate, for each worker", "purchases", ge=1)
    ] = 20_000
    gate_timeout_ms: Annotated[int, _setting("longest wait for the gate's answer", "ms", ge=10)] = 2_000
    look_timeout_ms: Annotated[
        int,
        _setting(
            "longest wait of a request that does not buy: for the gate, and for the ledger", "ms", ge=10
        ),
    ] = 1_500
    sold_out_ms: Annotated[
        int, _setting("how long a worker repeats a sold-out answer before it asks the gate again", "ms", ge=0)
    ] = 100
    idempotency_s: Annotated[int, _setting("how long the gate remembers an Idempotency-Key", "s", ge=60)] = (
        86_400
    )

    sale_keep_s: Annotated[int, _setting("how long the gate remembers a sale after its end", "s", ge=60)] = (
        86_400
    )

    # Relay
    relay_batch: Annotated[int, _setting("most purchases in one message", "purchases", ge=1, le=10_000)] = (
        2_048
    )
    outbox_wait_ms: Annotated[
        int, _setting("shortest time between two reads of the outbox, so that entries gather", "ms", ge=0)
    ] = 100
    relay_claim_ms: Annotated[
        int,
        _setting("time after which another reader claims outbox entries that a dead one holds", "ms", ge=100),
    ] = 5_000

    # Fulfilment
    fulfilment_batch: Annotated[
        int, _setting("most purchases in one transaction", "purchases", ge=1, le=10_000)
    ] = 2_000
    fulfilment_wait_ms: Annotated[int, _setting("longest wait for a batch to fill", "ms", ge=0)] = 40
    fulfilment_in_flight: Annotated[
        int, _setting("batches settled at the same time", "batches", ge=1, le=64)
    ] = 4
    payment_timeout_ms: Annotated[
        int, _setting("longest wait for the payment gateway's answer to a batch", "ms", ge=10)
    ] = 5_000
    payment_attempts: Annotated[
        int,
        _setting(
            "how often the payment of one order may fail, while others are paid, until it is a dead letter",
            ge=1,
        ),
    ] = 10
    payment_latency_ms: Annotated[float, _setting("duration of a simulated payment", "ms", ge=0)] = 0.0
    payment_decline_rate: Annotated[
        float, _setting("share of purchases that the simulated payment declines, 0 to 1", "", ge=0, le=1)
    ] = 0.0
    payment_seed: Annotated[int, _setting("seed of the decisions of the simulated payment")] = 0

    # Life
    background_nice: Annotated[
        int,
        _setting(
            "niceness of relay and fulfilment, which yield the processor to the front door",
            "nice",
            ge=0,
            le=19,
        ),
    ] = 10
    drain_s: Annotated[
        float, _setting("longest time that a stage may take to finish its work when it is stopped", "s", ge=0)
    ] = 30.0
    lame_duck_ms: Annotated[
        int,
        _setting("how long the port stays open at a stop, after readiness has turned", "ms", ge=0),
    ] = 0
    log_level: Annotated[
        str,
        _setting(
            "least serious log lines to write: debug, info, warning or error",
            pattern="^(debug|info|warning|error)$",
        ),
    ] = "info"


_NAMES: Final = [field.name for field in msgspec.structs.fields(Settings)]


def read_settings(environment: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Return the settings of the environment; `overrides` that are not None or empty take precedence.

    Raises SettingsError, in one line, for an unknown FLASHGRID_ variable or a bad value.
    """
    raw: dict[str, Any] = _read_environment(environment)
    raw |= {name: value for name, value in overrides.items() if value not in (None, "")}
    if "log_level" in raw:
        raw["log_level"] = raw["log_level"].lower()
    _check_names(raw, _NAMES)
    try:
        settings = msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$.")
        name = path.removesuffix("`")
        if "matching regex" in detail:
            detail = next(f"Expected {row[3]}" for row in describe_settings() if row[0] == _variable(name))
        detail = detail.partition(", got ")[0].replace("`bool`", "true or false")
        shown = "(hidden)" if name in FROM_FILES else repr(raw[name])
        raise SettingsError(f"{_variable(name)}: {detail}, got {shown}") from None
    if settings.gate_copies > 1 and settings.gate_copies_ms >= min(
        settings.gate_timeout_ms, settings.look_timeout_ms
    ):
        raise SettingsError(
            f"{PREFIX}GATE_COPIES_MS: must be less than {PREFIX}GATE_TIMEOUT_MS and {PREFIX}LOOK_TIMEOUT_MS"
        )
    for name, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{_variable(name)}: must be a finite number")
        if name in _URLS and value is not None:
            try:
                settings = msgspec.structs.replace(settings, **{name: _URLS[name](value)})
            except SettingsError as error:
                raise SettingsError(f"{_variable(name)}: {error}") from None
    return settings


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the environment gives, by name."""
    given = {
        name.removeprefix(PREFIX).lower(): value.strip()
        for name, value in environment.items()
        if name.startswith(PREFIX) and not _OF_PLATFORM.fullmatch(f"{name.removeprefix(PREFIX)}={value}")
    }
    _check_names(given, [*_NAMES, *(f"{name}_file" for name in FROM_FILES)])
    given = {name: value for name, value in given.items() if value}
    for name, value in given.items():
        _refuse_quotes(_variable(name), value)
    for name in FROM_FILES:
        if path := given.pop(f"{name}_file", None):
            if name in given:
                raise SettingsError(f"both {_variable(name)} and {_variable(name)}_FILE are set: unset one")
            given[name] = _read_file(_variable(name) + "_FILE", path)
    return given


def _check_names(given: Iterable[str], known: Collection[str]) -> None:
    for name in sorted(set(given) - set(known)):
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {_variable(close[0])}? " if close else ""
        raise SettingsError(f"unknown setting {_variable(name)}: {hint}`flashgrid settings` lists all")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _read_file(variable: str, path: str) -> str:
    """Return what the file that a variable names holds. Raises SettingsError if that is nothing."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_LONGEST_FILE)
        # PowerShell writes UTF-16.
        in_utf16 = raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        value = raw.decode("utf-16" if in_utf16 else "utf-8-sig").strip()
    except OSError as error:
        raise SettingsError(f"{variable}: can't read {path}: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"{variable}: {path} holds no text") from None
    if not value:
        raise SettingsError(f"{variable}: {path} is empty")
    _refuse_quotes(variable, value)
    return value


def _refuse_quotes(variable: str, value: str) -> None:
    """Raise SettingsError for a value in quotes, which a shell takes away and a file of variables may not."""
    if value[0] == value[-1] and value[0] in "\"'":
        raise SettingsError(f"{variable}: its value is in quotes: leave them out")


def describe_settings() -> list[tuple[str, str, str, str]]:
    """Return a row for each setting: environment name, unit, default, meaning."""
    properties = msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"]
    return [
        (_variable(name), schema["unit"], _show(schema["default"]), schema["description"])
        for name, schema in properties.items()
    ]


def _show(default: object) -> str:
    return "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
