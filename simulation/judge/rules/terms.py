"""Rules about what was asked: every sale is opened on its terms, keeps its hours, and sells."""

import pandas as pd

from simulation.judge.rules.evidence import Breach, Evidence, Finding, Unknown, find, read
from simulation.model.contract import FLASHGRID

_TERMS = ("stock", "quantity", "user_limit")
_HOURS = ("starts", "ends")


def terms_are_as_asked(evidence: Evidence) -> Finding:
    """The stores hold every sale as it was asked for: its stock, its limit for each user, the units of a
    purchase, its start and its end. There is no sale too many and none too few, and every order takes the
    quantity of its sale. At an engine that the run did not start, sales of other products may be somebody
    else's."""
    asked, state, sales = evidence.asked, evidence.state, evidence.sales
    ours = asked.contract == FLASHGRID and not state.partial
    held = read(state.sales, "ledger").set_index("sale_id")
    ledger = sales.join(held.rename(columns={name: f"{name}_held" for name in sales.columns}))
    compared = ledger[ledger["asked"] & ledger["found"]]
    missing, unasked = ledger[ledger["asked"] & ~ledger["found"]], ledger[~ledger["asked"]]
    misnamed = compared[compared["named"].notna() & (compared["named"] != compared.index)]
    scale = {f"{name}_us": (1_000, asked.started_us) for name in _HOURS}
    breaches = _compare(compared, "in the ledger", scale, asked.clock_ns)

    orders = evidence.orders.assign(quantity_asked=evidence.orders["sale_id"].map(sales["quantity"]))
    other = orders[(orders["quantity"] != orders["quantity_asked"]) & orders["quantity_asked"].notna()]

    strange = _find_strange(evidence, compared)["product_id"].tolist() if ours else []
    gate = state.gate
    if gate is not None:
        gate = gate[gate["product_id"].isin(sales["product_id"])]
        twice = gate[gate["product_id"].duplicated()]
        breaches.append(Breach(len(twice), "are for sale twice", "product", twice["product_id"]))
        latest = sales[sales["asked"]].drop_duplicates("product_id", keep="last").reset_index()
        current = latest.merge(gate.drop_duplicates("product_id"), on="product_id", suffixes=("", "_held"))
        scale = {f"{name}_ms": (1_000_000, asked.started_us // 1_000) for name in _HOURS}
        breaches += _compare(current.set_index("sale_id"), "where they are sold", scale, asked.clock_ns)
    found = find(
        f"{len(compared):,} sales compared",
        Breach(len(missing), "were asked for and never opened", "product", missing["product_id"]),
        Breach(len(unasked), "were opened and never asked for", "sale", unasked.index),
        Breach(len(misnamed), "are not the one that the engine named", "sale", misnamed.index),
        *breaches,
        Breach(len(strange) * asked.alone, "are for sale and were never asked for", "product", strange),
        Breach(len(other), "orders take another quantity", "order", other["order_id"]),
        chances=len(sales),
    )
    if gate is None and "gate" not in state.without and not found.violations:
        raise Unknown("what is for sale could not be read")
    if len(strange) and asked.elsewhere and not found.violations:
        raise Unknown(f"{len(strange):,} other products were put on sale, and nobody knows by whom")
    stores = {"ledger": (state.sales, "us"), "gate": (state.gate, "ms")} if ours else {}
    for place, (store, unit) in stores.items():
        lacking = [] if store is None else _find_lacking(evidence.asked_sales, store, unit)
        if lacking and not found.violations:
            raise Unknown(f"the {place} does not show {', '.join(lacking)}")
    return found


def _find_strange(evidence: Evidence, compared: pd.DataFrame) -> pd.DataFrame:
    """Return the sales, in the ledger or where they are sold, of products that nobody asked for, and that may
    have been opened since the run's first one was."""
    stores = [store for store in (evidence.state.sales, evidence.state.gate) if store is not None]
    sales = pd.concat([store[["product_id", "sale_id"]] for store in stores])
    strange = sales[~sales["product_id"].isin(evidence.asked.frame["product_id"])]
    # What was on sale before the run has a smaller number.
    return strange[~strange["sale_id"].between(1, compared.index.min() - 1)].drop_duplicates("product_id")


def _find_lacking(asked: pd.DataFrame, store: pd.DataFrame, unit: str) -> list[str]:
    """Return the columns that a store lacks, of those that tell of a term that was asked for."""
    terms = {name: asked[name].notna() for name in _TERMS}
    terms |= {f"{name}_{unit}": asked[f"{name}_ns"].notna() for name in _HOURS}
    terms["quantity"] &= asked["quantity"] != 1
    return [name for name, wanted in terms.items() if wanted.any() and name not in store]


def _compare(
    sales: pd.DataFrame, place: str, hours: dict[str, tuple[int, int]], slack_ns: int
) -> list[Breach]:
    """Return the breach for each term that is held otherwise than asked at a place.

    `hours` are the store's columns of times, each with the ns of its unit and the run's start in that unit.
    """
    breaches = []
    for term in _TERMS:
        held = f"{term}_held"
        if held in sales:
            both = sales[[term, held]].astype("Int64").fillna(-1)
            wrong = sales.index[both[term] != both[held]]
            breaches.append(
                Breach(len(wrong), f"have another {term.replace('_', ' ')} {place}", "sale", wrong)
            )
    for column, (unit_ns, start) in hours.items():
        if column in sales:
            held_ns = (sales[column] - start).astype("Int64") * unit_ns
            wanted_ns = sales[f"{column.partition('_')[0]}_ns"].astype("Int64")
            off = (held_ns - wanted_ns).abs() > slack_ns + unit_ns
            wrong = sales.index[(held_ns.isna() != wanted_ns.isna()) | off.fillna(False)]
            breaches.append(
                Breach(len(wrong), f"have another {column.partition('_')[0][:-1]} {place}", "sale", wrong)
            )
    return breaches


def sales_keep_their_hours(evidence: Evidence) -> Finding:
    """A sale keeps the hours that were asked for: nothing is accepted before its start or after its end,
    neither by the times of the answers nor by the engine's clock, and nobody is told SOLD_OUT before its
    start."""
    sales, slack_ns = evidence.asked_sales, evidence.asked.clock_ns
    timed = sales[sales["starts_ns"].notna() | sales["ends_ns"].notna()]
    starts_ns, ends_ns = (timed[name].astype("float64") for name in ("starts_ns", "ends_ns"))
    sent = evidence.sent[evidence.sent["product_id"].isin(timed["product_id"])]
    sale = evidence.find_sale(sent)
    begins, finishes = sale.map(starts_ns), sale.map(ends_ns)
    out_of_hours = (sent["sent_ns"].astype("float64") < begins) | (
        sent["done_ns"].astype("float64") > finishes
    )
    unopened = sent["done_ns"].astype("float64") < begins - slack_ns
    eager = sent[unopened & sent["outcome"].isin(["ACCEPTED", "SOLD_OUT"])]
    first_ns = evidence.bought["first_ns"].astype("float64")
    tardy = evidence.bought[first_ns > evidence.bought["sale_id"].map(ends_ns) + slack_ns]
    orders = evidence.orders
    accepted_ns, mine = orders["accepted_ns"], orders["sale_id"]
    early = orders[accepted_ns < mine.map(starts_ns) - slack_ns]
    late = orders[accepted_ns >= mine.map(ends_ns) + max(slack_ns, 1)]
    return find(
        f"{out_of_hours.sum():,} requests out of hours",
        Breach(len(eager), "were sold to, or told SOLD_OUT, before the start", "op", eager["op"]),
        Breach(len(tardy), "were accepted after the end", "op", tardy["op"]),
        Breach(len(early), "orders were accepted before the start", "order", early["order_id"]),
        Breach(len(late), "orders were accepted after the end", "order", late["order_id"]),
        chances=out_of_hours.sum(),
    )
