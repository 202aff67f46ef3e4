"""What a rule reads, the evidence of a run, and what it returns, a finding."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.asked import NEVER, PROMPT_NS, Asked
from simulation.judge.rules.pairing import OF_OP, find_keys
from simulation.model.contract import FLASHGRID
from simulation.model.outcome import TERMINAL
from simulation.model.state import FinalState

BUYER: Final = ["user_id", "product_id", "key"]
"""What identifies a purchase that may be retried."""
LIVE: Final = ["CONFIRMED", "PENDING"]
"""Orders that hold their units."""
MOST: Final = 0.1
"""Largest share of the requests that may be turned away, and of the units that may stay unsold, without
a reason."""
FEW: Final = 10
"""Of fewer requests a share says nothing."""
PLACES: Final = 3
"""Most ids that one breach names."""

_Part = TypeVar("_Part")


class Unknown(Exception):
    """Something that a rule needs is not known."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """The three witnesses of a run: what was asked, what clients were told, what the stores hold at the
    end."""

    asked: Asked
    history: pd.DataFrame
    """Every request; `key` is "" for a request without an Idempotency-Key."""
    state: FinalState
    reads: pd.DataFrame | None = None
    """Every read of stock and of orders; None without any."""
    timeline: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What the probes read of the stores meanwhile; empty without them."""

    def answered(self, outcome: str) -> pd.DataFrame:
        """Return the requests with that outcome."""
        return self.history[self.history["outcome"] == outcome]

    @cached_property
    def sent(self) -> pd.DataFrame:
        """The requests that were sent, `excused` where a fault or an overload may have kept one from its
        answer."""
        sent = self.history[self.history["sent_ns"].notna()]
        return sent.assign(excused=self.asked.is_excused(sent))

    @cached_property
    def operations(self) -> pd.DataFrame:
        """All requests, purchases and reads, sent or not; `excused` as in `sent`."""
        whole = self.history if self.reads is None else pd.concat([self.history, self.reads])
        return whole.assign(excused=self.asked.is_excused(whole))

    @cached_property
    def accepted(self) -> pd.DataFrame:
        """The requests answered ACCEPTED, retries included; `order` is the number of the order id."""
        return self.answered("ACCEPTED").assign(order=self._numbers[0])

    @cached_property
    def pending(self) -> npt.NDArray[np.intp]:
        """The numbers of the orders that are held as accepted and not yet settled."""
        read(self.state.pending, "set of pending orders")
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
        return self.sent[self.sent["result"] == "unknown"]

    @cached_property
    def orders(self) -> pd.DataFrame:
        """The ledger's orders; `order` is the number of the order id, `accepted_ns` and `settled_ns` count
        from the run's start. A number that is missing is -1; a time that the witness does not show is NaN."""
        orders = read(self.state.orders, "ledger")
        unseen = self.unseen
        whole = ["sale_id", "product_id", "user_id", "quantity", *({"accepted_us"} - unseen)]
        orders = orders.fillna(dict.fromkeys(whole, -1)).astype(dict.fromkeys(whole, "int64"))
        times: dict[str, pd.Series] = {
            f"{name}_ns": (orders[f"{name}_us"].astype("Int64") - self.asked.started_us) * 1000
            for name in ("accepted", "settled")
        }
        if "accepted_us" in unseen:
            times["accepted_ns"] = times["accepted_ns"].astype("float64")
        hidden = "idempotency_key" in unseen
        key = find_keys(orders, self.sent) if hidden else orders["idempotency_key"].fillna("")
        return orders.assign(key=key, order=self._numbers[1], **times)

    @cached_property
    def holds(self) -> pd.DataFrame:
        """The orders that have held units, each from `from_ns` to `to_ns` for certain: it was accepted at the
        one at the latest, and FAILED at the other at the earliest. Left out are orders whose times nobody
        knows, and REJECTED ones, for which there was no unit."""
        slack_ns = self.asked.clock_ns + 1_000_000
        orders = self.orders[self.orders["status"] != "REJECTED"].drop_duplicates("order")
        told_ns = orders["order"].map(self.bought.set_index("order")["done_ns"].astype("float64"))
        accepted_ns = orders["accepted_ns"].astype("float64") + slack_ns
        failed = orders["status"] == "FAILED"
        holds = orders[["order_id", "sale_id", "product_id", "user_id", "quantity"]].assign(
            from_ns=pd.concat([told_ns, accepted_ns], axis=1).min(axis=1),
            to_ns=self.find_free(orders).where(failed, NEVER),
        )
        return holds[holds["from_ns"] < holds["to_ns"]]

    def find_free(self, orders: pd.DataFrame) -> pd.Series:
        """Return when the units of each order could be on sale again at the earliest, if it failed."""
        slack_ns = self.asked.clock_ns + 1_000_000
        # Engines other than ours may give a unit back a moment before they note it.
        slack_ns += 0 if self.asked.contract == FLASHGRID else PROMPT_NS
        return orders["settled_ns"].astype("float64") - slack_ns

    @property
    def unseen(self) -> frozenset[str]:
        """The columns of the orders that nobody shows. Where purchases and orders are paired, the time of an
        order says nothing of its purchase."""
        paired = self.asked.contract.buy.order_id is None
        return self.state.unseen | ({"accepted_us"} if paired else set())

    @property
    def is_blind(self) -> bool:
        """Whether there may be orders that the witness can't see: those of unknown outcomes."""
        return self.state.partial and len(self.unknown) > 0

    @cached_property
    def returned_ns(self) -> pd.Series:
        """When the units of a failed order were certainly on sale again, by the number of the order; only
        where nothing can have kept them."""
        failed = self.orders[self.orders["status"] == "FAILED"].drop_duplicates("order")
        settled_ns = failed.set_index("order")["settled_ns"].dropna() + self.asked.clock_ns
        times = {"intended_ns": settled_ns, "sent_ns": settled_ns, "done_ns": settled_ns + PROMPT_NS}
        spans = pd.DataFrame(times)
        return spans.loc[~self.asked.is_slow(spans), "done_ns"].astype("float64")

    @cached_property
    def sales(self) -> pd.DataFrame:
        """The asked sales by the ledger's ids (Asked.match), with the units of their orders by status,
        and of all `live` ones."""
        sales = self.asked.match(read(self.state.sales, "ledger"))
        for status in (*TERMINAL, "PENDING"):
            units = self.orders[self.orders["status"] == status].groupby("sale_id")["quantity"].sum()
            sales[status] = units.reindex(sales.index, fill_value=0)
        return sales.assign(live=sales[LIVE].sum(axis=1))

    @cached_property
    def asked_sales(self) -> pd.DataFrame:
        """Those of the sales that were asked for."""
        sales = self.sales[self.sales["asked"]]
        return sales.astype({"from_ns": "int64", "to_ns": "int64"})

    def find_sale(self, rows: pd.DataFrame, start: str = "sent_ns", end: str = "done_ns") -> pd.Series:
        """Return for each row the id of the sale that was certainly the current one of its product from
        `start` to `end`; null where there is none."""
        sales = self.asked_sales.reset_index()[["sale_id", "product_id", "from_ns", "to_ns"]]
        spans = rows[["product_id"]].assign(start=rows[start], end=rows[end].fillna(NEVER))
        spans = spans.reset_index(drop=True).rename_axis("place").reset_index().dropna().astype("int64")
        found = pd.merge_asof(
            spans.sort_values("start"),
            sales.sort_values("from_ns"),
            by="product_id",
            left_on="start",
            right_on="from_ns",
        )
        certain = found[found["end"] <= found["to_ns"]].set_index("place")["sale_id"]
        return certain.reindex(range(len(rows))).set_axis(rows.index)

    @cached_property
    def first_tries(self) -> pd.Series:
        """When the first try under each key was sent, by BUYER."""
        keyed = self.sent[self.sent["key"] != ""]
        return keyed.groupby(BUYER)["sent_ns"].min().rename("first_ns")

    @cached_property
    def bought(self) -> pd.DataFrame:
        """The accepted purchases, each once, with `first_ns`, when it was first tried, `returned_ns`, and
        the sale that sold to it: the one that certainly did, or else the one that the ledger names."""
        bought = self.accepted.sort_values("done_ns").drop_duplicates("order").sort_index()
        first_ns = bought[BUYER].join(self.first_tries, on=BUYER)["first_ns"].fillna(bought["sent_ns"])
        bought = bought.assign(first_ns=first_ns, returned_ns=bought["order"].map(self.returned_ns))
        ledger = self.orders.drop_duplicates("order").set_index("order")["sale_id"]
        certain = self.find_sale(bought, "first_ns")
        return bought.assign(certain=certain, sale_id=certain.fillna(bought["order"].map(ledger)))

    @cached_property
    def takers(self) -> pd.DataFrame:
        """The purchases that may have taken a unit, all tries under a key as one: product_id, `sent_ns`, and
        `end_ns`, when it was certainly taken; null where nobody knows."""
        takers = self.sent[self.sent["result"].isin(["ok", "unknown"])]
        takers = takers.assign(end_ns=takers["done_ns"].where(takers["result"] == "ok"))
        keyed = takers[takers["key"] != ""].groupby(BUYER, as_index=False)[["sent_ns", "end_ns"]].min()
        return pd.concat([takers[takers["key"] == ""], keyed])[["product_id", "sent_ns", "end_ns"]]

    @cached_property
    def held(self) -> pd.DataFrame:
        """The requests refused with 503: each may have held a unit until then."""
        return self.sent[self.sent["outcome"] == "UNAVAILABLE"]

    @cached_property
    def beyond(self) -> int:
        """Requests for more units than their product's sales have: those that could be sold too much."""
        clients = self.sent.drop_duplicates("first_op")["product_id"].value_counts()
        sales = self.asked.frame.groupby("product_id").agg({"stock": "sum", "quantity": "max"})
        stock = (sales["stock"] // sales["quantity"]).reindex(clients.index, fill_value=0)
        return int((clients - stock).clip(lower=0).sum())


def read(part: _Part | None, name: str) -> _Part:
    """Return the part of the final state. Raises Unknown where it is None."""
    if part is None:
        raise Unknown(f"the {name} could not be read")
    return part


def find_excess(holds: pd.DataFrame, by: list[str], most: pd.Series) -> pd.Series:
    """Return for each group that holds units by how many they were ever more, at once, than `most` of it.

    The index of `most` is the first of `by`; a group that it lacks may hold none.
    """
    moments = [
        holds[by].assign(at_ns=holds[name], units=sign * holds["quantity"], first=sign)
        for name, sign in (("from_ns", 1), ("to_ns", -1))
    ]
    # Of one moment, what ends comes first.
    changes = pd.concat(moments).sort_values(["at_ns", "first"], kind="stable")
    held = changes.groupby(by)["units"].cumsum().groupby([changes[name] for name in by]).max()
    return (held - held.index.get_level_values(0).map(most.to_dict()).fillna(0)).clip(lower=0)


class Breach(NamedTuple):
    """One way to break a rule: how often it happened, in words, and where: ids of that kind."""

    times: float
    what: str
    kind: str = ""
    ids: Iterable[Any] = ()

    def __str__(self) -> str:
        ids = self.name(PLACES + 1)
        named = ", ".join([*ids[:PLACES], "…"] if len(ids) > PLACES else ids)
        return f"{int(self.times):,} {self.what}" + (f" ({self.kind} {named})" if ids else "")

    def name(self, most: int | None = None) -> list[str]:
        """Return the first of its ids, or all, each once."""
        return list(islice(dict.fromkeys(map(str, self.ids)), most))

    def ask(self, most: int | None = None) -> list[str]:
        """Return the same as `flashsim explain` takes it: "order 01a2…", "op 17", "user 5"."""
        return [
            one.removeprefix("of ") if one.startswith(OF_OP) else f"{self.kind} {one}"
            for one in self.name(most)
        ]


class Finding(NamedTuple):
    """How often a rule is broken, the evidence in words, how often it could have been broken, and where it
    is."""

    violations: int
    detail: str
    chances: int
    breaches: tuple[Breach, ...] = ()


def find(judged: str, *breaches: Breach, chances: int) -> Finding:
    """Return the finding of a rule: what it judged, and those of the breaches that happened."""
    happened = tuple(breach for breach in breaches if breach.times)
    violations = int(sum(breach.times for breach in happened))
    detail = "; ".join([judged, *map(str, happened)])
    return Finding(violations, detail, max(int(chances), violations), happened)
