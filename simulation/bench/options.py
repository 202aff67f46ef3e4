"""What a run of the benchmark measures, and for how long."""

from collections.abc import Callable
from enum import StrEnum
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
    CONNECTIONS = "connections"
    PRODUCTS = "products"
    STOCK = "stock"
    ORDERS = "orders"
    MEMORY = "memory"


SERVED_WITHOUT_ENGINE: Final = frozenset({Subject.NGINX, Subject.AIOHTTP, Subject.DRIVER, Subject.DISK})

Say = Callable[[str], None]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes at which a cost is measured, smallest first."""

    connections: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    products: tuple[int, ...] = (1, 100, 10_000)
    stock: tuple[int, ...] = (1_000, 100_000, 10_000_000)
    orders: tuple[int, ...] = (0, 1_000_000, 5_000_000)
    idle: tuple[int, ...] = (1_000, 10_000)
    memory_requests: int = 5_000_000
    crowd_rps: int = 5_000


QUICK: Final = Sizes(
    connections=(1, 10, 100),
    products=(1, 100),
    stock=(1_000, 100_000),
    orders=(0, 50_000),
    idle=(200,),
    memory_requests=100_000,
    crowd_rps=500,
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the benchmark runs."""

    rounds: int = 3
    seconds: float = 3
    """Of each measurement; wrk knows whole ones only."""
    subjects: frozenset[Subject] = frozenset(Subject)
    sizes: Sizes = Sizes()

    @property
    def growth_seconds(self) -> float:
        """The length of a measurement where there are many: of a cost at one size."""
        return max(1.0, self.seconds * 2 / 3)
