"""A story tells what the record holds of one purchase, and what the rules found about it."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pandas as pd
import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.errors import RunError
from simulation.judge.verdict import RULES, name_rule
from simulation.model.state import FinalState
from simulation.record.facts import RunFacts, write_json
from simulation.record.history import read_history, write_history
from simulation.record.state import read_state, write_state
from simulation.report.exports.junit import write_junit
from simulation.report.story.find import explain, read_record
from simulation.report.story.looks import LOOKED_AT
from simulation.report.story.purchase import Record
from simulation.report.story.story import Story, write_story
from simulation.report.words import describe, name_questions
from simulation.target.foreign.loading import load_description
from simulation.tests.run_folders import START_US, lose_orders, make_run
from simulation.verdict import finish_run, load_run

pytestmark = pytest.mark.slow


def spoil(state: FinalState) -> FinalState:
    """The first order is lost; the payment of the second is declined, and its unit released."""
    state = lose_orders(state, 1)
    assert state.orders is not None
    assert state.gate is not None
    orders = state.orders.copy()
    orders.loc[0, ["status", "reason"]] = ["FAILED", "payment declined"]
    return replace(state, orders=orders, gate=state.gate.assign(released=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("story")
    make_run(place, spoil=spoil)
    return place


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    return read_record(load_run(folder))


def first(record: Record, outcome: str) -> pd.Series:
    return record.history[record.history["outcome"] == outcome].iloc[0]


def words_of(story: Story) -> dict[str, str]:
    return {step.what: step.words for step in story.steps}


def test_every_rule_has_what_it_looks_at() -> None:
    assert LOOKED_AT.keys() == {name_rule(rule) for rule in RULES}


def test_an_accepted_purchase_is_followed_to_the_ledger(record: Record) -> None:
    bought = record.history[record.history["outcome"] == "ACCEPTED"].iloc[9]
    story = explain(record, bought["order_id"])
    assert [step.what for step in story.steps] == [
        "planned", "sent", "answered", "reserved", "relayed", "settled"
    ] or [step.what for step in story.steps] == [
        "planned", "sent", "reserved", "relayed", "answered", "settled"
    ]  # fmt: skip
    at_s = {step.what: step.at_s for step in story.steps}
    order = record.orders.loc[bought["order_id"]]
    assert at_s["planned"] == bought["intended_ns"] / 1e9
    assert at_s["answered"] == bought["done_ns"] / 1e9
    assert at_s["settled"] == (order["settled_us"] - START_US) / 1e6
    assert at_s["relayed"] is None
    assert "no store keeps the moment" in words_of(story)["relayed"]
    looked = {look.rule: look for look in story.looks}
    assert {"accepted is settled", "payment decides"} <= looked.keys()
    assert "a key buys once" not in looked
    assert looked["accepted is settled"].state == "broken"
    assert looked["accepted is settled"].breaches == [], "another order is lost"
    assert "accepted is settled: broken, but not by it" in write_story(story)
    assert explain(record, f"op {bought['op']}").steps == story.steps
    assert explain(record, f"user {bought['user_id']}").steps == story.steps


def test_the_lost_order_is_named_with_the_rule_that_it_breaks(record: Record, folder: Path) -> None:
    lost = first(record, "ACCEPTED")
    story = explain(record, str(lost["op"]))
    assert words_of(story)["not settled"] == "the ledger has no such order"
    found = {look.rule: look.breaches for look in story.looks if look.breaches}
    assert found == {"accepted is settled": ["are not in the ledger"]}
    summary = finish_run(folder)
    [check] = [each for each in summary["checks"] if each["name"] == "accepted is settled"]
    assert check["named"] == [f"order {lost['order_id']}"]
    question = f"flashsim explain RUN order {lost['order_id']}"
    assert question in (folder / "report.html").read_text()


def test_a_declined_purchase_gives_its_unit_back(record: Record) -> None:
    declined = record.history[record.history["outcome"] == "ACCEPTED"].iloc[1]
    said = words_of(explain(record, declined["order_id"]))
    assert said["settled"].startswith("FAILED (payment declined)")
    assert "the gate counts 1 units released, the ledger 1 failed" in said["released"]


def test_a_refused_purchase_left_nothing_and_is_told_why(record: Record) -> None:
    story = explain(record, str(first(record, "SOLD_OUT")["op"]))
    said = words_of(story)
    assert said["answered"].startswith("429 SOLD_OUT")
    assert said["reserved"] == "nothing: a refusal reserves nothing"
    assert "had reserved 4,999 of all 4,999 orders of product 1" in said["stock"]
    assert {look.rule for look in story.looks} == {
        "sold out means sold out", "demand empties the stock", "no server errors", "the sale happened"
    }  # fmt: skip


def test_an_unanswered_purchase_is_looked_up_in_the_ledger(record: Record, tmp_path: Path) -> None:
    lost = first(record, "UNKNOWN")
    said = words_of(explain(record, str(lost["op"])))
    assert said["unanswered"] == "no answer: the client never learnt more"
    assert said["reserved"].startswith("nothing that settled")

    def take(state: FinalState) -> FinalState:
        assert state.orders is not None
        orders = state.orders.copy()
        orders.loc[0, "order_id"] = "0000beef-0000-7000-8000-000000000000"
        orders.loc[0, ["user_id", "accepted_us"]] = [lost["user_id"], START_US + lost["sent_ns"] // 1000]
        return replace(state, orders=orders)

    make_run(tmp_path, spoil=take)
    history = read_history(tmp_path / "history.parquet")
    history.loc[history["op"] == lost["op"], "end"] = "timeout"
    write_history(history, tmp_path / "history.parquet")
    taken = explain(read_record(load_run(tmp_path)), f"op {lost['op']}")
    assert words_of(taken)["unanswered"] == "no answer within 5 s: the client never learnt more"
    assert "0000beef-0000" in words_of(taken)["reserved"]
    assert words_of(taken)["settled"].startswith("CONFIRMED")
    by_order = explain(read_record(load_run(tmp_path)), "order 0000beef-0000-7000-8000-000000000000")
    assert by_order.steps == taken.steps


def test_a_retry_and_the_reads_of_an_order_belong_to_its_story(tmp_path: Path) -> None:
    make_run(tmp_path)
    history = read_history(tmp_path / "history.parquet")
    refused = history[history["outcome"] == "SOLD_OUT"].head(1)
    again = refused.assign(
        op=900_000, attempt=1, first_op=refused["op"].to_numpy(), intended_ns=refused["intended_ns"] + 10**9,
        sent_ns=refused["sent_ns"] + 10**9, done_ns=refused["done_ns"] + 10**9,
    )  # fmt: skip
    bought = history[history["outcome"] == "ACCEPTED"].head(1)
    look = bought.assign(
        op=900_001, kind="order", outcome="SHOWN", order_status="CONFIRMED", user_id=0, first_op=900_001
    )
    write_history(pd.concat([history, again, look]), tmp_path / "history.parquet")
    write_json([{"kind": "stop", "on": "relay", "start_s": 0.0, "end_s": 12.0}], tmp_path / "faults.json")
    record = read_record(load_run(tmp_path))
    planned = [
        step.words for step in explain(record, f"{refused['op'].iloc[0]}").steps if step.what == "planned"
    ]
    assert len(planned) == 2
    assert planned[1].startswith(f"request 900000, try 2 of request {refused['op'].iloc[0]}")
    assert explain(record, "op 900000").steps == explain(record, f"{refused['op'].iloc[0]}").steps
    told = explain(record, bought["order_id"].iloc[0])
    assert any("CONFIRMED" in step.words and "SHOWN" in step.words for step in told.steps)
    assert words_of(told)["fault"].startswith("stop relay, until 12.0000 s")


def test_a_second_tells_what_was_asked_answered_and_held(record: Record) -> None:
    story = explain(record, "3s")
    said, history = words_of(story), record.history
    meant = history[(history["intended_ns"] >= 3e9) & (history["intended_ns"] < 4e9)]
    assert said["planned"].startswith(f"{len(meant):,} purchases; ")
    answered = history["done_ns"].between(3e9, 4e9).sum()
    assert said["answered"] == f"{answered:,} × 429 SOLD_OUT"
    assert story.more[0].endswith("the slowest planned in it")
    assert '"peak" begins' in words_of(explain(record, "1.5 s"))["phase"]
    opened = next(step for step in explain(record, "0s").steps if step.what == "in flight")
    assert opened.words == "purchases sent and not answered: 0"


def test_a_ledger_that_keeps_less_still_tells_a_story(tmp_path: Path) -> None:
    def forget(state: FinalState) -> FinalState:
        assert state.orders is not None
        orders = state.orders.copy()
        orders[["quantity", "accepted_us"]] = None
        return replace(state, orders=orders.astype(state.orders.dtypes.to_dict()))

    make_run(tmp_path)
    known = load_run(tmp_path)
    assert known.metrics is not None
    metrics = replace(known.metrics, state=forget(known.metrics.state))
    record = replace(read_record(known), metrics=metrics)
    said = words_of(explain(record, str(first(record, "ACCEPTED")["op"])))
    assert said["reserved"].startswith("1 unit of sale 1")
    assert said["settled"] == "CONFIRMED (ledger's clock)"
    assert "stock" not in words_of(explain(record, str(first(record, "SOLD_OUT")["op"])))


def test_an_engine_without_an_outbox_is_not_said_to_have_relayed(record: Record, tmp_path: Path) -> None:
    orders = record.orders
    foreign = replace(record.metrics.state, without=frozenset({"outbox", "dead letters"}))
    timeline = record.metrics.timeline.assign(outbox_entries=float("nan"))
    other = replace(record, metrics=replace(record.metrics, state=foreign, timeline=timeline))
    strange = re.compile(r"outbox|relay|gate|ledger")
    for status in ("CONFIRMED", "FAILED"):
        [*steps] = explain(other, orders.index[orders["status"] == status][0]).steps
        assert {"reserved", "settled"} <= {step.what for step in steps}
        assert [step for step in steps if strange.search(f"{step.what} {step.words}")] == []
    assert [step for step in explain(other, "1s").steps if strange.search(step.words)] == []
    untimed = replace(foreign, unseen=frozenset({"accepted_us", "settled_us"}))
    silent = replace(record, metrics=replace(record.metrics, state=untimed))
    assert not {"reserved", "settled"} & {step.what for step in explain(silent, "1s").steps}
    refused = explain(other, f"op {first(record, 'SOLD_OUT')['op']}")
    assert "(engine's clock)" in words_of(refused)["stock"]
    assert "in the witness" in explain(other, f"op {lost_op(record)}").title


DECLINES = Path("reports/reference-declines")
KILLED = Path("reports/reference-worth/front-door-killed-in-mid-sale-flashgrid")


@pytest.mark.parametrize(
    ("folder", "column", "value", "said"),
    [
        (
            DECLINES,
            "status",
            "CONFIRMED",
            ["answered  200 ACCEPTED, order ", "settled   CONFIRMED (ledger's clock)"],
        ),
        (
            DECLINES,
            "outcome",
            "SOLD_OUT",
            ["answered  429 SOLD_OUT", "reserved  nothing: a refusal reserves"],
        ),
        (KILLED, "outcome", "UNKNOWN", ["unanswered", "the client never learnt more"]),
        (
            DECLINES,
            "status",
            "FAILED",
            [
                "settled   FAILED (",
                "released  1 unit back to the gate; no store keeps the moment; at the end",
            ],
        ),
    ],
)
def test_the_command_tells_purchases_of_committed_runs(
    folder: Path, column: str, value: str, said: list[str]
) -> None:
    if column == "status":
        orders = read_state(folder).orders
        assert orders is not None
        what = f"order {orders.loc[orders[column] == value, 'order_id'].iloc[0]}"
    else:
        history = read_history(folder / "history.parquet")
        what = f"op {history.loc[history[column] == value, 'op'].iloc[0]}"
    shown = CliRunner().invoke(main, ["explain", str(folder), *what.split()])
    assert shown.exit_code == 0, shown.stderr
    for words in said:
        assert words in shown.stdout
    assert "broken" not in shown.stdout


TEXTBOOK = Path("reports/reference-worth/redis-emptied-textbook")
OURS = re.compile(r"\b(outbox|relay\w*|gate|generation|keeper)\b", re.I)


@pytest.mark.parametrize("status", ["CONFIRMED", "REJECTED"])
def test_the_textbook_is_told_of_in_words_that_fit_it(status: str) -> None:
    orders = read_state(TEXTBOOK).orders
    assert orders is not None
    order_id = orders.loc[orders["status"] == status, "order_id"].iloc[0]
    shown = CliRunner().invoke(main, ["explain", str(TEXTBOOK), "order", order_id])
    assert shown.exit_code == 0, shown.stderr
    assert f"settled   {status} (engine's clock)" in shown.stdout
    assert not OURS.search(shown.stdout)
    assert "ledger" not in shown.stdout
    broken = "broken by it: orders rejected" if status == "REJECTED" else "broken, but not by it"
    assert f"guard never needed: {broken}" in shown.stdout


def test_pages_and_exports_of_the_textbook_speak_of_nothing_that_only_flashgrid_has(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(TEXTBOOK, folder)
    summary = finish_run(folder)
    assert summary["engine"] == "textbook"
    page = re.sub(r"(?s)<(style|script).*?</\1>", "", (folder / "report.html").read_text())
    for text in (re.sub("<[^>]+>", "\n", page), describe(summary), write_junit([load_run(folder)]).decode()):
        found = OURS.search(text)
        assert not found, text[max(found.start() - 80, 0) : found.end() + 80]


def lost_op(record: Record) -> int:
    """The request of the order that is lost."""
    accepted = record.history[record.history["outcome"] == "ACCEPTED"]
    return int(accepted.loc[~accepted["order_id"].isin(record.orders.index), "op"].iloc[0])


def test_stores_that_tell_no_times_and_were_not_sampled_are_no_contradiction(record: Record) -> None:
    state = record.metrics.state
    assert state.orders is not None
    assert state.gate is not None
    timed = state.orders.copy()
    timed["accepted_us"] = None
    untimed = timed.assign(settled_us=None).astype(timed.dtypes.to_dict() | {"settled_us": "Int64"})
    failed, paid = (
        record.orders.index[record.orders["status"] == word][0] for word in ("FAILED", "CONFIRMED")
    )
    bare = replace(state, orders=untimed.astype({"accepted_us": "Int64"}))
    timeline = record.metrics.timeline.assign(queue_messages=float("nan"), stock_remaining=7)
    other = replace(record, metrics=replace(record.metrics, state=bare, timeline=timeline))
    said = words_of(explain(other, paid))
    assert said["reserved"] == f"1 unit of sale 1, for order {paid}; nobody tells when"
    assert said["settled"] == "CONFIRMED; nobody tells when"
    assert "not settled" not in said
    assert not [step for step in explain(other, "0.5s").steps if "nan" in step.words]
    plain = replace(state, gate=state.gate[["product_id", "sale_id", "remaining"]])
    story = explain(replace(record, metrics=replace(record.metrics, state=plain)), failed)
    assert words_of(story)["released"] == "1 unit back to the gate; no store keeps the moment"


STRANGE = ("order-17", "order-170", "17", "o'neill  5", "-7", "order 9", "12.5s", " user 5")


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A run of an engine whose answers name no orders, and whose witness shows them without keys."""
    folder = tmp_path_factory.mktemp("nameless")

    def rename(state: FinalState) -> FinalState:
        assert state.orders is not None
        orders = state.orders.copy()
        orders.loc[2 : 1 + len(STRANGE), "order_id"] = STRANGE
        return replace(state, orders=orders.iloc[1:], unseen=frozenset({"idempotency_key"}))

    make_run(folder, spoil=rename)
    file = folder / "history.parquet"
    history = read_history(file).assign(order_id=None)
    # The second order is that of a purchase without an answer, and that of the second buyer is lost.
    unknown = history[history["outcome"] == "UNKNOWN"].iloc[0]
    history.loc[history["op"] == unknown["op"], "key"] = "k-1"
    write_history(history, file)
    state = read_state(folder)
    assert state.orders is not None
    state.orders.loc[0, "user_id"] = unknown["user_id"]
    write_state(state, folder)
    facts = msgspec.json.decode((folder / "run.json").read_bytes(), type=RunFacts)
    contract = load_description("plain").contract
    write_json(msgspec.structs.replace(facts, engine="plain", contract=contract), folder / "run.json")
    return read_record(load_run(folder))


