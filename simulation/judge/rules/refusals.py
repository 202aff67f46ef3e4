"""Rules about refusals: nobody is refused without a reason, and every reason is a true one."""

import numpy as np
import pandas as pd

from simulation.judge.asked import PROMPT_NS
from simulation.judge.rules.evidence import BUYER, Breach, Evidence, Finding, find
from simulation.model.outcome import REFUSALS


def sold_out_means_sold_out(evidence: Evidence) -> Finding:
    """Nobody is told SOLD_OUT while units are left. No purchase that begins after such an answer is
    accepted by the same sale, unless units that came back from declined payments explain it. And when
    the answer is given, the purchases that had begun could have taken the whole stock that was asked
    for, without those whose units had come back by then, and so could those that had begun since a read
    showed the stock. If a product was restocked, each of its sales is judged by the answers that are
    certainly its own."""
    sales = evidence.asked_sales
    answers = evidence.answered("SOLD_OUT")
    answers = answers.assign(sale_id=evidence.find_sale(answers)).dropna(subset=["sale_id", "done_ns"])
    answers = answers[["op", "sale_id", "product_id", "intended_ns", "sent_ns", "done_ns"]].astype("int64")
    # A gate that has lost its memory may not know yet what came back, nor what it showed.
    sure = ~evidence.asked.is_slow(answers)
    bought = evidence.bought[["product_id", "sale_id", "first_ns", "returned_ns"]]
    sale = answers["sale_id"]
    quantity = sale.map(sales["quantity"])

    later = _count(answers, bought.dropna(subset="sale_id"), "sale_id", later=True)
    # Less than one purchase's quantity was left, and all that was ever released may have come back later.
    explained = sale.map(sales["quantity"] - 1 + sales["FAILED"])
    wrong = later * quantity > explained

    # A purchase that nobody can place, or whose outcome is unknown, may have been any sale's.
    begun = _count(answers, bought.dropna(subset="sale_id"), "sale_id")
    begun += _count(answers, bought[bought["sale_id"].isna()], "product_id")
    begun += _count(answers, _find_unknown(evidence), "product_id")
    back = bought.dropna(subset=["sale_id", "returned_ns"])
    begun -= _count(answers, back, "sale_id", of="returned_ns", at="sent_ns") * sure
    early = ~wrong & (begun * quantity <= sale.map(sales["stock"]) - quantity)
    early |= ~wrong & sure & _shown_otherwise(answers, evidence)
    return find(
        f"{len(answers):,} SOLD_OUT answers judged",
        Breach(wrong.sum(), "came while units were left", "op", answers.loc[wrong, "op"]),
        Breach(early.sum(), "came while so many units could not be gone", "op", answers.loc[early, "op"]),
        chances=len(answers),
    )


def _shown_otherwise(answers: pd.DataFrame, evidence: Evidence) -> pd.Series:
    """Return for each answer whether reads of the stock show that it can't have been gone until then.

    From a read until the end of the next one, no more can have been gone than the read showed, and what the
    purchases took that were under way in between, or up to PROMPT_NS before. So it was before the first read,
    and after the last one.
    """
    wrong = pd.Series(False, answers.index)
    reads = evidence.operations[evidence.operations["outcome"] == "SHOWN"]
    reads = reads[reads["remaining"].notna() & ~reads["excused"]].sort_values("sent_ns")
    reads = reads.assign(sale_id=evidence.find_sale(reads))
    takers = pd.concat([evidence.takers, evidence.held.assign(end_ns=evidence.held["done_ns"])])
    for sale_id, seen in reads.groupby("sale_id"):
        sale, mine = evidence.asked_sales.loc[sale_id], answers[answers["sale_id"] == sale_id]
        taking = takers[takers["product_id"] == sale["product_id"]]
        began, ended = (np.sort(taking[name].dropna().to_numpy("int64")) for name in ("sent_ns", "end_ns"))
        # The moment of the opening is like a read that shows the whole stock.
        sent_ns = np.append(sale["asked_ns"], seen["sent_ns"].to_numpy("int64"))
        gone = np.append(0, (sale["stock"] - seen["remaining"]).to_numpy("int64"))
        # What a read shows may be as old as that.
        before = np.searchsorted(ended, np.append(sale["asked_ns"], sent_ns[1:] - PROMPT_NS))
        until = np.searchsorted(began, seen["done_ns"].to_numpy("int64"), side="right")
        most = np.maximum.accumulate(gone[:-1] + sale["quantity"] * (until - before[:-1]))
        last = np.searchsorted(sent_ns, mine["done_ns"], side="right") - 1
        since = np.searchsorted(began, mine["done_ns"], side="right") - before[last]
        bound = np.maximum(gone[last] + sale["quantity"] * since, np.append(0, most)[last])
        wrong[mine.index] = bound <= sale["stock"] - sale["quantity"]
    return wrong


