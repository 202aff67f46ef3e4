"""The story of a second: what was asked, answered, reserved and settled in it, and what the stores held."""

from collections import Counter
from collections.abc import Iterator

import pandas as pd

from simulation.judge.numbers.latency import lag_ms, response_ms, take_stat
from simulation.judge.summary import find_in_charge
from simulation.model.history import take_buys
from simulation.report.plots.load import end_ns
from simulation.report.story.purchase import Record
from simulation.report.story.story import Step, Story, sort_steps
from simulation.report.words import count, ms

_SAMPLED = {
    "stock_remaining": "units left in stock",
    "pending_orders": "orders not settled",
    "outbox_entries": "outbox entries",
    "queue_messages": "queue messages",
    "ledger_confirmed": "confirmed",
}
_FIRST = {"accepted": "ACCEPTED", "refused as sold out": "SOLD_OUT", "of unknown outcome": "UNKNOWN"}


def tell_second(record: Record, start_s: float) -> Story:
    """Return the story of the second that begins at `start_s`."""
    end_s = start_s + 1
    buys = take_buys(record.history)
    meant, sent, done = (
        buys[((buys[name] >= start_s * 1e9) & (buys[name] < end_s * 1e9)).fillna(False)]
        for name in ("intended_ns", "sent_ns", "done_ns")
    )
    steps = [
        Step(what="planned", at_s=start_s, words=_tell_planned(meant, sent)),
        *_tell_in_flight(record, buys, start_s),
        *record.find_fault_words(start_s, end_s),
        *_tell_moments(record, start_s, end_s),
        *_tell_samples(record, start_s, end_s),
        *_tell_answers(record, meant, done, end_s),
        *_tell_orders(record, start_s, end_s),
        *_tell_in_flight(record, buys, end_s),
    ]
    title = f"From {start_s:g} s to {end_s:g} s of {record.run.scenario.name}"
    return Story(title=title, steps=sort_steps(steps), more=list(_name_requests(record, meant)))


def _name_requests(record: Record, meant: pd.DataFrame) -> Iterator[str]:
    if len(meant):
        slowest = response_ms(meant, record.metrics.driver.timeout_ms).argmax()
        yield f"op {meant['op'].iloc[slowest]}: the slowest planned in it"
    for words, outcome in _FIRST.items():
        chosen = meant.loc[meant["outcome"] == outcome, "op"]
        if len(chosen):
            yield f"op {chosen.iloc[0]}: the first {words}"


def _tell_planned(meant: pd.DataFrame, sent: pd.DataFrame) -> str:
    retries = int((meant["attempt"] > 0).sum())
    again = f", {count(retries)} of them retries" if retries else ""
    lag = ms(take_stat(lag_ms(sent), "p99"))
    return f"{count(len(meant))} purchases{again}; {count(len(sent))} sent, lag p99 {lag}"


def _tell_in_flight(record: Record, buys: pd.DataFrame, at_s: float) -> Iterator[Step]:
    under_way = (buys["sent_ns"] <= at_s * 1e9) & (
        end_ns(buys, record.metrics.driver.timeout_ms) > at_s * 1e9
    )
    yield Step(
        what="in flight", at_s=at_s, words=f"purchases sent and not answered: {count(under_way.sum())}"
    )


def _tell_answers(record: Record, meant: pd.DataFrame, done: pd.DataFrame, end_s: float) -> Iterator[Step]:
    answers = Counter(zip(done["status"], done["outcome"], strict=True))
    words = [f"{count(number)} × {status} {outcome}" for (status, outcome), number in answers.most_common()]
    yield Step(what="answered", at_s=end_s, words=", ".join(words) or "nothing")
    if len(meant):
        took = response_ms(meant, record.metrics.driver.timeout_ms)
        said = ", ".join(f"{stat} {ms(take_stat(took, stat))}" for stat in ("p50", "p99", "max"))
        lost = Counter(meant.loc[meant["done_ns"].isna(), "end"])
        silent = "".join(f"; {count(number)} without an answer: {end}" for end, number in lost.items())
        yield Step(what="response", at_s=end_s, words=f"{said} of what was planned in it{silent}")


def _tell_orders(record: Record, start_s: float, end_s: float) -> Iterator[Step]:
    for column, what in (("accepted_us", "reserved"), ("settled_us", "settled")):
        if column in record.orders and column not in record.state.unseen:
            at_s = (record.orders[column] - record.zero_us) / 1e6
            within = record.orders[((at_s >= start_s) & (at_s < end_s)).fillna(False)]
            statuses = Counter(within["status"] if what == "settled" else [])
            states = ", ".join(f"{count(number)} {status}" for status, number in statuses.most_common())
            words = f"{count(len(within))} orders" + (f": {states}" if states else "")
            yield Step(what=what, at_s=end_s, words=words)


def _tell_samples(record: Record, start_s: float, end_s: float) -> Iterator[Step]:
    samples = record.metrics.timeline
    if "t_s" not in samples:
        return
    within = samples[(samples["t_s"] >= start_s) & (samples["t_s"] < end_s)]
    for sample in within.iloc[[0, -1]].to_dict("records") if len(within) > 1 else []:
        held = [
            f"{count(sample[name])} {word}" for name, word in _SAMPLED.items() if pd.notna(sample.get(name))
        ]
        yield Step(what="stores", at_s=float(sample["t_s"]), words=", ".join(held))


def _tell_moments(record: Record, start_s: float, end_s: float) -> Iterator[Step]:
    for name, start, _ in record.run.scenario.phases():
        if start_s <= start < end_s:
            yield Step(what="phase", at_s=start, words=f'"{name}" begins')
    for each in find_in_charge(record.metrics.timeline):
        if start_s <= each.start_s < end_s:
            yield Step(what="in charge", at_s=each.start_s, words=f"{each.node} of {each.role}")
    refused = record.history[record.history["outcome"] == "SOLD_OUT"].sort_values("done_ns").head(1)
    for op, done_ns in zip(refused["op"], refused["done_ns"], strict=True):
        if start_s <= done_ns / 1e9 < end_s:
            words = f"request {op} is the first to be told so"
            yield Step(what="sold out", at_s=done_ns / 1e9, words=words)