def test_an_engine_that_names_no_orders_is_told_of_by_what_it_can_be_asked_for(nameless: Record) -> None:
    record = nameless
    lost = [f"op {op}" for op in record.history.loc[record.history["outcome"] == "ACCEPTED", "op"].head(2)]
    [check] = [
        each for each in record.run.summary["checks"] if each["name"] == "accepted is settled"
    ]  # fmt: skip
    assert check["named"] == lost
    for op in lost:
        story = explain(record, op)
        said = words_of(story)
        assert "200 ACCEPTED, which names no order, " in said["answered"]
        assert said["not settled"] == "the witness has no order left for this purchase"
        found = {look.rule: look.breaches for look in story.looks if look.breaches}
        assert found == {"accepted is settled": ["are not in the ledger"]}
        assert explain(record, f"order of {op}") == story
    known = record.history[record.history["order_id"] == "order-17"].iloc[0]
    for what in ("order-17", f"op {known['op']}", f"user {known['user_id']}"):
        story = explain(record, what)
        assert "for order order-17; no answer names it, but it fits" in words_of(story)["reserved"]
        assert "which names no order" in words_of(story)["answered"]
    unknown = first(record, "UNKNOWN")
    said = words_of(explain(record, f"op {unknown['op']}"))
    assert "but it fits the buyer, the product and the key" in said["reserved"]
    unread = replace(record.state, orders=None, unread={"ledger": "no orders can be asked for"})
    blind = replace(record, metrics=replace(record.metrics, state=unread))
    story = explain(blind, f"op {known['op']}")
    assert words_of(story)["settled"] == "nobody can say: no orders can be asked for"
    assert story.title.endswith("ACCEPTED, order unknown")