def _find_unknown(evidence: Evidence) -> pd.DataFrame:
    """Return product_id and first_ns of each purchase of unknown outcome: one for each key, and each
    request without."""
    unknown = evidence.unknown
    keyed = unknown["key"] != ""
    once = unknown[~keyed | ~unknown.sort_values("sent_ns").duplicated(BUYER).sort_index()]
    known = pd.MultiIndex.from_frame(evidence.bought.loc[evidence.bought["key"] != "", BUYER])
    once = once[~pd.MultiIndex.from_frame(once[BUYER]).isin(known)]
    return once.rename(columns={"sent_ns": "first_ns"})


def _count(
    answers: pd.DataFrame,
    purchases: pd.DataFrame,
    by: str,
    *,
    of: str = "first_ns",
    at: str = "done_ns",
    later: bool = False,
) -> pd.Series:
    """Return for each answer the purchases of the same sale or product that began (`of`) before it was
    given (`at`), or `later`."""
    counts = pd.Series(0, answers.index)
    begun = {key: np.sort(group.to_numpy("int64")) for key, group in purchases.groupby(by)[of]}
    for key, group in answers.groupby(by)[at]:
        starts = begun.get(key, np.empty(0, np.int64))
        if later:
            counts[group.index] = len(starts) - np.searchsorted(starts, group.to_numpy(), side="right")
        else:
            counts[group.index] = np.searchsorted(starts, group.to_numpy(), side="right")
    return counts


def refusals_are_true(evidence: Evidence) -> Finding:
    """Every other refusal is true, by the terms that were asked for and the time of the answer.
    LIMIT_REACHED goes only to a buyer who may have reached the sale's limit by then, without purchases whose
    payment was declined before; NOT_STARTED comes
    only before the sale's start, and never after a purchase of that sale; SALE_ENDED comes only after
    its end; UNKNOWN_PRODUCT never occurs for a product on sale; INVALID never occurs, because every
    request is valid. And whoever is refused, with 503 as well, has bought nothing: no order was accepted
    under a key while all requests that had been sent under it were refused."""
    sales, slack_ns = evidence.asked_sales, evidence.asked.clock_ns
    refused = evidence.history[evidence.history["outcome"].isin(REFUSALS)]
    sale = evidence.find_sale(refused)
    starts_ns, ends_ns = (_hours(refused, sale, sales, term) for term in ("starts_ns", "ends_ns"))
    sent_ns, done_ns = (refused[name].astype("float64") for name in ("sent_ns", "done_ns"))
    opened_ns = evidence.bought.groupby("sale_id")["done_ns"].min().astype("float64")
    true = {
        "LIMIT_REACHED": _may_have_reached(evidence, refused, sale),
        "NOT_STARTED": (sent_ns <= starts_ns + slack_ns) & ~(sent_ns > sale.map(opened_ns)),
        "SALE_ENDED": done_ns >= ends_ns - slack_ns,
        "UNKNOWN_PRODUCT": ~refused["product_id"].isin(sales["product_id"]),
        "INVALID": pd.Series(False, refused.index),
    }
    wrong = {word: refused.loc[(refused["outcome"] == word) & ~fits, "op"] for word, fits in true.items()}
    denied, keyed = _find_denied(evidence), (evidence.held["key"] != "").sum()
    return find(
        f"{len(refused):,} refusals other than SOLD_OUT"
        + (f", {keyed:,} × 503 under a key" if keyed else ""),
        *(Breach(len(ops), f"{word} that is not true", "op", ops) for word, ops in wrong.items()),
        Breach(len(denied), "orders were accepted of purchases that were refused", "order", denied),
        chances=len(refused) + keyed,
    )


