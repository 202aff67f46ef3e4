"""The rule about reads: what clients are shown of their orders and of the stock."""

import pandas as pd

from simulation.judge.asked import LONG_AGO, NEVER, PROMPT_NS
from simulation.judge.rules.evidence import FEW, Breach, Evidence, Finding, find
from simulation.judge.rules.service import count_turned_away, count_worst, find_away, find_outage, is_beside
from simulation.model.outcome import TERMINAL


def reads_are_true(evidence: Evidence) -> Finding:
    """What clients are shown is true. An accepted order is never denied, also after a loss of Redis' memory,
    nor always turned away while all others are shown; its status never changes once it is final, and that
    status is the ledger's, not before the ledger settled it, and a second after that at the latest. A stock
    is never negative, it adds up to what was asked for, and no unit is missing from it before a purchase can
    have taken that unit: every accepted purchase and every unknown outcome counts from the moment at which it
    was sent. A second after a purchase was accepted its unit is missing, until its payment can have failed.
    No read is called invalid, no more than one in ten of all is turned away without a reason, and never most
    at one place."""
    reads = evidence.reads
    if reads is None or reads.empty:
        return Finding(0, "no reads", 0)
    asked = evidence.asked
    beside = is_beside(find_outage(evidence), reads)
    reads = reads.assign(excused=asked.is_slow(reads), recovering=asked.is_slow(reads, patient=True) | beside)
    orders, stocks = (reads[reads["kind"] == kind] for kind in ("order", "stock"))
    judged = f"{len(orders):,} reads of orders and {len(stocks):,} of stock judged"
    said = [*_judge_answers(orders, stocks), *_judge_statuses(orders, evidence), *_judge_sums(stocks)]
    # Where these are broken, nothing more has to be known.
    if not any(breach.times for breach in said):
        said = [*_compare_with_ledger(orders, evidence), *_compare_with_sales(stocks, evidence)]
    return find(judged, *said, chances=len(reads))


def _judge_answers(*kinds: pd.DataFrame) -> list[Breach]:
    """Judge whether reads were answered at all, each kind by itself."""
    invalid = pd.concat([reads.loc[reads["outcome"] == "INVALID", "op"] for reads in kinds])
    return [
        Breach(len(invalid), "valid reads were called invalid", "op", invalid),
        *(Breach(count_turned_away(reads), "reads of a kind were turned away") for reads in kinds),
        *(
            Breach(
                count_worst(reads.assign(excused=reads["recovering"])),
                "reads of a kind were turned away together",
            )
            for reads in kinds
        ),
    ]


def _judge_statuses(orders: pd.DataFrame, evidence: Evidence) -> list[Breach]:
    """Judge what reads said of orders by what clients heard before."""
    ids, status = orders["order_id"], orders["order_status"]
    accepted_ns = ids.map(evidence.accepted.groupby("order_id")["done_ns"].min())
    denied = (orders["outcome"] == "NOT_FOUND") & (orders["sent_ns"] > accepted_ns).fillna(False)
    is_final = status.isin(TERMINAL)
    final_ns = ids.map(orders[is_final].groupby("order_id")["done_ns"].min())
    back = (status == "PENDING") & (orders["sent_ns"] > final_ns).fillna(False)
    statuses = orders[is_final].drop_duplicates(["order_id", "order_status"])
    changed = statuses.loc[statuses["order_id"].duplicated(), "order_id"]
    strange = status.notna() & ~is_final & (status != "PENDING")
    hidden = _find_hidden(orders)
    return [
        Breach(denied.sum(), "answers denied an accepted order", "order", ids[denied]),
        Breach(len(hidden), "accepted orders were never shown while others were", "order", hidden),
        Breach(back.sum(), "statuses went back to PENDING", "order", ids[back]),
        Breach(len(changed), "final statuses changed", "order", changed),
        Breach(strange.sum(), "statuses are none of the contract's", "order", ids[strange]),
    ]


def _find_hidden(orders: pd.DataFrame) -> list[str]:
    """Return the orders of which several reads were turned away, and none answered, while all those of others
    were answered, from PROMPT_NS before until PROMPT_NS after."""
    judged = orders[orders["sent_ns"].notna()].assign(excused=orders["recovering"])
    away = find_away(judged).groupby(judged["order_id"]).agg(["all", "size"])
    never = away.index[away["all"] & (away["size"] > 2)]
    others = judged[~judged["order_id"].isin(never)]
    answered, sent_ns = ~find_away(others), others["sent_ns"]
    found = []
    for order_id, sent in judged[judged["order_id"].isin(never)].groupby("order_id")["sent_ns"]:
        beside = answered[sent_ns.between(sent.min() - PROMPT_NS, sent.max() + PROMPT_NS)]
        if len(beside) >= FEW and beside.all():
            found.append(str(order_id))
    return found


def _judge_sums(stocks: pd.DataFrame) -> list[Breach]:
    """Judge what reads said of stock by itself."""
    negative = (stocks[["remaining", "sold", "initial"]] < 0).any(axis=1).fillna(False)
    apart = (stocks["sold"] + stocks["remaining"] != stocks["initial"]).fillna(False)
    return [
        Breach(negative.sum(), "stocks are negative", "op", stocks.loc[negative, "op"]),
        Breach(apart.sum(), "stocks don't add up", "op", stocks.loc[apart, "op"]),
    ]


