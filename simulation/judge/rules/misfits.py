"""Where the description of an engine that is not ours never fits: what breaks a rule then may be its fault.

A description is at fault only where nothing at all was seen to fit it. One answer or one order that does
shows that the description reads what the engine says, be it of a purchase before the load.
"""

from collections.abc import Mapping

import pandas as pd

from simulation.judge.rules.evidence import FEW, Evidence
from simulation.model.contract import FLASHGRID, Contract

REQUESTS, BUY, REFUSALS, ORDERS, READS = "requests", "buy", "refusals", "orders", "reads of "
"""What does not fit: requests that perhaps are no purchases; the answers that accept, or that refuse; the
orders that the witness shows; the reads of a kind."""


def find_misfits(evidence: Evidence) -> dict[str, str]:
    """Return where the description does not fit, in words, by what it is about."""
    state = evidence.state
    found = state.misfits
    if evidence.asked.contract != FLASHGRID:
        found = _doubt_answers(evidence) | found
    return {part: words for part, words in found.items() if part not in state.fitting}


def hangs_on(metric: str, misfits: Mapping[str, str], partial: bool) -> bool:
    """Return whether a metric is read from what does not fit; `partial`: all orders are read from answers."""
    outcome = metric.partition(".")[0]
    if outcome in ("load", "front_door") or metric == "all.count":
        return False
    of_orders = outcome in ("oversold", "sold", "fulfilment")
    of_answers = not of_orders and outcome not in ("all", "remaining")
    return (
        (REQUESTS in misfits and (partial or metric != "oversold"))
        or (BUY in misfits and (of_answers or (partial and of_orders)))
        or (REFUSALS in misfits and of_answers and outcome != "accepted")
        or (ORDERS in misfits and of_orders)
    )


def _doubt_answers(evidence: Evidence) -> dict[str, str]:
    """Return what speaks against the contract's answers to purchases."""
    contract, sent = evidence.asked.contract, evidence.sent
    answered = sent[sent["done_ns"].notna() & (sent["status"] < 500)]
    listed = answered["status"].map(contract.knows).astype("bool")
    counts = answered["status"].value_counts().sort_index()
    if len(answered) and not listed.any():
        told = ", ".join(f"{count:,} × {status}" for status, count in counts.items())
        return {
            REQUESTS: f"no answer to a purchase has a status that buy.answers lists ({told}): look at path,"
            " method, headers and body of [buy], and at buy.answers"
        }
    for status, answers in answered[listed].groupby("status"):
        meant: set[str] = {rule.outcome for rule in contract.buy.answers if rule.status == status}
        odd = answers[answers["outcome"] == "UNKNOWN"]
        if len(odd) < FEW or "UNKNOWN" in meant:
            continue
        is_buy = "ACCEPTED" in meant and (len(odd) == len(answers) or evidence.answered("ACCEPTED").empty)
        if is_buy or len(odd) == len(answers) or _lacks_word(odd, evidence):
            more = ", all of them after the stock was sold," if len(odd) < len(answers) and not is_buy else ""
            wanted = _name_wanted(contract, meant if is_buy else meant - {"ACCEPTED"})
            words = f"none of {len(odd):,} answers {status} to purchases{more} says {wanted}"
            return {BUY if is_buy else REFUSALS: words}
    for status, answers in answered[~listed].groupby("status"):
        done = len(answers) >= FEW and bool((answers["status"] < 300).all())
        if done and evidence.answered("ACCEPTED").empty:
            words = f"{len(answers):,} purchases were answered {status}"
            return {BUY: f"{words}, and none ACCEPTED: does buy.answers lack it?"}
        if _is_another_sold_out(answers, evidence):
            words = f"{len(answers):,} purchases were answered {status}, all of them after the stock was sold"
            return {REFUSALS: f"{words}, and none SOLD_OUT: does buy.answers lack it?"}
    return {}


def _name_wanted(contract: Contract, meant: set[str]) -> str:
    """Return what answers with one of these outcomes should say."""
    buy = contract.buy
    if "ACCEPTED" in meant and buy.order_id:
        kind = "a number" if buy.numbered else "a text"
        other = "" if buy.numbered else " (a number needs numbered = true)"
        words = f"what an order is called at {buy.order_id}, {kind}, as the contract says{other}"
        return words + (
            f", with its word at {' or '.join(buy.words)}" if any(rule.word for rule in buy.answers) else ""
        )
    return f"a word of buy.answers at {' or '.join(buy.words)}"


def _lacks_word(odd: pd.DataFrame, evidence: Evidence) -> bool:
    """Return whether a word for SOLD_OUT may be lacking among the rules of a status. Nobody knows what these
    answers said: not if no word decides, another status is SOLD_OUT, or a purchase before the load was
    understood."""
    rules, status = evidence.asked.contract.buy.answers, odd["status"].iloc[0]
    elsewhere = any(rule.outcome == "SOLD_OUT" and rule.status != status for rule in rules)
    by_word = all(rule.word is not None for rule in rules if rule.status == status)
    untold = by_word and not elsewhere and BUY not in evidence.state.fitting
    return untold and _is_another_sold_out(odd, evidence)


def _is_another_sold_out(answers: pd.DataFrame, evidence: Evidence) -> bool:
    """Return whether answers of a status that the contract does not list came only when all was sold, and no
    answer said SOLD_OUT."""
    if len(answers) < FEW or not evidence.answered("SOLD_OUT").empty:
        return False
    sales = evidence.asked.frame.drop_duplicates("product_id").set_index("product_id")
    accepted = evidence.accepted
    sold = accepted["product_id"].value_counts() * sales["quantity"]
    gone = sales.index[(sold + sales["quantity"] > sales["stock"]).reindex(sales.index, fill_value=False)]
    last_ns = accepted.groupby("product_id")["sent_ns"].max()
    late = answers["done_ns"] >= answers["product_id"].map(last_ns)
    return bool((answers["product_id"].isin(gone) & late).all())
