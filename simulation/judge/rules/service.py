"""Rules about the service itself: every request is answered, and whoever asks for a unit can buy."""

from typing import Final

from simulation.judge.rules.evidence import LIVE, Breach, Evidence, Finding, Unknown, find

MOST: Final = 0.1
"""Largest share of the requests that may be turned away, and of the units that may stay unsold, without
a reason."""


def no_server_errors(evidence: Evidence) -> Finding:
    """Every request is answered in the words of the contract. A server error other than 503, and an
    answer that can't be read, are never right. A request without an answer, and a connection that is
    refused, are right only while a fault lasts or is recovered from, or under an overload that the
    scenario means."""
    sent, asked = evidence.sent, evidence.asked
    error = (sent["status"] >= 500) & (sent["status"] != 503)
    unread = ~error & sent["done_ns"].notna() & (sent["outcome"] == "UNKNOWN") & (sent["status"] != 503)
    silent = sent["done_ns"].isna() & ~sent["excused"]
    unsent = evidence.history[evidence.history["sent_ns"].isna() & evidence.history["done_ns"].notna()]
    refused = unsent[~asked.is_excused(unsent)]
    found = find(
        f"{len(sent) + len(unsent):,} requests; for a reason without an answer:"
        f" {(sent['done_ns'].isna() & sent['excused']).sum():,}",
        Breach(error.sum(), "server errors other than 503", "op", sent.loc[error, "op"]),
        Breach(unread.sum(), "answers that can't be read", "op", sent.loc[unread, "op"]),
        Breach(silent.sum(), "without an answer and without a reason", "op", sent.loc[silent, "op"]),
        Breach(len(refused), "connections refused without a reason", "op", refused["op"]),
        chances=len(sent) + len(unsent),
    )
    if found.violations and not error.any() and not unread.any() and not asked.load_valid:
        raise Unknown(f"{found.detail}; but the load was not as planned")
    return found


def the_sale_happened(evidence: Evidence) -> Finding:
    """A sale sells to those who ask, as far as its stock and its terms allow. No more than one in ten
    requests is turned away with 503, or left without an outcome, and no more than one in ten units that
    somebody asks for stays unsold, apart from faults and an overload that the scenario means."""
    sales, sent = evidence.asked_sales, evidence.sent
    judged = sent[~sent["excused"]]
    away = judged[judged["outcome"].isin(["UNAVAILABLE", "UNKNOWN"])]
    many = len(away) if len(away) > MOST * len(judged) else 0

    wanting = sent[sent["outcome"].isin(["ACCEPTED", "SOLD_OUT", "UNAVAILABLE", "UNKNOWN"])]
    wanting = wanting.assign(sale_id=evidence.find_sale(wanting)).dropna(subset="sale_id")
    clients = wanting.drop_duplicates("first_op")["sale_id"].value_counts()
    certain = wanting[~wanting["excused"] | (wanting["outcome"] == "ACCEPTED")]
    wanted = certain.drop_duplicates("first_op")["sale_id"].value_counts().reindex(sales.index, fill_value=0)
    most = sales["stock"] // sales["quantity"]
    sold = sales[[*LIVE, "FAILED"]].sum(axis=1) // sales["quantity"]
    expected = wanted.clip(upper=most)
    short = (expected - sold).where(sold < (1 - MOST) * expected, 0).clip(lower=0)
    tried = clients.reindex(sales.index, fill_value=0).clip(upper=most) > 0
    found = find(
        f"{sold.sum():,} purchases of {expected.sum():,} that were possible, in {tried.sum():,} sales",
        Breach(many, "requests turned away without a reason", "op", away["op"]),
        Breach(short.sum(), "of them did not happen", "sale", short.index[short > 0]),
        chances=tried.sum(),
    )
    if many and not short.any() and not evidence.asked.load_valid:
        raise Unknown(f"{found.detail}; but the load was not as planned")
    if not found.violations and tried.any() and not sold[tried].any():
        raise Unknown(
            f"{clients.sum():,} buyers came, nothing was sold, and faults or overload may be the reason"
        )
    return found
