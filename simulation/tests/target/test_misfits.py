"""A wrong description ends as unknown and says what to look at; an engine that loses orders fails."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from engine.settings import Settings
from engine.tests.services import execute
from simulation.errors import EngineError
from simulation.run import find_target, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.foreign.engine import Engine, find_engine
from simulation.target.witness import doubts, trial
from simulation.target.witness.doubts import doubt_words
from simulation.tests.drive.test_open_loop import free_port
from simulation.tests.target.test_foreign import is_open, states
from simulation.tests.test_run import PATIENT
from simulation.verdict import judge_run

TICKETS = Path(__file__).with_name("ticket_engine.py")
READS = {"stock_share": 0.1, "order_share": 0.3, "pause_ms": 100, "most": 5}
DESCRIPTION = TICKETS.with_suffix(".toml").read_text()
ORDER = DESCRIPTION[DESCRIPTION.index("[order]") : DESCRIPTION.index("[sql]")]
ELSEWHERE = {"FROM tickets WHERE": "FROM tickets WHERE who < 0 AND"}
"""A statement that shows no order."""
NO_PATH = {'path = "/tickets/': 'path = "/orders/'}


@pytest.fixture
def never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for orders that never come."""
    monkeypatch.setattr(trial, "WAIT_S", 0.5)
    monkeypatch.setitem(PATIENT, "drain_s", 2)


def small_sale(**overrides: Any) -> Scenario:
    changes = (
        {"drain_s": 30, "thresholds": ["accepted.count > 0"], "population.reads": READS} | PATIENT | overrides
    )
    return load_scenario("spike", changes, rate_rps=200, duration_s=1, stock=30)


async def judge(scenario: Scenario, folder: Path, engine: Engine, url: str) -> dict[str, Any]:
    target = find_target((url,), None, None, scenario, engine)
    await run(scenario, folder, lambda _: None, target=target, engine=engine)
    return judge_run(folder)


