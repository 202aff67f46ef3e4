"""Finds what a person asks for, and tells its story."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pandas as pd

from simulation.errors import RunError
from simulation.judge.figures import Run
from simulation.record.facts import read_faults
from simulation.report.story.looks import find_looks
from simulation.report.story.purchase import Record, find_orders, find_traits, tell_order, tell_request
from simulation.report.story.second import tell_second
from simulation.report.story.story import Step, Story, sort_steps

MOST: Final = 12
"""Most operations that one story tells in full."""
_SECOND: Final = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*s")
_REQUEST: Final = re.compile(r"(?:(?:(?:order\s+of\s+)?op|request)\s*)?(\d{1,18})")
_USER: Final = re.compile(r"user\s*(\d{1,19})")
MOST_SHOWN: Final = 100
"""Characters of an order id that there is not."""
FORMS: Final = "an order id, a request number (17), a user (user 101) or a second (12.5s)"


def read_record(run: Run) -> Record:
    """Return what the stories of a run are told from. Raises RunError where the record is not kept."""
    folder = Path(run.folder)
    if run.metrics is None:
        raise RunError(f"{folder}: its record was not kept, so there is nothing to explain")
    # Where the engine names no orders, its purchases are paired with those of the witness, as for the judge.
    whole = run.metrics.operations.sort_values("op", ignore_index=True)
    return Record(run, run.metrics, whole, read_faults(folder))


def explain(record: Record, what: str) -> Story:
    """Return the story of what a person names: one of FORMS. Raises RunError if the run has no such thing."""
    what = what.encode(errors="backslashreplace").decode()  # a name of the shell may be no UTF-8
    words = what.strip()
    if found := _SECOND.fullmatch(words):
        return _explain_second(record, float(found[1]))
    history = record.history
    if found := _USER.fullmatch(words):
        user_id = int(found[1])
        rows = history[(history["user_id"] == user_id) & (history["kind"] != "stock")]
        if rows.empty:
            raise RunError(f"there is no user {user_id} in this run")
        return _tell(record, rows, f"User {user_id}", {f"user {user_id}"})
    if found := _REQUEST.fullmatch(words):
        row = history[history["op"] == int(found[1])]
        if row.empty:
            raise RunError(f"there is no request {found[1]}: they are 0 to {history['op'].max()}")
        return _tell(record, _add_tries(history, row), f"Request {found[1]}", set())
    ids = [what.removeprefix("order "), what, words.removeprefix("order ").strip()]
    order_id = next(filter(record.knows, ids), None)
    if order_id is None:
        raise RunError(f"there is no order {_shorten(ids[-1])!r} in this run; name {FORMS}")
    return _explain_order(record, order_id)


def _shorten(word: str) -> str:
    return word if len(word) <= MOST_SHOWN else f"{word[:MOST_SHOWN]}…"


def _explain_second(record: Record, start_s: float) -> Story:
    times_ns = record.history[["intended_ns", "done_ns"]].max().max()
    if start_s * 1e9 > times_ns:
        raise RunError(f"the run has no second {start_s:g}: its last is {int(times_ns // 1_000_000_000)} s")
    return tell_second(record, start_s)


def _explain_order(record: Record, order_id: str) -> Story:
    history = record.history
    rows = history[history["order_id"] == order_id]
    if order_id in record.orders.index and not (rows["kind"] == "buy").any():
        # Nobody was told of it: whose request may it have been?
        order = record.orders.loc[order_id]
        mine = history[
            (history["user_id"] == order["user_id"])
            & (history["product_id"] == order["product_id"])
            & (history["result"] == "unknown")
            & (history["kind"] == "buy")
        ]
        rows = pd.concat([rows, mine])
    if not rows.empty:
        rows = _add_tries(history, rows)
    return _tell(record, rows, f"Order {order_id}", set(), [order_id])


def _add_tries(history: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the operations with all tries of the same clients, and their reads of the orders."""
    buys = rows[rows["kind"] == "buy"]
    first = set(buys["first_op"])
    orders = set(rows["order_id"].dropna())
    tries = history[(history["kind"] == "buy") & history["first_op"].isin(first)]
    orders |= set(tries["order_id"].dropna())
    looks = history[(history["kind"] == "order") & history["order_id"].isin(orders)]
    told = history[(history["kind"] == "buy") & history["order_id"].isin(orders)]
    return pd.concat([rows, tries, looks, told]).drop_duplicates("op").sort_values("op")


