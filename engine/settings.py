"""Every setting of the engine: name, unit, default, bounds and meaning, in one place.

A setting `x` is read from the environment variable `FLASHGRID_X`.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engine.errors import SettingsError

PREFIX: Final = "FLASHGRID_"

Count = Annotated[int, Meta(ge=1)]
Milliseconds = Annotated[int, Meta(ge=1)]


def _setting(meaning: str, unit: str = "", **bounds: Any) -> Meta:
    return Meta(description=meaning, extra_json_schema={"unit": unit}, **bounds)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's settings, validated."""

    # Where it listens
    host: Annotated[
        str, _setting("address the front door binds; beyond loopback it needs an admin token")
    ] = "127.0.0.1"
    port: Annotated[int, _setting("port of the front door; 0 takes a free one", ge=0, le=65535)] = 8080
    workers: Annotated[int, _setting("front-door processes that share the port", ge=1, le=256)] = 1
    keepalive_s: Annotated[
        float, _setting("how long a connection may wait for its next whole request head", "s", ge=0.1)
    ] = 75.0
    client_timeout_ms: Annotated[
        int, _setting("longest wait for the rest of a request's body", "ms", ge=100)
    ] = 10_000
    admin_token: Annotated[str | None, _setting("bearer token that may open a sale")] = None

    # Backing services: each one that is not given is started privately
    redis_url: Annotated[str | None, _setting("gate and outbox, redis://…")] = None
    amqp_url: Annotated[str | None, _setting("bus, amqp://…")] = None
    postgres_url: Annotated[str | None, _setting("ledger, postgresql://…")] = None
    data_dir: Annotated[str, _setting("folder of the private backing services", min_length=1)] = ".flashgrid"

    # Gate
    gate_shards: Annotated[int, _setting("parts the gate's keys are spread over", ge=1, le=1024)] = 1
    gate_batch: Annotated[int, _setting("most purchases in one script call", "purchases", ge=1, le=4096)] = (
        512
    )
    gate_waiting: Annotated[
        int, _setting("most purchases of a worker that may wait for the gate", "purchases", ge=1)
    ] = 20_000
    gate_timeout_ms: Annotated[int, _setting("longest wait for the gate's answer", "ms", ge=10)] = 2_000
    sold_out_ms: Annotated[
        int, _setting("how long a sold-out answer is repeated without asking the gate again", "ms", ge=0)
    ] = 100
    idempotency_s: Annotated[int, _setting("how long an Idempotency-Key is remembered", "s", ge=60)] = 86_400

    # Relay
    relay_batch: Annotated[int, _setting("most purchases in one message", "purchases", ge=1, le=10_000)] = (
        2_048
    )
    outbox_wait_ms: Annotated[
        int, _setting("shortest time between two reads of the outbox, for entries to gather", "ms", ge=0)
    ] = 100
    relay_claim_ms: Annotated[
        int, _setting("idle time after which a dead reader's outbox entries are claimed", "ms", ge=100)
    ] = 5_000

    # Fulfilment
    fulfilment_batch: Annotated[
        int, _setting("most purchases in one transaction", "purchases", ge=1, le=10_000)
    ] = 2_000
    fulfilment_wait_ms: Annotated[int, _setting("longest wait for a batch to fill", "ms", ge=0)] = 40
    fulfilment_in_flight: Annotated[
        int, _setting("batches settled at the same time", "batches", ge=1, le=64)
    ] = 4
    payment_latency_ms: Annotated[float, _setting("time the simulated payment takes", "ms", ge=0)] = 0.0
    payment_decline_rate: Annotated[
        float, _setting("share of purchases the simulated payment declines", "", ge=0, le=1)
    ] = 0.0
    payment_seed: Annotated[int, _setting("seed of the simulated payment's decisions")] = 0

    # Life
    background_nice: Annotated[
        int, _setting("how far relay and fulfilment step back for the front door", "nice", ge=0, le=19)
    ] = 10
    drain_s: Annotated[
        float, _setting("longest time that a stage may take to settle when it is stopped", "s", ge=0)
    ] = 30.0
    log_level: Annotated[str, _setting("least serious log line", pattern="^(debug|info|warning|error)$")] = (
        "info"
    )


def read_settings(environment: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Settings from the environment; `overrides` that are not None go before it.

    Raises SettingsError, in one line, for an unknown FLASHGRID_ variable or a bad value.
    """
    raw: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(PREFIX)
    }
    known = {field.name for field in msgspec.structs.fields(Settings)}
    if unknown := sorted(raw.keys() - known):
        names = ", ".join(PREFIX + name.upper() for name in unknown)
        raise SettingsError(f"unknown setting {names}; `flashgrid settings` lists those there are")
    raw |= {name: value for name, value in overrides.items() if value is not None}
    for name, value in raw.items():
        try:
            # One field at a time, so that the message can name it and show what was given.
            msgspec.convert({name: value}, Settings, strict=False)
        except msgspec.ValidationError as error:
            detail = str(error).split(" - at ")[0]
            shown = "(hidden)" if name.endswith(("token", "url")) else repr(value)
            raise SettingsError(f"{PREFIX}{name.upper()}: {detail}, got {shown}") from None
    return msgspec.convert(raw, Settings, strict=False)


def describe_settings() -> list[tuple[str, str, str, str]]:
    """One row for each setting: environment name, unit, default, meaning."""
    rows = []
    for field in msgspec.json.schema(Settings)["$defs"]["Settings"]["properties"].items():
        name, schema = field
        rows.append(
            (
                PREFIX + name.upper(),
                schema.get("unit", ""),
                str(schema.get("default", "")),
                schema["description"],
            )
        )
    return rows