@asynccontextmanager
async def ticket_engine(postgres_url: str, *words: str) -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, TICKETS, str(port), postgres_url, *words)
    try:
        await is_open(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def judge_tickets(
    settings: Settings,
    tmp_path: Path,
    changes: dict[str, str],
    witness: Any,
    *words: str,
    thresholds: Sequence[str] = ("accepted.count > 0",),
) -> dict[str, Any]:
    text = DESCRIPTION
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "shop.toml"
    file.write_text(text)
    engine = find_engine(str(file), witness, (None, None, settings.postgres_url))
    async with ticket_engine(str(settings.postgres_url), *words) as url:
        return await judge(small_sale(thresholds=list(thresholds)), tmp_path / "run", engine, url)


@pytest.mark.parametrize(("witness", "verdict"), [("sql", "pass"), ("http", "unknown")])
async def test_an_engine_of_another_kind_is_judged_by_its_description(
    settings: Settings, tmp_path: Path, witness: str, verdict: str
) -> None:
    summary = await judge_tickets(settings, tmp_path, {}, witness)
    assert summary["verdict"] == verdict, summary["verdict_in_words"]
    assert (summary["outcomes"]["accepted"], summary["stock"]["remaining"]) == (30, 0)
    assert (summary["reads"]["stock"]["shown"], summary["reads"]["order"]["final"]) > (0, 0)
    assert summary["misfits"] == []
    found = states(summary)
    assert {found[name] for name in ("accepted is settled", "reads are true", "units are conserved")} == {
        "held"
    }


@pytest.mark.parametrize(
    ("changes", "witness", "said"),
    [
        ({"upper(id::text)": "id::text"}, "sql", "and none by an id that a buyer was told (one"),
        (ELSEWHERE, "sql", "but the engine shows "),
        (ELSEWHERE | {ORDER: ""}, "sql", "but the table tickets has at least "),
        (
            {'path = "/basket"': 'path = "/buy"'},
            "sql",
            "no answer to a purchase has a status that buy.answers lists",
        ),
        ({"status = 202": "status = 201"}, "sql", "30 purchases were answered 202, and none ACCEPTED"),
        (
            {"status = 410": "status = 429"},
            "sql",
            "purchases were answered 410, all of them after the stock was sold",
        ),
        (
            {'order_id = "header:Location"': 'order_id = "ticket"'},
            "sql",
            "answers 202 to purchases says what an order is called at ticket, a text, as the contract says",
        ),
        (
            {'path = "/tickets/': 'path = "/orders/'},
            "http",
            "/orders/{order_id} answers as a path that does not exist",
        ),
        (
            {'status = "ticket.state"': 'status = "state"'},
            "http",
            '/tickets/{order_id} answers 200 \'{"ticket"',
        ),
        (
            {"header:Location": "header:X-Trace"},
            "http",
            "an order is shown under what its answer says at header:Location, and not at header:X-Trace",
        ),
        (
            {'path = "/tickets/': 'path = "/orders/'},
            "sql",
            "/orders/{order_id} answers as a path that does not exist",
        ),
    ],
)
@pytest.mark.usefixtures("never_shown")
async def test_a_description_that_does_not_fit_is_no_fault_of_the_engine(
    settings: Settings, tmp_path: Path, changes: dict[str, str], witness: str, said: str
) -> None:
    summary = await judge_tickets(settings, tmp_path, changes, witness)
    assert said in " ".join(summary["misfits"])
    assert summary["verdict"] == "unknown", summary["verdict_in_words"]


@pytest.mark.parametrize(
    ("changes", "witness", "words"),
    [
        ({}, "sql", ""),
        ({ORDER: ""}, "sql", ""),
        ({}, "http", ""),
        # Its path answers OPTIONS, and a path that does not exist does not.
        ({}, "http", "mute"),
        # It says itself that it has no such ticket.
        ({}, "sql", "log named mute"),
        # What it writes names no ticket.
        ({ORDER: ""}, "sql", "log"),
        # The ticket of the purchase before the load was found.
        ({ORDER: ""}, "sql", "first log named"),
        ({}, "http", "first mute"),
    ],
)
async def test_an_engine_that_loses_every_order_fails(
    request: pytest.FixtureRequest,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    witness: str,
    words: str,
) -> None:
    if "first" not in words:
        request.getfixturevalue("never_shown")
    if "log" not in words:
        # Nothing is written that the server's statistics could still tell of.
        monkeypatch.setattr(doubts, "REPORT_S", 0.0)
    summary = await judge_tickets(settings, tmp_path, changes, witness, "lose", *words.split())
    assert summary["misfits"] == []
    assert summary["verdict"] == "fail", summary["verdict_in_words"]
    assert states(summary)["accepted is settled"] == "broken"


@pytest.mark.usefixtures("never_shown")
async def test_a_table_that_names_the_orders_may_be_the_one_that_the_statement_should_read(
    settings: Settings, tmp_path: Path
) -> None:
    summary = await judge_tickets(settings, tmp_path, {ORDER: ""}, "sql", "lose", "log", "named")
    assert re.search(r"but the table log has at least \d+ rows more", " ".join(summary["misfits"]))
    assert summary["verdict"] == "unknown", summary["verdict_in_words"]


def test_statuses_that_the_description_does_not_know_are_its_fault() -> None:
    assert "'sold': does order.words lack what it means" in (
        doubt_words(pd.Series(["PENDING", "sold"])) or ""
    )
    assert doubt_words(pd.Series(["sold", "CONFIRMED"])) is None
    assert doubt_words(pd.Series(["PENDING"])) is None


async def test_a_misfit_excuses_only_thresholds_that_hang_on_it(settings: Settings, tmp_path: Path) -> None:
    thresholds = ["accepted.count > 1000", "sold_out.count > 0", "oversold == 0"]
    changes = {"status = 410": "status = 429"}
    summary = await judge_tickets(settings, tmp_path, changes, "sql", thresholds=thresholds)
    assert summary["misfits"]
    assert [each["state"] for each in summary["thresholds"]] == ["broken", "not judged", "held"]
    assert summary["verdict"] == "fail"


async def test_orders_of_an_earlier_run_are_no_affair_of_the_next(settings: Settings, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        summary = await judge_tickets(settings, tmp_path / name, {}, "sql", "keep")
        assert summary["verdict"] == "pass", summary["verdict_in_words"]
        assert summary["stock"]["sold"] == 30
        # Both runs send the same keys.
        await execute(str(settings.postgres_url), "UPDATE tickets SET request = NULL")


@pytest.mark.parametrize(
    "changes",
    [
        {"status = 410": "status = 429"},
        {'order_id = "header:Location"': 'order_id = "ticket"'},
        {"status = 202": "status = 204", "status = 410": "status = 429"},
    ],
)
async def test_an_oversell_is_found_though_the_contract_lacks_how_buyers_are_answered(
    settings: Settings, tmp_path: Path, changes: dict[str, str]
) -> None:
    summary = await judge_tickets(settings, tmp_path, changes, "sql", "oversell")
    assert summary["misfits"]
    assert summary["verdict"] == "fail", summary["verdict_in_words"]
    assert states(summary)["no oversell"] == "broken"


async def test_a_stock_that_is_not_shown_is_told_before_the_load(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not show the stock of 1: 200"):
        await judge_tickets(settings, tmp_path, {"X-Units-Left": "X-Left"}, "http")