def _tell(
    record: Record, rows: pd.DataFrame, title: str, names: set[str], orders: list[str] | None = None
) -> Story:
    """Return the story of these operations and of their orders."""
    buys = rows[rows["kind"] == "buy"]
    orders = list(dict.fromkeys([*(orders or []), *find_orders(record, buys)]))
    steps: list[Step] = []
    for row in rows.head(MOST).itertuples(index=False):
        steps += tell_request(record, row)
    if len(rows) > MOST:
        steps.append(Step(what="…", words=f"{len(rows) - MOST:,} more operations"))
    for order_id in orders[:MOST]:
        told = buys["first_op"].isin(buys.loc[buys["order_id"] == order_id, "first_op"])
        sent_ns = buys.loc[told if told.any() else buys["result"] == "unknown", "sent_ns"].min()
        steps += tell_order(record, order_id, None if pd.isna(sent_ns) else sent_ns / 1e9)
    steps += _tell_nothing(record, buys, orders)
    times = [step.at_s for step in steps if step.at_s is not None]
    if times:
        steps += record.find_fault_words(min(times), max(times))
    names |= {f"op {op}" for op in rows["op"]} | {f"order {order_id}" for order_id in orders}
    looks = find_looks(
        find_traits(record, rows, orders), names, record.run.summary["checks"], record.breaches
    )
    return Story(title=f"{title}: {_describe(record, buys, orders)}", steps=sort_steps(steps), looks=looks)


def _tell_nothing(record: Record, buys: pd.DataFrame, orders: list[str]) -> list[Step]:
    """Return why a purchase left nothing at the stores: it was refused, or nobody can say."""
    if orders or buys.empty:
        return []
    last = buys.iloc[-1]
    moment_ns = last["done_ns"] if pd.notna(last["done_ns"]) else last["sent_ns"]
    after_s = None if pd.isna(moment_ns) else moment_ns / 1e9
    if (buys["result"] == "unknown").any():
        words = (
            f"nothing that settled: the {record.ledger} has no untold order of this buyer, product and key"
        )
        if record.state.orders is None:
            words = record.unread
        return [Step(what="reserved", after_s=after_s, words=words)]
    reason = "it was never sent" if buys["sent_ns"].isna().all() else "a refusal reserves nothing"
    steps = [Step(what="reserved", after_s=after_s, words=f"nothing: {reason}")]
    sold = record.orders[record.orders["product_id"] == last["product_id"]]
    sold = sold.dropna(subset=["accepted_us"])
    if last["outcome"] == "SOLD_OUT" and len(sold):
        last_s = (int(sold["accepted_us"].max()) - record.zero_us) / 1e6
        by_then = int((sold["accepted_us"] <= record.zero_us + last["done_ns"] / 1e3).sum())
        gate = "gate" if record.has_stages else "engine"
        words = f"until the answer the {gate} had reserved {by_then:,} of all {len(sold):,} orders of product"
        words += f" {last['product_id']}, the last of all at {last_s:.4f} s ({gate}'s clock)"
        steps.append(Step(what="stock", after_s=after_s, words=words))
    return steps


def _describe(record: Record, buys: pd.DataFrame, orders: list[str]) -> str:
    """Return how it ended, in a few words."""
    outcomes = Counter(buys.sort_values("intended_ns")["outcome"])
    ended: Any = record.orders["status"].to_dict() if len(record.orders) else {}
    nowhere = "unknown" if record.state.orders is None else f"not in the {record.ledger}"
    statuses = Counter(f"order {ended.get(order_id, nowhere)}" for order_id in orders)
    said = [f"{number} × {word}" if number > 1 else word for word, number in (outcomes + statuses).items()]
    return ", ".join(said) or "no purchase"
