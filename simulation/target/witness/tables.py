"""What a description tells of an engine's own tables, and of what it has for sale."""

from typing import Annotated

from msgspec import Meta

from simulation.model.contract import Part


class Remaining(Part, frozen=True, kw_only=True):
    """What is still for sale of a product: one of these."""

    sql: str | None = None
    """A statement that gives product_id and remaining."""
    redis: str | None = None
    """The key of a number, with {product_id}."""
    get: bool = False
    """Whether to read it by the contract's `stock`."""

    def __post_init__(self) -> None:
        if (self.sql is not None) + (self.redis is not None) + self.get != 1:
            raise ValueError("needs one of sql, redis and get")


class Tables(Part, frozen=True, kw_only=True):
    """What the engine's own tables say. In each statement $1, if it is there, is an array of product ids."""

    orders: str
    """Gives order_id, user_id and product_id of each order; if it has them, sale_id, quantity, status
    (PENDING, CONFIRMED, FAILED or REJECTED), idempotency_key, accepted_us and settled_us (Unix µs)."""
    sales: str
    """Gives product_id and stock of each sale; if it has them, sale_id, sold, user_limit, quantity, starts_us
    and ends_us."""
    remaining: Remaining | None = None
    postgres_url: str | None = None
    redis_url: str | None = None
    amqp_url: str | None = None
    queue: str | None = None
    """The RabbitMQ queue in which accepted purchases wait."""
    settle_s: Annotated[float, Meta(ge=0.1, le=600)] = 1.0
    """How long nothing may change at the end until everything counts as written."""
