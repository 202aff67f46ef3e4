"""Every setting of the engine: name, unit, default, bounds and meaning.

The setting `x` comes from the environment variable `FLASHGRID_X`.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engine.errors import SettingsError

PREFIX: Final = "FLASHGRID_"


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
        float, _setting("longest wait of a connection for a whole request head", "s", ge=0.1)
    ] = 75.0
    client_timeout_ms: Annotated[
        int, _setting("longest wait for the rest of a request's body", "ms", ge=100)
    ] = 10_000
    admin_token: Annotated[
        str | None, _setting("bearer token that opening a sale needs; without one, only loopback may")
    ] = None

    # Backing services: each one that is not given is started privately
    redis_url: Annotated[str | None, _setting("Redis, which holds gate and outbox: redis://…")] = None
    amqp_url: Annotated[str | None, _setting("RabbitMQ, the bus: amqp://…")] = None
    postgres_url: Annotated[str | None, _setting("PostgreSQL, the ledger: postgresql://…")] = None
    data_dir: Annotated[str, _setting("folder of the private backing services", min_length=1)] = ".flashgrid"

    # Gate
    gate_shards: Annotated[
        int, _setting("parts of the gate, over which the products are spread", ge=1, le=1024)
    ] = 1
    gate_batch: Annotated[int, _setting("most purchases in one script call", "purchases", ge=1, le=4096)] = (
        512
    )
    gate_waiting: Annotated[
        int, _setting("most purchases that wait for the gate, for each worker", "purchases", ge=1)
    ] = 20_000
    gate_timeout_ms: Annotated[int, _setting("longest wait for the gate's answer", "ms", ge=10)] = 2_000
    sold_out_ms: Annotated[
        int, _setting("how long a worker repeats a sold-out answer before it asks the gate again", "ms", ge=0)
    ] = 100
    idempotency_s: Annotated[int, _setting("how long the gate remembers an Idempotency-Key", "s", ge=60)] = (
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
    log_level: Annotated[
        str,
        _setting(
            "least serious log lines to write: debug, info, warning or error",
            pattern="^(debug|info|warning|error)$",
        ),
    ] = "info"


def read_settings(environment: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Return the settings of the environment; `overrides` that are not None take precedence.

    Raises SettingsError, in one line, for an unknown FLASHGRID_ variable or a bad value.
    """
    raw: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX)
    }
    raw |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in msgspec.structs.fields(Settings)}
    if unknown := sorted(raw.keys() - known):
        names = ", ".join(PREFIX + name.upper() for name in unknown)
        raise SettingsError(f"unknown setting {names}; `flashgrid settings` lists the known ones")
    try:
        return msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$.")
        name = path.removesuffix("`")
        shown = "(hidden)" if name.endswith(("token", "url")) else repr(raw[name])
        raise SettingsError(f"{PREFIX}{name.upper()}: {detail}, got {shown}") from None


def describe_settings() -> list[tuple[str, str, str, str]]:
    """Return a row for each setting: environment name, unit, default, meaning."""
    properties = msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"]
    return [
        (PREFIX + name.upper(), schema["unit"], str(schema["default"]), schema["description"])
        for name, schema in properties.items()
    ]
