"""Rules about the service itself: every request is answered, and whoever asks for a unit can buy."""

import pandas as pd

from simulation.judge.asked import GRACE_S
from simulation.judge.rules.evidence import (
    BUYER,
    LIVE,
    MOST,
    Breach,
    Evidence,
    Finding,
    Unknown,
    count_turned_away,
    find,
)
from simulation.model.contract import Contract


def no_server_errors(evidence: Evidence) -> Finding:
    """Every request, purchase or read, is answered in the words of the contract. A server error other
    than 503, an answer that can't be read, and one whose status says something else, are never right. A
    request without an answer in time, and a connection that is refused, are right only while a fault lasts or
    is recovered from, or under an overload that the scenario means."""
    asked, asks = evidence.asked, evidence.operations
    sent, unsent = asks[asks["sent_ns"].notna()], asks[asks["sent_ns"].isna() & asks["done_ns"].notna()]
    listed = [status for status in sent["status"].unique() if asked.contract.knows(status)]
    error = (sent["status"] >= 500) & (sent["status"] != 503) & ~sent["status"].isin(listed)
    answered = sent["done_ns"].notna()
    unread = ~error & answered & (sent["outcome"] == "UNKNOWN") & (sent["status"] < 500)
    strange = ~error & ~unread & answered & ~_fit(sent, asked.contract)
    took_ns = sent["done_ns"] - sent["sent_ns"] - 2 * sent["unsure_ns"]
    late = (took_ns > asked.timeout_ns + GRACE_S * 1e9).fillna(True)
    silent = late & ~sent["excused"]
    refused = unsent[~unsent["excused"]]
    detail = (
        f"{len(sent) + len(unsent):,} requests; for a reason without an answer:"
        f" {(late & sent['excused']).sum():,}"
    )
    found = find(
        detail,
        Breach(error.sum(), "server errors other than 503", "op", sent.loc[error, "op"]),
        Breach(unread.sum(), "answers that can't be read", "op", sent.loc[unread, "op"]),
        Breach(strange.sum(), "answers whose status says something else", "op", sent.loc[strange, "op"]),
        Breach(silent.sum(), "without an answer and without a reason", "op", sent.loc[silent, "op"]),
        Breach(len(refused), "connections refused without a reason", "op", refused["op"]),
        chances=len(sent) + len(unsent),
    )
    if found.violations and not (error | unread | strange).any() and not asked.load_valid:
        raise Unknown(f"{found.detail}; but the load was not as planned")
    return found


def _fit(answered: pd.DataFrame, contract: Contract) -> pd.Series:
    """Return for each answer whether its status may mean its outcome."""
    names = ["kind", "status", "outcome"]
    words = answered[names].drop_duplicates()
    fit = {tuple(row): contract.fits(*row) for row in words.itertuples(index=False)}
    return pd.Series(pd.MultiIndex.from_frame(answered[names]).map(fit), answered.index).astype("bool")


def the_sale_happened(evidence: Evidence) -> Finding:
    """A sale sells to those who ask, as far as its stock and its terms allow. No more than one in ten
    requests is turned away with 503, or left without an outcome, and no more than one in ten units that
    somebody asks for stays unsold, apart from faults and an overload that the scenario means. So it is
    with those who got an order: no more than one in ten of their answers leaves them without knowing it, and
    not all of them."""
    sales, sent = evidence.asked_sales, evidence.sent
    many, unheard = count_turned_away(sent), _count_unheard(evidence)

    wanting = sent[sent["outcome"].isin(["ACCEPTED", "SOLD_OUT", "UNAVAILABLE", "UNKNOWN"])]
    wanting = wanting.assign(sale_id=evidence.find_sale(wanting)).dropna(subset="sale_id")
    clients = wanting.drop_duplicates("first_op")["sale_id"].value_counts()
    sure = ~wanting["excused"]
    certain = wanting[sure | (wanting["outcome"] == "ACCEPTED")]
    # All requests under a key are one purchase, which its first try may have made.
    first_ns = certain[BUYER].join(evidence.first_tries, on=BUYER)["first_ns"]
    is_first = (certain["sent_ns"] == first_ns) & ~certain.duplicated(BUYER)
    certain = certain[(certain["key"] == "") | is_first]
    wanted = certain.drop_duplicates("first_op")["sale_id"].value_counts().reindex(sales.index, fill_value=0)
    most = sales["stock"] // sales["quantity"]
    sold = sales[[*LIVE, "FAILED"]].sum(axis=1) // sales["quantity"]
    expected = wanted.clip(upper=most)
    short = (expected - sold).where(sold < (1 - MOST) * expected, 0).clip(lower=0)
    tried = clients.reindex(sales.index, fill_value=0).clip(upper=most) > 0
    found = find(
        f"{sold.sum():,} purchases of {expected.sum():,} that were possible, in {tried.sum():,} sales",
        Breach(many, "requests turned away without a reason"),
        Breach(unheard, "answers to buyers who got an order did not say so"),
        Breach(short.sum(), "of them did not happen", "sale", short.index[short > 0]),
        chances=(tried & sales.index.isin(wanting.loc[sure, "sale_id"])).sum(),
    )
    if (many or unheard) and not short.any() and not evidence.asked.load_valid:
        raise Unknown(f"{found.detail}; but the load was not as planned")
    if not found.violations and tried.any() and not sold[tried].any():
        raise Unknown(
            f"{clients.sum():,} buyers came, nothing was sold, and faults or overload may be the reason"
        )
    return found


def _count_unheard(evidence: Evidence) -> int:
    """Return how many requests whose buyer got an order have no known outcome, for no reason; 0 if those are
    no more than MOST of the requests that got one, or these are few, and some were told."""
    won = evidence.sent[~evidence.sent["excused"] & evidence.sent["outcome"].isin(["ACCEPTED", "UNKNOWN"])]
    placed = pd.MultiIndex.from_frame(evidence.orders[BUYER])
    unheard = won["outcome"].eq("UNKNOWN") & pd.MultiIndex.from_frame(won[BUYER]).isin(placed)
    got = won[unheard | won["outcome"].eq("ACCEPTED")]
    none_told = evidence.accepted.empty
    return count_turned_away(got) or int(none_told * unheard.sum())
