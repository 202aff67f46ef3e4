"""The rows of an engine's own tables, as the final state holds them."""

from collections.abc import Sequence
from typing import Final

import asyncpg
import pandas as pd
import pyarrow as pa

from engine.model.sale import Sale
from simulation.errors import EngineError, suggest
from simulation.model.state import ORDER_TYPES, SALE_TYPES

NEEDED: Final = {
    "orders": ("order_id", "user_id", "product_id"),
    "sales": ("product_id", "stock"),
    "remaining.sql": ("product_id", "remaining"),
}
"""The columns that each statement must give."""
KNOWN: Final = {
    "orders": tuple(ORDER_TYPES),
    "sales": tuple(SALE_TYPES),
    "remaining.sql": NEEDED["remaining.sql"],
}
_WHOLE: Final = {
    "remaining",
    *(name for types in (ORDER_TYPES, SALE_TYPES) for name, kind in types.items() if kind == pa.int64()),
}
_NUMBERS: Final = {"int2", "int4", "int8", "numeric", "float4", "float8"}
"""Types of PostgreSQL."""


async def check_statement(connection: asyncpg.Connection, name: str, query: str) -> None:
    """Raise EngineError unless a statement gives the columns that it must, and numbers where they are due."""
    try:
        given = (await connection.prepare(query)).get_attributes()
    except asyncpg.PostgresError as error:
        raise EngineError(f"sql.{name}: {error}") from None
    columns = {column.name: column.type.name for column in given}
    if missing := [column for column in NEEDED[name] if column not in columns]:
        raise EngineError(f"sql.{name}: must give {missing[0]}, gives {', '.join(columns)}")
    for column, kind in columns.items():
        if column not in KNOWN[name]:
            meant = suggest(column, KNOWN[name])
            known = ", ".join(KNOWN[name])
            raise EngineError(f"sql.{name}: there is no column {column}{meant}; there are {known}")
        if column in _WHOLE and kind not in _NUMBERS:
            how = ": (extract(epoch FROM …) * 1000000)::bigint" if column.endswith("_us") else ""
            raise EngineError(f"sql.{name}: {column} must be a whole number, is {kind}{how}")


async def fetch(
    connection: asyncpg.Connection, query: str, sales: Sequence[Sale]
) -> tuple[list[str], list[asyncpg.Record]]:
    """Return the names of the columns that a query gives, and its rows."""
    statement = await connection.prepare(query)
    products = sorted({sale.terms.product_id for sale in sales})
    rows = await statement.fetch(*([products] if "$1" in query else []))
    return [column.name for column in statement.get_attributes()], rows


def make_frame(given: list[str], rows: list[asyncpg.Record], types: dict[str, pa.DataType]) -> pd.DataFrame:
    """Return the rows as a table with all columns of the types; null where the query does not give one."""
    frame = pd.DataFrame([tuple(row) for row in rows], columns=given, dtype=object)
    for name, kind in types.items():
        if name not in frame:
            frame[name] = None
        if kind == pa.int64():
            frame[name] = frame[name].astype("Int64")
        elif name == "order_id":
            frame[name] = frame[name].astype(str)
    return frame[list(types)]


def count_purchases(accepted: pd.DataFrame) -> int:
    """Return the number of purchases in accepted answers, of which some may be of the same purchase."""
    if accepted["order_id"].notna().any():
        return int(accepted["order_id"].nunique())
    keyed = accepted["key"].notna() & (accepted["key"] != "")
    return int((~keyed).sum()) + len(accepted[keyed].drop_duplicates(["user_id", "product_id", "key"]))


def make_gate(sales: Sequence[Sale], left: dict[int, int]) -> pd.DataFrame:
    """Return what is for sale as the gate's rows: of each product that of its newest sale."""
    newest = {sale.terms.product_id: sale.sale_id for sale in sales}
    rows = [[product, newest[product], units] for product, units in left.items() if product in newest]
    return pd.DataFrame(rows, columns=["product_id", "sale_id", "remaining"], dtype="int64")
