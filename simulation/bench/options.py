"""What a run of the benchmark measures, and for how long."""

from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec


class Subject(StrEnum):
    """Something that can be measured by itself."""

    NGINX = "nginx"
    AIOHTTP = "aiohttp"
    TEXTBOOK = "textbook"
    SOLD_OUT = "sold-out"
    ACCEPTING = "accepting"
    LEDGER = "ledger"
    DRIVER = "driver"
    DISK = "disk"
    RESPONSE = "response"
    CROWD = "crowd"
    CLIENTS = "clients"
    LOOKS = "looks"
    MIX = "mix"
    CONNECTIONS = "connections"
    PRODUCTS = "products"
    STOCK = "stock"
    ORDERS = "orders"
    MEMORY = "memory"
    GROWTH = "growth"
    COPIES = "copies"


SERVED_WITHOUT_ENGINE: Final = frozenset(
    {Subject.NGINX, Subject.AIOHTTP, Subject.DRIVER, Subject.DISK, Subject.GROWTH, Subject.COPIES}
)
"""The subjects that need no engine of the benchmark's, or start their own."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes at which a cost is measured, smallest first."""

    connections: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    products: tuple[int, ...] = (1, 100, 10_000)
    stock: tuple[int, ...] = (1_000, 100_000, 10_000_000)
    orders: tuple[int, ...] = (0, 1_000_000, 5_000_000)
    idle: tuple[int, ...] = (1_000, 10_000)
    memory_requests: int = 5_000_000
    crowd_rps: int = 5_000
    clients: int | None = None
    """How many of the spellings, the first ones; None: all."""
    looked_at: int = 200_000
    """Orders that are looked at in turn: more than a front door should remember."""
    lookers: int = 2_000
    """Connections of a crowd that looks at the stock."""
    doors: tuple[int, ...] = (1, 2, 4, 8)
    shards: tuple[int, ...] = (1, 2, 4)
    mix_rps: tuple[int, int] = (4_000, 20_000)
    """Purchases and looks."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the benchmark runs."""

    rounds: int = 3
    seconds: float = 3
    """Length of each measurement; wrk knows whole seconds only."""
    subjects: frozenset[Subject] = frozenset(Subject)
    sizes: Sizes = Sizes()
    against: Path | None = None
    """Another checkout, whose engine is compared with this one's; then nothing else is measured."""
