"""The deliberate bugs: every one fits the engine as it is, and what is tried of them here is told apart."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from engine.local.stack import Stack
from engine.settings import Settings
from engine.tests.services import execute
from simulation.campaign.mutants import (
    Mutants,
    Trial,
    judge_trial,
    run_mutants,
    tell_coverage,
    write_mutants,
)
from simulation.campaign.mutation import Edit, Mutation, copy_engine, list_mutations, load_mutation, mutate
from simulation.errors import MutationError
from simulation.target.services import Services, services_of
from simulation.tests.histories import Ask, Terms, judge, play

# A second of load; what this machine has time for, while it runs the tests, says nothing about the engine.
SHORT: dict[str, Any] = {
    "arrivals.0.seconds": 1,
    "sales.0.stock": 500,
    "population.keyed_share": 0,
    "drain_s": 3,
    "driver.late_p99_ms": 60_000,
    "driver.timeout_ms": 60_000,
}
HARMLESS = Mutation(
    name="harmless",
    text="Nothing wrong.",
    breaks=["no oversell"],
    edits=[Edit(file="errors.py", find="class FlashgridError(", replace="class  FlashgridError(")],
    changes=SHORT,
)
RULES = {check.name for check in judge(*play([Ask(1)], [Terms()]))} | {"recovers from faults"}


def files_of(mutation: Mutation, folder: Path) -> list[Path]:
    return [folder / "engine" / edit.file for edit in mutation.edits]


@pytest.mark.parametrize("name", list_mutations())
def test_a_mutation_fits_the_engine(name: str, tmp_path: Path) -> None:
    mutation = load_mutation(name)
    assert set(mutation.breaks) <= RULES
    mutation.load_scenario()
    copy_engine(tmp_path)
    mutate(mutation, tmp_path)
    for path in files_of(mutation, tmp_path):
        assert path.suffix in (".py", ".lua", ".sql")
        if path.suffix == ".py":
            compile(path.read_text(), str(path), "exec")


def test_there_are_sixty_and_at_least_one_for_every_rule() -> None:
    mutations = [load_mutation(name) for name in list_mutations()]
    assert len(mutations) >= 60
    assert {name for mutation in mutations for name in mutation.breaks} >= RULES


def test_the_judge_tells_which_rule_alone_finds_a_bug(tmp_path: Path) -> None:
    scenario = HARMLESS.load_scenario()

    def tried(name: str, *broken: str) -> Trial:
        mutation = msgspec.structs.replace(HARMLESS, name=name)
        return judge_trial(mutation, scenario, summary_of(*broken), "")

    result = Mutants(
        command="flashsim mutants",
        trials=[
            tried("lonely", "no oversell"),
            tried("noisy", "no oversell", "payment decides"),
            # Found by a check that should not find it: that proves nothing about any rule.
            tried("missed", "payment decides"),
        ],
        rules=["no oversell", "payment decides"],
    )
    assert [trial.alone for trial in result.trials] == [True, False, False]
    assert result.coverage() == {
        "no oversell": (["lonely"], ["noisy"]),
        "payment decides": ([], ["noisy", "missed"]),
    }
    said: list[str] = []
    tell_coverage(result, said.append)
    assert said == [
        "no oversell alone catches lonely",
        "no bug that was tried is caught alone by: payment decides",
    ]
    write_mutants(result, tmp_path)
    table = (tmp_path / "mutants.md").read_text()
    assert "| caught | alone | no oversell | no oversell! |" in table
    assert "| no oversell | lonely | noisy |" in table
    assert "| payment decides | none | noisy, missed |" in table
    assert "<td>lonely</td>" in (tmp_path / "mutants.html").read_text()


async def test_what_is_mutated_outside_of_python_is_fit_to_run(
    redis: Redis, postgres_db: str, tmp_path: Path
) -> None:
    for name in list_mutations():
        copy_engine(tmp_path / name)
        mutation = load_mutation(name)
        mutate(mutation, tmp_path / name)
        for path in files_of(mutation, tmp_path / name):
            if path.suffix == ".lua":
                await redis.script_load(path.read_text())
            if path.suffix == ".sql":
                await execute(postgres_db, path.read_text())


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Edit(file="errors.py", find="no such line", replace=""), "edits.0.find: .* is there 0 times"),
        (Edit(file="errors.py", find="class", replace="us"), "edits.0.find: .* is there [0-9]+ times: class"),
        (Edit(file="errers.py", find="class", replace="us"), "edits.0.file: the engine has no errers.py"),
    ],
)
def test_a_mutation_that_does_not_fit_is_one_clear_line(edit: Edit, said: str, tmp_path: Path) -> None:
    copy_engine(tmp_path)
    with pytest.raises(MutationError, match=f"^harmless: {said}"):
        mutate(msgspec.structs.replace(HARMLESS, edits=[edit]), tmp_path)


def test_a_mutation_that_can_not_be_read_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(MutationError, match="no mutation 'unheard-of'; there are: "):
        load_mutation("unheard-of")
    (tmp_path / "odd.toml").write_text('text = "x"\nbreaks = []\nedits = []\n')
    with pytest.raises(MutationError, match=r"odd.toml: .*breaks"):
        load_mutation("odd", tmp_path)


def summary_of(*broken: str) -> dict[str, Any]:
    checks = [
        {"name": name, "state": "broken" if name in broken else "held", "detail": f"{name}!"}
        for name in sorted(RULES)
    ]
    return {"verdict": "fail" if broken else "pass", "checks": checks}


def test_only_the_checks_that_are_to_find_a_bug_find_it() -> None:
    scenario = HARMLESS.load_scenario()

    def judged(summary: dict[str, Any] | None) -> Trial:
        return judge_trial(HARMLESS, scenario, summary, "in words")

    caught = judged(summary_of("accepted is settled", "no oversell"))
    assert (caught.outcome, caught.verdict, caught.detail) == ("caught", "fail", "no oversell!")
    assert caught.caught_by == ["no oversell", "accepted is settled"]
    assert judged(summary_of("recovers from faults")).outcome == "survived"
    assert (judged(summary_of()).outcome, judged(summary_of()).detail) == ("survived", "in words")
    unplanned = judged(summary_of() | {"verdict": "unknown"})
    assert (unplanned.outcome, unplanned.verdict) == ("void", "unknown")
    assert (judged(None).outcome, judged(None).verdict, judged(None).detail) == ("void", None, "in words")


def test_its_tables_say_what_was_found(tmp_path: Path) -> None:
    trial = judge_trial(HARMLESS, HARMLESS.load_scenario(), summary_of("no oversell"), "")
    strange = msgspec.structs.replace(trial, name="<b>", outcome="survived", caught_by=[])
    result = Mutants(
        command="flashsim mutants", started_at=datetime(2026, 1, 2, tzinfo=UTC), commit="abc",
        machine={"cpu": "a processor", "cores": 2}, trials=[trial, strange],
    )  # fmt: skip
    write_mutants(result, tmp_path)
    assert msgspec.json.decode((tmp_path / "mutants.json").read_bytes(), type=Mutants) == result
    table = (tmp_path / "mutants.md").read_text()
    assert "1 of 2 deliberate bugs found" in table
    assert (
        "| harmless | Nothing wrong. | single-fault | caught | alone | no oversell | no oversell! |" in table
    )
    page = (tmp_path / "mutants.html").read_text()
    assert "1 of 2 deliberate bugs found" in page
    assert "<b>" not in page


async def test_a_bug_is_caught_and_a_harmless_change_is_not(
    settings: Settings, stack: Stack, tmp_path: Path
) -> None:
    known = services_of(stack)
    services = Services(
        redis_url=known.redis_url, postgres_url=settings.postgres_url or "", amqp_url=known.amqp_url
    )
    bug = msgspec.structs.replace(load_mutation("lost-acceptance"), changes=SHORT)
    result = await run_mutants([bug, HARMLESS], tmp_path, services, lambda _: None, "")
    found, missed = result.trials
    assert set(result.rules) == RULES - {"recovers from faults"}
    assert found.outcome == "caught", found
    assert found.caught_by[0] == "accepted is settled"
    assert (tmp_path / "lost-acceptance" / "report.html").exists()
    assert (missed.outcome, missed.verdict) == ("survived", "pass"), missed
    tables = {f"mutants.{kind}" for kind in ("json", "md", "html")}
    places = set(os.listdir(tmp_path)) - tables  # noqa: PTH208
    assert {found.folder, missed.folder} < places
    assert not (tmp_path / found.folder / "history.parquet").exists(), "a bug that is caught needs no record"
    assert (tmp_path / missed.folder / "history.parquet").exists()