def _compare_with_ledger(orders: pd.DataFrame, evidence: Evidence) -> list[Breach]:
    final = orders[orders["order_status"].isin(TERMINAL)]
    ledger = evidence.orders.drop_duplicates("order_id").set_index("order_id")
    wrong = final.loc[final["order_status"] != final["order_id"].map(ledger["status"]), "order_id"]
    waiting = orders[(orders["order_status"] == "PENDING") & ~orders["excused"]]
    shown_ns = waiting["order_id"].map(ledger["settled_ns"]).astype("float64") + evidence.asked.clock_ns
    stale = waiting.loc[waiting["sent_ns"].astype("float64") > shown_ns + PROMPT_NS, "order_id"]
    settled_ns = final["order_id"].map(ledger["settled_ns"]).astype("float64")
    slack_ns = evidence.asked.clock_ns + 1_000_000
    early = final.loc[final["done_ns"].astype("float64") < settled_ns - slack_ns, "order_id"]
    return [
        Breach(len(early), "statuses were final before the order was settled", "order", early),
        Breach(len(wrong), "final statuses are not the ledger's", "order", wrong),
        Breach(len(stale), "statuses were PENDING long after the order was settled", "order", stale),
    ]


def _compare_with_sales(stocks: pd.DataFrame, evidence: Evidence) -> list[Breach]:
    """Judge what reads said of stock by the sales that may have been the current one."""
    sales = _list_sales(evidence)
    bought = evidence.bought
    missing = (stocks["outcome"] == "NOT_FOUND") & stocks["product_id"].isin(sales["product_id"])
    shown = stocks[(stocks["outcome"] == "SHOWN") & stocks["product_id"].isin(sales["product_id"])]
    names = ["op", "product_id", "sent_ns", "done_ns", "initial", "remaining", "excused"]
    pairs = shown[names].merge(sales, on="product_id")
    pairs = pairs[(pairs["done_ns"] >= pairs["first_ns"]) & (pairs["sent_ns"] <= pairs["last_ns"])]
    fitting = pairs[(pairs["initial"] == pairs["stock"]).fillna(True)].reset_index(drop=True)
    back = _count_until(fitting, fitting["sent_ns"], bought, "returned_ns", by="sale_id")
    least = fitting["stock"] - fitting["quantity"] * (_count_takers(fitting, evidence) - back)
    gone = _count_until(fitting, fitting["sent_ns"] - PROMPT_NS, bought, "done_ns", by="sale_id")
    # What was settled by then may have been given back.
    free = evidence.orders[evidence.orders["status"] == "FAILED"]
    free = free.assign(free_ns=evidence.find_free(free).astype("float64").fillna(LONG_AGO))
    freed = _count_until(fitting, fitting["done_ns"], free, "free_ns", by="sale_id")
    most = fitting["stock"] - fitting["quantity"] * (gone - freed)
    enough = fitting.loc[fitting["remaining"] >= least, "op"]
    few = fitting.loc[(fitting["remaining"] <= most) | fitting["excused"], "op"]
    strange = shown.loc[~shown["op"].isin(fitting["op"]), "op"]
    short = shown.loc[shown["op"].isin(fitting["op"]) & ~shown["op"].isin(enough), "op"]
    stale = shown.loc[shown["op"].isin(fitting["op"]) & ~shown["op"].isin(few), "op"]
    return [
        Breach(missing.sum(), "products on sale were denied", "op", stocks.loc[missing, "op"]),
        Breach(len(strange), "stocks are not what was asked for", "op", strange),
        Breach(len(short), "stocks lack units that nobody can have taken", "op", short),
        Breach(len(stale), "stocks show units that were sold long before", "op", stale),
    ]


def _list_sales(evidence: Evidence) -> pd.DataFrame:
    """Return for each sale sale_id, product_id, stock and quantity, and when it may have been the current one
    for the first time, and for the last time, in ns."""
    sales = evidence.asked_sales.reset_index().sort_values("turn")
    last_ns = sales.groupby("product_id")["from_ns"].shift(-1, fill_value=NEVER)
    times = {"first_ns": sales["asked_ns"], "last_ns": last_ns}
    names = ["sale_id", "product_id", "stock", "quantity"]
    found: pd.DataFrame = sales[names].assign(**times).astype("int64")
    return found


def _count_takers(pairs: pd.DataFrame, evidence: Evidence) -> "pd.Series[int]":
    """Return for each pair of a read and a sale the purchases that may have held units of the sale when the
    read was answered."""
    takers, held = evidence.takers, evidence.held
    return (
        _count_until(pairs, pairs["done_ns"], takers, "sent_ns")
        - _count_until(pairs, pairs["first_ns"] - 1, takers, "end_ns")
        + _count_until(pairs, pairs["done_ns"], held, "sent_ns")
        - _count_until(pairs, pairs["sent_ns"] - 1, held, "done_ns")
    )


def _count_until(
    pairs: pd.DataFrame,
    moments_ns: "pd.Series[int]",
    requests: pd.DataFrame,
    name: str,
    by: str = "product_id",
) -> "pd.Series[int]":
    """Return for each pair how many requests for its product, or its sale, had their time `name` by its
    moment."""
    events = requests[[by, name]].dropna().astype("int64").sort_values(name)
    events["count"] = events.groupby(by).cumcount() + 1
    asked = pairs[[by]].assign(moment_ns=moments_ns.astype("int64"), row=pairs.index)
    found = pd.merge_asof(asked.sort_values("moment_ns"), events, left_on="moment_ns", right_on=name, by=by)
    return found.set_index("row")["count"].reindex(pairs.index).fillna(0).astype("int64")
