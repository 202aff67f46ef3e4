"""Rules about the service itself: every request is answered, and whoever asks for a unit can buy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd

from simulation.judge.asked import GRACE_S
from simulation.judge.rules.evidence import (
    BUYER,
    FEW,
    LIVE,
    MOST,
    Breach,
    Evidence,
    Finding,
    Unknown,
    find,
)
from simulation.model.contract import Contract
from simulation.model.events import Recovery

AWAY: Final = ["UNAVAILABLE", "UNKNOWN"]
"""Outcomes that leave a client without what it asked for, and without a decision."""
BESIDE: Final = 50
"""Requests that are compared with each other, since they were sent one after another."""
CHANCE: Final = 1e-9
"""How seldom a right engine may be called wrong by a rule that counts on chance."""
_STAKES: Final = (0.1, 0.5, 1.0)
MOMENT_NS: Final = 250_000_000
OUTAGE_MOMENTS: Final = 20
"""Most moments in which everybody may be turned away without a reason: an operator's hand-over of a store, of
which no scenario knows, takes five seconds at most."""
HAND_OVER_NS: Final = OUTAGE_MOMENTS * MOMENT_NS
LONG_NS: Final = 4 * MOMENT_NS
"""How long requests must be turned away one after another to look like a hand-over, if they are few."""
HAND_OVERS: Final = 3
"""Most hand-overs that a run may have met, if nobody says so."""
_PLACE: Final = ["product_id", "door"]
"""Requests for one product at one front door are turned away together."""


def find_away(requests: pd.DataFrame) -> "pd.Series[bool]":
    """Return for each request whether it was answered 503, or is without an outcome, for no reason."""
    return requests["outcome"].isin(AWAY) & ~requests["excused"]


def find_outage(evidence: Evidence) -> "pd.Index[int]":
    """Return the moments, of MOMENT_NS each, in which nine in ten requests, and a few at least, were turned
    away without a reason."""
    asks = evidence.operations[evidence.operations["sent_ns"].notna()]
    moments = find_away(asks).groupby(asks["sent_ns"].astype("int64") // MOMENT_NS).agg(["mean", "size"])
    return moments.index[(moments["mean"] >= 1 - MOST) & (moments["size"] >= FEW)]


def is_beside(outage: "pd.Index[int]", requests: pd.DataFrame) -> "pd.Series[bool]":
    """Return for each request whether it was sent in an outage that is no longer than a hand-over, or in the
    moment before or after."""
    if len(outage) > OUTAGE_MOMENTS:
        return pd.Series(False, requests.index)
    near = outage.union(outage - 1).union(outage + 1)
    return (requests["sent_ns"] // MOMENT_NS).isin(near).fillna(False).astype(bool)


def suppose_hand_overs(evidence: Evidence) -> Evidence | None:
    """Return the evidence as if a store had been handed over whenever all who asked for the same at one
    place were turned away without a reason. None where nobody would do that: at the run's own engine, for
    longer than a hand-over takes, or more often than HAND_OVERS."""
    asked = evidence.asked
    if not asked.elsewhere:
        return None
    found = _find_runs(evidence.operations)
    latest_ns = found["end_ns"].cummax().shift()
    number = (found["start_ns"] - latest_ns > 2 * MOMENT_NS).cumsum()
    spans = found.groupby(number).agg({"start_ns": "min", "end_ns": "max"})
    lasted_ns = (spans["end_ns"] - spans["start_ns"]).sum()
    if spans.empty or lasted_ns > HAND_OVER_NS or len(spans) > HAND_OVERS:
        return None
    supposed = [
        Recovery(kind="hand-over", on="store", start_s=start_s, end_s=end_s, recovered_after_s=0.0)
        for start_s, end_s in (spans / 1e9).itertuples(index=False)
    ]
    return replace(evidence, asked=replace(asked, faults=[*asked.faults, *supposed]))


def _find_runs(asks: pd.DataFrame) -> pd.DataFrame:
    """Return from when to when (`start_ns`, `end_ns`) requests of a kind, for a product, at a front door, or
    for a product there, were turned away one after another without a reason, FEW or more of them or for
    LONG_NS, the earliest first. A single one says nothing."""
    asks = asks[asks["sent_ns"].notna()].sort_values("sent_ns", ignore_index=True)
    asks = asks.assign(kind=asks["kind"].astype("str"), sent_ns=asks["sent_ns"].astype("int64"))
    away = find_away(asks) & asks["status"].isin([0, 503])
    runs = []
    for by in ([], _PLACE[:1], _PLACE[1:], _PLACE):
        place = [asks[name] for name in ("kind", *by)]
        before = (~away).groupby(place).cumsum()
        runs.append(asks[away].groupby([*place, before])["sent_ns"].agg(["min", "max", "size"]))
    found = pd.concat(runs).set_axis(["start_ns", "end_ns", "size"], axis=1)
    long = (found["size"] >= FEW) | (found["end_ns"] - found["start_ns"] >= LONG_NS)
    return found[long].sort_values("start_ns")


def is_broken(rule: Callable[[Evidence], Finding], evidence: Evidence) -> bool:
    """Return whether the evidence breaks a rule."""
    try:
        return rule(evidence).violations > 0
    except Unknown:
        return False


def count_turned_away(requests: pd.DataFrame) -> int:
    """Return how many of the requests were turned away for no reason; 0 if those are no more than MOST of
    them, or the requests are few."""
    away, judged = int(find_away(requests).sum()), int((~requests["excused"]).sum())
    return away if judged >= FEW and away > MOST * judged else 0


def count_worst(requests: pd.DataFrame) -> int:
    """Return how many requests were turned away, for no reason, in a way that is wrong of fewer than MOST of
    all: half of MOST in most seconds; or, for one product, at one front door, or for one product there, more
    than half of BESIDE or more, or all of FEW or more for longer than a hand-over takes."""
    judged = requests[~requests["excused"]]
    away = find_away(judged)
    if not away.any():
        return 0
    seconds = away.groupby(judged["sent_ns"] // 10**9).agg(["sum", "size"])
    seconds = seconds[seconds["size"] >= FEW]
    if away.sum() >= BESIDE and (seconds["sum"] > MOST / 2 * seconds["size"]).mean() > 0.5:
        return int(away.sum())
    return max(_count_at_places(judged.assign(away=away), by) for by in (_PLACE[:1], _PLACE[1:], _PLACE))


def _count_at_places(judged: pd.DataFrame, by: list[str]) -> int:
    """Return how many of the requests were turned away at the places where that is wrong."""
    places = judged.groupby(by)
    away, size = places["away"].sum(), places.size()
    long = places["sent_ns"].max() - places["sent_ns"].min() > HAND_OVER_NS
    most = (size >= BESIDE) & (away > size / 2)
    return int(away[most | ((size >= FEW) & (away == size) & long)].sum())


def count_shut_out(requests: pd.DataFrame) -> int:
    """Return how many requests are of users who were turned away whenever they asked, if chance does not
    make so many of them; 0 if it may.

    Once a user was turned away, a bet is laid on each later second in which that user asks: the first request
    of it is turned away as well. Its odds are fair if that is no likelier than for other users' requests that
    were sent beside it, or than in the whole run, and one in BESIDE at least. Whoever bets the same share of
    the stake on each user then wins 1 / CHANCE with a probability of at most CHANCE (Ville's inequality).
    """
    judged = requests[~requests["excused"]].sort_values("sent_ns")
    rows = judged[["user_id", *_PLACE]].assign(away=find_away(judged), second=judged["sent_ns"] // 10**9)
    if not rows["away"].any():
        return 0
    rows["beside"] = rows.groupby(_PLACE).cumcount() // BESIDE
    around, own = (rows.groupby([*_PLACE, "beside", *by])["away"] for by in ([], ["user_id"]))
    sums, sizes = (around.transform(name) - own.transform(name) for name in ("sum", "size"))
    rows["odds"] = (sums / sizes).fillna(1).clip(lower=max(rows["away"].mean(), 1 / BESIDE))
    asked = rows.drop_duplicates(["user_id", "second"])
    users = rows.groupby("user_id")["away"]
    later = asked[asked["user_id"].duplicated() & asked["user_id"].map(users.first())]
    lost = later["user_id"].map(users.all())
    won = (lost / later["odds"]).groupby(later["user_id"]).prod()
    with np.errstate(divide="ignore"):
        gains = [np.log1p(share * (won - 1)).sum() for share in _STAKES]
    likely = max(gains, default=0) < np.log(len(_STAKES) / CHANCE)
    return 0 if likely else int(rows["user_id"].isin(won.index[won > 0]).sum())


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
    requests is turned away with 503, or left without an outcome, in most seconds one in twenty, nor most of
    those for a product, at a front door, or for a product there, nor always the same users, and no more than
    one in ten units that somebody asks for stays unsold, apart from faults and an overload that the scenario
    means. So it is with those who got an order: no more than one in ten of their answers leaves them without
    knowing it, and not all of them. Elsewhere nobody knows whether a store was handed over meanwhile."""
    sales, sent = evidence.asked_sales, evidence.sent
    outage = find_outage(evidence)
    beside = is_beside(outage, sent)
    many, unheard = count_turned_away(sent), _count_unheard(evidence, beside)
    calm = sent.assign(excused=evidence.asked.is_excused(sent, patient=True) | beside)
    worst, shut_out = count_worst(calm), count_shut_out(calm)
    if len(outage) > OUTAGE_MOMENTS:
        worst = max(worst, int(find_away(calm).sum()))

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
        Breach(worst, "requests turned away without a reason all the time, or at one place"),
        Breach(shut_out, "requests of users who were always turned away"),
        Breach(unheard, "answers to buyers who got an order did not say so"),
        Breach(short.sum(), "of them did not happen", "sale", short.index[short > 0]),
        chances=(tried & sales.index.isin(wanting.loc[sure, "sale_id"])).sum(),
    )
    if (many or unheard or worst or shut_out) and not short.any() and not evidence.asked.load_valid:
        raise Unknown(f"{found.detail}; but the load was not as planned")
    if not found.violations and tried.any() and not sold[tried].any():
        raise Unknown(
            f"{clients.sum():,} buyers came, nothing was sold, and faults or overload may be the reason"
        )
    return found


def _count_unheard(evidence: Evidence, beside: "pd.Series[bool]") -> int:
    """Return how many requests whose buyer got an order have no known outcome, for no reason; 0 if those are
    no more than MOST of the requests that got one, or these are few, and some were told. `beside` says which
    requests were sent beside an outage (is_beside)."""
    calm = evidence.sent[~evidence.sent["excused"] & ~beside]
    won = calm[calm["outcome"].isin(["ACCEPTED", "UNKNOWN"])]
    placed = pd.MultiIndex.from_frame(evidence.orders[BUYER])
    unheard = won["outcome"].eq("UNKNOWN") & pd.MultiIndex.from_frame(won[BUYER]).isin(placed)
    got = won[unheard | won["outcome"].eq("ACCEPTED")]
    none_told = evidence.accepted.empty
    return count_turned_away(got) or int(none_told * unheard.sum())
