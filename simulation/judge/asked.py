"""What was asked of the engine: the first of the judge's three witnesses.

It is the scenario's word, and the run's own record of when it asked. Nothing of it comes from the engine.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.model.contract import FLASHGRID, Contract
from simulation.model.events import Recovery, Restocked
from simulation.scenario.schema import Restock, Scenario

LONG_AGO: Final = -(2**62)
NEVER: Final = 2**62
"""Moments before and after everything, in ns."""
SAME_CLOCK_NS: Final = 50_000_000
"""Most that two readings of one machine's clock differ, when another process runs between them."""
OTHER_CLOCK_NS: Final = 2_000_000_000
"""Most that the clocks of two machines differ, if both of them are set."""
GRACE_S: Final = 1.0
"""How long after a recovery a straggler may still be without an answer."""
PROMPT_NS: Final = 1_000_000_000
"""Longest until everybody is shown what the ledger has settled, and the units of a declined payment are on
sale again."""
REMEMBERED_S: Final = 86_400.0
"""How long an Idempotency-Key is remembered, by the engine's contract."""
PAYMENT_TIMEOUT_MS: Final = 5_000
"""Longest wait for a payment, where the scenario does not say it."""

_LOOPBACK: Final = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/|$)")

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class AskedSale:
    """A sale as it was asked for. Times are in ns from the run's start."""

    product_id: int
    stock: int
    quantity: int = 1
    limit: int | None = None
    starts_ns: int | None = None
    ends_ns: int | None = None
    asked_ns: int = LONG_AGO
    """When the engine was asked to open it."""
    opened_ns: int = LONG_AGO
    """When the engine had answered."""
    named: int | None = None
    """The id that the engine answered, where it is recorded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What was asked of the engine, and what was done to it meanwhile."""

    sales: Sequence[AskedSale]
    """For each product in the order of opening."""
    contract: Contract = FLASHGRID
    """What the engine's answers mean."""
    declines: Callable[[str], bool] | None = None
    """Whether payment declines an order id; None where that is not known."""
    faults: Sequence[Recovery] = ()
    recover_s: float = 10.0
    """Longest time from a fault's end until the engine works as before."""
    overload: bool = False
    """Whether the scenario means to send more than the engine can answer."""
    alone: bool = True
    """Whether nobody else opens sales at the engine, or buys there."""
    elsewhere: bool = False
    """Whether the run did not start the engine: others may open sales there, or hand over its stores."""
    load_valid: bool = True
    timeout_ns: int = 5_000_000_000
    remembered_ns: int = round(REMEMBERED_S * 1e9)
    """How long an Idempotency-Key is remembered."""
    idle_ns: int = 0
    """Longest time without a settled order that the engine's settings allow, in a payment that is tried again
    and in waits for others."""
    started_us: int = 0
    """The zero of all times, Unix µs of this machine's clock."""
    clock_ns: int = 0
    """Most that the engine's clock may differ from this machine's."""
    read_ns: int = NEVER
    """When the stores had been read, after the run."""

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The sales as rows; `turn` counts those of a product from 0, and each is current from `from_ns`
        on, and until `to_ns`, for certain."""
        rows = [vars(sale) for sale in self.sales]
        frame = pd.DataFrame(rows, columns=list(AskedSale.__dataclass_fields__))
        frame = frame.astype(dict.fromkeys(["limit", "starts_ns", "ends_ns", "named"], "Int64"))
        frame = frame.astype(dict.fromkeys(["product_id", "stock", "quantity"], "int64"))
        products = frame.groupby("product_id")
        to_ns = products["asked_ns"].shift(-1, fill_value=NEVER)
        frame = frame.assign(turn=products.cumcount(), to_ns=to_ns)
        return frame.rename(columns={"opened_ns": "from_ns", "limit": "user_limit"})

    def match(self, sales: pd.DataFrame) -> pd.DataFrame:
        """Return the asked sales by the ids of the ledger's sales, which are matched to them by product and
        order of opening.

        A sale that the ledger lacks has a negative id and no `found`. One that nobody asked for has no
        `asked`: its stock is 0. Where others may open sales, those of other products are left out.
        """
        if not self.alone and self.contract == FLASHGRID:
            sales = sales[sales["product_id"].isin(self.frame["product_id"])]
        found = sales[["sale_id", "product_id", "sold"]].fillna(-1).astype("int64").sort_values("sale_id")
        found = found.assign(turn=found.groupby("product_id").cumcount(), found=True)
        both = self.frame.assign(asked=True).merge(found, on=["product_id", "turn"], how="outer")
        both = both.assign(
            asked=both["asked"].eq(True),
            found=both["found"].eq(True),
            stock=both["stock"].fillna(0),
            quantity=both["quantity"].fillna(1),
            sold=both["sold"].fillna(0),
            sale_id=both["sale_id"].fillna(pd.Series(-1.0 - np.arange(len(both)), both.index)),
        )
        whole = dict.fromkeys(["sale_id", "product_id", "stock", "quantity", "sold"], "int64")
        return both.astype(whole).sort_values("sale_id").set_index("sale_id")

    def is_excused(self, rows: pd.DataFrame, patient: bool = False) -> Flags:
        """Return for each request whether a fault, or the overload that the scenario means, may have
        kept it from its answer; `patient`: until the time is over in which the engine has to recover, since a
        part of it may take longer than the whole."""
        if self.overload:
            return np.ones(len(rows), np.bool_)
        start = rows["sent_ns"].fillna(rows["intended_ns"]).to_numpy("int64")
        end = rows["done_ns"].fillna(pd.Series(start + self.timeout_ns, rows.index)).to_numpy("int64")
        meets = np.zeros(len(rows), np.bool_)
        for fault in self.faults:
            back_s = self.recover_s if patient or fault.recovered_after_s is None else fault.recovered_after_s
            until_s = fault.end_s + min(back_s, self.recover_s) + GRACE_S
            if fault.failed:  # it may never have ended
                until_s = NEVER / 1e9
            meets |= (end >= fault.start_s * 1e9) & (start <= until_s * 1e9)
        return meets

    def is_slow(self, rows: pd.DataFrame, patient: bool = False) -> Flags:
        """Return for each request whether the engine, or the machine, may be slow for a reason."""
        return self.is_excused(rows, patient) if self.load_valid else np.ones(len(rows), np.bool_)


def read_asked(
    scenario: Scenario,
    *,
    started_us: int = 0,
    restocks: Sequence[Restocked] = (),
    faults: Sequence[Recovery] = (),
    target: str | None = None,
    contract: Contract | None = None,
    ended_ns: int = LONG_AGO,
    alone: bool = True,
    load_valid: bool = True,
    skew_s: float = 0.0,
    read_ns: int = NEVER,
) -> Asked:
    """Return what a run of the scenario asked of its engine, or of the one at `target`; `contract` is that of
    an engine other than Flashgrid. Of several front doors `target` names all.

    `restocks` are those that were done. One that was due a second before `ended_ns`, the end of the load, was
    asked for as well. `alone` says that the run sent nothing but the scenario's requests. `skew_s` is how far
    the clocks of the engine's services, and this machine's own in the course of the run, were seen to be off.
    `read_ns` is when the stores had been read.
    """
    known = contract is None and (target is None or "payment_decline_rate" in scenario.engine)
    urls = target.split(", ") if target else []
    here = all(_LOOPBACK.match(url) for url in urls)
    first = [
        AskedSale(
            product_id=sale.product_id,
            stock=sale.stock,
            quantity=sale.quantity,
            limit=sale.limit,
            starts_ns=None if sale.starts_in_s is None else round(sale.starts_in_s * 1e9),
            ends_ns=None if sale.ends_in_s is None else round(sale.ends_in_s * 1e9),
        )
        for sale in scenario.sales
    ]
    return Asked(
        sales=[*first, *_find_restocks(scenario, first, restocks, ended_ns)],
        contract=contract or FLASHGRID,
        declines=know_payments(scenario.engine) if known else None,
        faults=faults,
        recover_s=scenario.recover_s,
        overload=scenario.driver.may_give_up,
        alone=alone and target is None,
        elsewhere=target is not None,
        load_valid=load_valid,
        timeout_ns=scenario.driver.timeout_ms * 1_000_000,
        remembered_ns=round(float(scenario.engine.get("idempotency_s", REMEMBERED_S)) * 1e9),
        idle_ns=_find_idle(scenario.engine),
        started_us=started_us,
        clock_ns=(SAME_CLOCK_NS if here else OTHER_CLOCK_NS) + round(skew_s * 1e9),
        read_ns=read_ns,
    )


def _find_idle(engine: Mapping[str, str | int | float | bool]) -> int:
    """Return `Asked.idle_ns`: a payment may time out twice, and pauses come between."""
    timeout_ms = float(engine.get("payment_timeout_ms", PAYMENT_TIMEOUT_MS))
    waits = ("payment_latency_ms", "outbox_wait_ms", "fulfilment_wait_ms")
    waits_ms = sum(float(engine.get(name, 0)) for name in waits)
    return round((2 * timeout_ms + 3 * waits_ms + 1_000) * 1e6)


def _find_restocks(
    scenario: Scenario, first: Sequence[AskedSale], done: Sequence[Restocked], ended_ns: int
) -> list[AskedSale]:
    """Return the restocks that were asked for, each on the terms of its product's sale, without its hours."""
    planned = sorted(scenario.restocks, key=lambda restock: restock.at_s)
    terms = {sale.product_id: sale for sale in first}
    found = [
        _restock(restock, terms, did.at_s, did.opened_s, did.sale_id)
        for restock, did in zip(planned, done, strict=False)
    ]
    late = [restock for restock in planned[len(done) :] if restock.at_s * 1e9 + 1e9 <= ended_ns]
    return found + [_restock(restock, terms, restock.at_s, restock.at_s, None) for restock in late]


def _restock(
    restock: Restock, terms: Mapping[int, AskedSale], at_s: float, opened_s: float, named: int | None
) -> AskedSale:
    sale = terms[restock.product_id]
    return AskedSale(
        product_id=restock.product_id,
        stock=restock.stock,
        quantity=sale.quantity,
        limit=sale.limit,
        asked_ns=round(at_s * 1e9),
        opened_ns=round(opened_s * 1e9),
        named=named,
    )


def know_payments(engine: Mapping[str, str | int | float | bool]) -> Callable[[str], bool]:
    """Return the function that tells whether payment declines an order id, by the engine's settings.

    The simulated payment declines an order if the keyed hash of its id, as a number, is below the rate's
    share of 64 bits.
    """
    bound = int(float(engine.get("payment_decline_rate", 0)) * 2**64)
    key = str(int(engine.get("payment_seed", 0))).encode()

    def declines(order_id: str) -> bool:
        digest = blake2b(order_id.encode(), key=key, digest_size=8).digest()
        return int.from_bytes(digest, "big") < bound

    return declines