def _find_denied(evidence: Evidence) -> pd.Series:
    """Return the ids of the orders that can only be of requests that were refused."""
    if "idempotency_key" in evidence.unseen:
        return evidence.orders["order_id"].iloc[:0]  # which request placed an order is a guess
    orders = evidence.orders[["order_id", "accepted_ns", *BUYER]]
    sent = evidence.sent[[*BUYER, "sent_ns", "result"]]
    refused = sent[(sent["key"] != "") & (sent["result"] == "fail")].drop_duplicates(BUYER)
    orders = orders[orders["key"] != ""].merge(refused[BUYER], on=BUYER)
    tries = orders.merge(sent, on=BUYER)
    slack_ns = evidence.asked.clock_ns + 1_000_000
    before = tries[tries["sent_ns"].astype("float64") <= tries["accepted_ns"] + slack_ns]
    all_refused = (before["result"] == "fail").groupby(before["order_id"]).all()
    return all_refused.index[all_refused].to_series()


def _hours(refused: pd.DataFrame, sale: pd.Series, sales: pd.DataFrame, term: str) -> pd.Series:
    """Return the start or the end of each request's sale; if several sales may have refused it, that of
    any."""
    hours = sales[term].astype("float64")
    any_of = hours.groupby(sales["product_id"]).agg("max" if term == "starts_ns" else "min")
    return sale.map(hours).where(sale.notna(), refused["product_id"].map(any_of))


def _may_have_reached(evidence: Evidence, refused: pd.DataFrame, sale: pd.Series) -> pd.Series:
    """Return for each request told LIMIT_REACHED whether its buyer may have had as many units by then."""
    sales = evidence.asked_sales
    limited = refused[refused["outcome"] == "LIMIT_REACHED"]
    bought = evidence.bought[["user_id", "product_id", "sale_id", "first_ns", "returned_ns"]]
    tries = pd.concat([bought, _find_unknown(evidence).reindex(columns=bought.columns)], ignore_index=True)
    pairs = limited[["op", "user_id", "product_id", "sent_ns", "done_ns"]].assign(
        sale_id=sale[limited.index], slow=evidence.asked.is_slow(limited)
    )
    pairs = pairs.merge(tries, on=["user_id", "product_id"], suffixes=("", "_bought"))
    same = (
        pairs["sale_id"].isna()
        | pairs["sale_id_bought"].isna()
        | (pairs["sale_id"] == pairs["sale_id_bought"])
    )
    before = (pairs["first_ns"] <= pairs["done_ns"]).fillna(True).astype(bool)
    back = (pairs["returned_ns"] < pairs["sent_ns"].astype("float64")).fillna(False)
    counts = limited["op"].map(pairs[same & before & ~(back & ~pairs["slow"])].groupby("op").size()).fillna(0)
    terms = sales.dropna(subset="user_limit").astype({"user_limit": "float64"})
    least = terms.groupby("product_id")[["user_limit", "quantity"]].min()
    limits = pd.DataFrame(
        {
            name: sale[limited.index]
            .map(terms[name])
            .where(sale[limited.index].notna(), limited["product_id"].map(least[name]))
            for name in ("user_limit", "quantity")
        }
    )
    reached = (counts + 1) * limits["quantity"] > limits["user_limit"]
    return reached.reindex(refused.index, fill_value=False)