def test_the_command_that_a_report_prints_finds_any_order_id(nameless: Record) -> None:
    folder = nameless.run.folder
    for order_id in STRANGE:
        [command] = name_questions({"named": [f"order {order_id}"]}, folder)
        *start, kind, one = shlex.split(command)
        assert start == ["flashsim", "explain", folder]
        story = explain(nameless, f"{kind} {one}")
        assert story.title == f"Order {order_id}: ACCEPTED, order CONFIRMED"
        assert f"for order {order_id}; no answer" in words_of(story)["reserved"]
    shown = CliRunner().invoke(main, ["explain", folder, "order", "-7"])
    assert (shown.exit_code, shown.stdout.partition(":")[0]) == (0, "Order -7")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("op 999999", "there is no request 999999: they are 0 to "),
        ("user 999999", "there is no user 999999"),
        ("99s", "the run has no second 99"),
        ("9" * 18, "there is no request 999"),
        ("9" * 5_000, "there is no order '999"),
        (f"user {'9' * 19}", "there is no user 999"),
        (f"user {'9' * 5_000}", "there is no order 'user 999"),
        (f"{'9' * 5_000}s", "there is no order '999"),
        ("\udcff", "there is no order "),
        ("01a2", "there is no order '01a2' in this run; name an order id, a request number"),
    ],
)
def test_what_a_run_does_not_have_is_said(record: Record, what: str, said: str) -> None:
    with pytest.raises(RunError, match=said) as error:
        explain(record, what)
    assert len(str(error.value)) < 300


def test_the_command_tells_it_as_text_and_as_json(folder: Path) -> None:
    shown = CliRunner().invoke(main, ["explain", str(folder), "op", "17"])
    assert (shown.exit_code, "planned   request 17, user 18" in shown.stdout) == (0, True)
    written = CliRunner().invoke(main, ["explain", str(folder), "17", "--json"])
    story = msgspec.json.decode(written.stdout, type=Story)
    assert story.title.startswith("Request 17: ACCEPTED")
    refused = CliRunner().invoke(main, ["explain", str(folder), "99s"])
    assert (refused.exit_code, refused.stdout) == (2, "")
