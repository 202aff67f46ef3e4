"""The rows of an engine's own tables, as the final state holds them."""

from collections.abc import Sequence
from typing import Final

import asyncpg
import pandas as pd
import pyarrow as pa

from engine.model.sale import Sale
from simulation.model.state import ORDER_TYPES, SALE_TYPES

NEEDED: Final = {"orders": ("order_id", "user_id", "product_id"), "sales": ("product_id", "stock")}
"""The columns that each statement must give."""
KNOWN: Final = {"orders": tuple(ORDER_TYPES), "sales": tuple(SALE_TYPES)}


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
