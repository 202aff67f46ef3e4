"""What a rule reads, the evidence of a run, and what it returns, a finding."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.model.events import Restocked
from simulation.model.outcome import TERMINAL
from simulation.model.state import FinalState

BUYER: Final = ["user_id", "product_id", "key"]
"""What identifies a purchase that may be retried."""
LIVE: Final = ["CONFIRMED", "PENDING"]
"""Orders that hold their units."""
PLACES: Final = 3
"""Most ids that one breach names."""

_Part = TypeVar("_Part")


class Unread(Exception):
    """A part of the final state that a rule needs could not be read."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The record of a run: what clients were told, beside what the stores hold at the end."""

    history: pd.DataFrame
    """Every request; `key` is "" for a request without an Idempotency-Key."""
    state: FinalState
    declines: Callable[[str], bool] | None
    """Whether payment declines an order id; None where that is not known."""
    restocks: Sequence[Restocked]
    reads: pd.DataFrame | None = None
    """Every read of stock and of orders; None without any."""

    def answered(self, outcome: str) -> pd.DataFrame:
        """Return the requests with that outcome."""
        return self.history[self.history["outcome"] == outcome]

    @cached_property
    def accepted(self) -> pd.DataFrame:
        """The requests answered ACCEPTED, retries included; `order` is the number of the order id."""
        return self.answered("ACCEPTED").assign(order=self._numbers[0])

    @cached_property
    def pending(self) -> npt.NDArray[np.intp]:
        """The numbers of the orders that the gate holds as accepted and not yet settled."""
        read(self.state.pending, "gate")
        return self._numbers[2]

    @cached_property
    def _numbers(self) -> list[npt.NDArray[np.intp]]:
        """A number for each order id of the accepted answers, the ledger, and the pending set; -1 for no id.

        Rules compare numbers, because to compare a million ids as strings takes seconds.
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
        unknown = self.history[self.history["result"] == "unknown"]
        return unknown[unknown["sent_ns"].notna()]

    @cached_property
    def orders(self) -> pd.DataFrame:
        """The ledger's orders; `order` is the number of the order id."""
        orders = read(self.state.orders, "ledger")
        whole = dict.fromkeys(["sale_id", "product_id", "user_id", "quantity"], "int64")
        return orders.astype(whole).assign(key=orders["idempotency_key"].fillna(""), order=self._numbers[1])

    @cached_property
    def sales(self) -> pd.DataFrame:
        """The ledger's sales by sale id, with the units of their orders by status, and of all `live` ones."""
        sales = read(self.state.sales, "ledger").set_index("sale_id")
        sales = sales.astype(dict.fromkeys(["product_id", "stock", "sold", "quantity"], "int64"))
        for status in (*TERMINAL, "PENDING"):
            units = self.orders[self.orders["status"] == status].groupby("sale_id")["quantity"].sum()
            sales[status] = units.reindex(sales.index, fill_value=0)
        return sales.assign(live=sales[LIVE].sum(axis=1))

    @cached_property
    def timed_sales(self) -> pd.DataFrame:
        """The sales that were certainly open from `from_ns` to `to_ns`: those of products that were opened
        before the load, and under the load only by the run's restocks."""
        sales = self.sales.assign(from_ns=-np.inf, to_ns=np.inf)
        for restock in sorted(self.restocks, key=lambda restock: restock.at_s):
            before = (sales["product_id"] == restock.product_id) & (sales.index < restock.sale_id)
            sales.loc[before, "to_ns"] = np.minimum(sales.loc[before, "to_ns"], restock.at_s * 1e9)
            sales.loc[sales.index == restock.sale_id, "from_ns"] = restock.opened_s * 1e9
        first = sales[~sales.index.isin([restock.sale_id for restock in self.restocks])]
        twice = first.loc[first["product_id"].duplicated(), "product_id"]
        return sales[~sales["product_id"].isin(twice)]

    @cached_property
    def sold_out(self) -> pd.DataFrame:
        """The SOLD_OUT answers, each with the id of the timed sale that certainly gave it."""
        answers = self.answered("SOLD_OUT")[["op", "product_id", "sent_ns", "done_ns"]]
        found = answers.merge(self.timed_sales.reset_index(), on="product_id")
        found = found[(found["sent_ns"] >= found["from_ns"]) & (found["done_ns"] <= found["to_ns"])]
        return found[["op", "sale_id", "done_ns"]].astype("int64")

    @cached_property
    def bought(self) -> pd.DataFrame:
        """The accepted purchases, each once, with the sale that sold to it: the product's only sale, or else
        the sale that the ledger names."""
        bought = self.accepted.drop_duplicates("order")
        sales = self.sales.reset_index()
        only = sales[~sales["product_id"].duplicated(keep=False)].set_index("product_id")["sale_id"]
        ledger = self.orders.drop_duplicates("order").set_index("order")["sale_id"]
        return bought.assign(sale_id=bought["product_id"].map(only).fillna(bought["order"].map(ledger)))


def read(part: _Part | None, name: str) -> _Part:
    """Return the part of the final state. Raises Unread where it is None."""
    if part is None:
        raise Unread(f"the {name} could not be read")
    return part


class Finding(NamedTuple):
    """How often a rule is broken, and the evidence in words."""

    violations: int
    detail: str


class Breach(NamedTuple):
    """One way to break a rule: how often it happened, in words, and where: ids of that kind."""

    times: float
    what: str
    kind: str = ""
    ids: Iterable[Any] = ()

    def __str__(self) -> str:
        ids = list(islice(dict.fromkeys(map(str, self.ids)), PLACES + 1))
        named = ", ".join([*ids[:PLACES], "…"] if len(ids) > PLACES else ids)
        return f"{int(self.times):,} {self.what}" + (f" ({self.kind} {named})" if ids else "")


def find(judged: str, *breaches: Breach) -> Finding:
    """Return the finding of a rule: what it judged, and those of the breaches that happened."""
    happened = [breach for breach in breaches if breach.times]
    return Finding(int(sum(breach.times for breach in happened)), "; ".join([judged, *map(str, happened)]))
