"""The record of a run as the rules read it: what the clients saw, beside what the stores held at the end."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.model.events import Restocked
from simulation.model.state import FinalState

BUYER: Final = ["user_id", "product_id", "key"]
"""What identifies a purchase that may be retried; the key is "" where the request carried none."""
LIVE: Final = ("CONFIRMED", "PENDING")
"""Orders that hold their units."""
TERMINAL: Final = ("CONFIRMED", "FAILED", "REJECTED")

_Part = TypeVar("_Part")


class Unread(Exception):
    """A part of the final state that a rule needs was not read."""


class Evidence:
    """The record of a run as the rules read it."""

    def __init__(
        self,
        history: pd.DataFrame,
        state: FinalState,
        gate_loss: bool,
        declines: Callable[[str], bool] | None = None,
        restocks: Sequence[Restocked] = (),
    ) -> None:
        self.history = history.assign(key=history["key"].fillna(""))
        self.state = state
        self.gate_loss = gate_loss
        """Whether the gate was made to lose its memory, so that the ledger's guard may have had to act."""
        self.declines = declines
        """Whether payment declines an order id; None where that is not known."""
        self.restocks = restocks

    def answered(self, outcome: str) -> pd.DataFrame:
        """The requests that were answered so."""
        return self.history[self.history["outcome"] == outcome]

    @cached_property
    def accepted(self) -> pd.DataFrame:
        """The requests that were answered ACCEPTED, retries included; `order` numbers the order id."""
        return self.answered("ACCEPTED").assign(order=self._numbers[0])

    @cached_property
    def pending(self) -> npt.NDArray[np.intp]:
        """The orders that the gate holds as accepted and not yet settled."""
        read(self.state.pending, "gate")
        return self._numbers[2]

    @cached_property
    def _numbers(self) -> list[npt.NDArray[np.intp]]:
        """A number for each order id, -1 for none: of the accepted answers, the ledger, and the pending set.

        Compared as strings, a million ids would cost each rule seconds.
        """
        orders = self.state.orders
        ids = [
            self.answered("ACCEPTED")["order_id"],
            pd.Series(dtype="str") if orders is None else orders["order_id"],
            pd.Series(sorted(self.state.pending or ()), dtype="str"),
        ]
        numbers, _ = pd.factorize(pd.concat(ids))
        return np.split(numbers, np.cumsum([len(part) for part in ids])[:-1])

    @cached_property
    def unknown(self) -> pd.DataFrame:
        """The requests that were sent and whose outcome the client never learnt."""
        return self.history[(self.history["result"] == "unknown") & self.history["sent_ns"].notna()]

    @cached_property
    def orders(self) -> pd.DataFrame:
        """The ledger's orders; `order` is the number of the order id."""
        orders = read(self.state.orders, "ledger")
        whole = dict.fromkeys(["sale_id", "product_id", "user_id", "quantity"], "int64")
        return orders.astype(whole).assign(key=orders["idempotency_key"].fillna(""), order=self._numbers[1])

    @cached_property
    def sales(self) -> pd.DataFrame:
        """The ledger's sales, by sale id, with the units of their orders by status, and `live` ones."""
        sales = read(self.state.sales, "ledger").set_index("sale_id")
        sales = sales.astype(dict.fromkeys(["product_id", "stock", "sold", "quantity"], "int64"))
        for status in (*TERMINAL, "PENDING"):
            units = self.orders[self.orders["status"] == status].groupby("sale_id")["quantity"].sum()
            sales[status] = units.reindex(sales.index, fill_value=0)
        return sales.assign(live=sales[list(LIVE)].sum(axis=1))

    @cached_property
    def lone_sales(self) -> pd.DataFrame:
        """The sales of products that were opened once, by product id: an answer can only mean this sale."""
        sales = self.sales.reset_index()
        return sales[~sales["product_id"].duplicated(keep=False)].set_index("product_id")

    @cached_property
    def timed_sales(self) -> pd.DataFrame:
        """The sales that are known to have been open surely from `from_ns` to `to_ns`: those of products that
        were opened before the load, and again only by the run's restocks."""
        sales = self.sales.assign(from_ns=-np.inf, to_ns=np.inf)
        for restock in sorted(self.restocks, key=lambda restock: restock.at_s):
            before = (sales["product_id"] == restock.product_id) & (sales.index < restock.sale_id)
            sales.loc[before, "to_ns"] = np.minimum(sales.loc[before, "to_ns"], restock.at_s * 1e9)
            sales.loc[sales.index == restock.sale_id, "from_ns"] = restock.opened_s * 1e9
        unexplained = ~sales.index.isin([restock.sale_id for restock in self.restocks])
        twice = sales[unexplained].loc[lambda first: first["product_id"].duplicated(), "product_id"]
        return sales[~sales["product_id"].isin(twice)]

    @cached_property
    def refused(self) -> pd.DataFrame:
        """The SOLD_OUT answers, each under the id of the timed sale that surely gave it; `done_ns`."""
        return self._within(self.answered("SOLD_OUT"))

    def _within(self, answers: pd.DataFrame) -> pd.DataFrame:
        sales = self.timed_sales.reset_index()[["sale_id", "product_id", "from_ns", "to_ns"]]
        found = answers[["op", "product_id", "sent_ns", "done_ns"]].merge(sales, on="product_id")
        return found[(found["sent_ns"] >= found["from_ns"]) & (found["done_ns"] <= found["to_ns"])]

    @cached_property
    def takers(self) -> pd.DataFrame:
        """The purchases that were accepted, each once, with the sale that sold to it: that of the ledger, or
        the product's only one."""
        taken = self.accepted.drop_duplicates("order")
        ledger = self.orders.drop_duplicates("order").set_index("order")["sale_id"]
        sale_id = taken["product_id"].map(self.lone_sales["sale_id"]).fillna(taken["order"].map(ledger))
        return taken.assign(sale_id=sale_id)

    @cached_property
    def released(self) -> pd.Series:
        """Units of each timed sale that may have come back after they were taken."""
        sales = self.timed_sales
        return sales["FAILED"] + sales["REJECTED"] if self.gate_loss else sales["FAILED"]


def read(part: _Part | None, name: str) -> _Part:
    """The part of the final state. Raises Unread where it is None."""
    if part is None:
        raise Unread(f"the {name} could not be read")
    return part
