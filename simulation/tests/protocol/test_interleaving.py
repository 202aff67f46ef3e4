"""The engine's real steps in any order: orders with a name and examples hold, and deliberate bugs show."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from simulation.cli import main
from simulation.protocol.bugs import (
    ORDERS,
    Attempt,
    Attempts,
    Shown,
    play_order,
    write_attempts,
)
from simulation.protocol.example.processes import Stores
from simulation.protocol.example.world import World
from simulation.protocol.hunt import BLOCK, FEW_RULES, Found, Hunts, play, write_hunts
from simulation.protocol.records import Record

# On a busy machine each step waits for its turn at the processor.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", ORDERS)
def test_an_order(stores: Stores, name: str) -> None:
    play_order(stores, name)


def test_the_same_seed_gives_the_same_examples(stores: Stores) -> None:
    once, again = (play(stores, 3, 3) for _ in range(2))
    assert once.faults == again.faults == []
    assert once.steps == again.steps
    assert once.actions == again.actions
    assert once.steps != play(stores, 4, 3).steps


@pytest.mark.parametrize("place", ["machine.find_faults", "machine.World.take_copy"])
@pytest.mark.parametrize("kind", [AssertionError, LookupError])
def test_an_error_in_an_example_is_a_fault(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, place: str, kind: type[Exception]
) -> None:
    def fail(world: World) -> list[str]:
        raise kind("the example fails")

    monkeypatch.setattr(f"simulation.protocol.{place}", fail)
    found = play(stores, 3, BLOCK, shrink=False)
    assert found.faults == [f"{kind.__name__}: the example fails"]
    assert any("asks" in line for line in found.story)


def test_an_error_of_the_whole_judge_is_a_fault(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(records: list[Record]) -> Iterator[tuple[Record, list[str]]]:
        raise LookupError("the judge fails")

    monkeypatch.setattr("simulation.protocol.hunt.judge_records", fail)
    assert play(stores, 3, 1).faults == ["LookupError: the judge fails"]


def test_the_shortest_program_that_shows_a_fault_is_told(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simulation.protocol.machine.find_faults", lambda world: ["all is wrong"])
    said: list[str] = []
    found = play(stores, 3, 1, rules=5, say=said.append)
    assert found.faults == ["all is wrong"]
    assert said == ["seed 3: found at example 1, making it short"]
    program = [line.strip() for line in found.program]
    assert any(line.startswith("state.begin(") for line in program)
    assert program[-1] == "state.teardown()"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_signal_ends_a_hunt_with_its_page(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, wrong: bool
) -> None:
    def find(world: World) -> list[str]:
        asked.append(world)
        if len(asked) == 4:
            os.kill(os.getpid(), number)
        return ["all is wrong"] if wrong and len(asked) > 3 else []

    asked: list[World] = []
    monkeypatch.setattr("simulation.protocol.hunt.BLOCK", 3)
    monkeypatch.setattr("simulation.protocol.hunt.private_stores", lambda: nullcontext(stores))
    monkeypatch.setattr("simulation.protocol.machine.find_faults", find)
    ended = CliRunner().invoke(main, ["interleave", "--minutes=60", f"--out={tmp_path}"])
    [found] = msgspec.json.decode((tmp_path / "interleave.json").read_bytes())["hunts"]
    assert (found["seed"], found["is_stopped"]) == (2, True)
    if wrong:
        assert (ended.exit_code, found["faults"]) == (1, ["all is wrong"])
        assert "again: flashsim interleave --minutes 0 --seed 2" in ended.stdout
    else:
        assert (ended.exit_code, found["faults"], found["examples"]) == (2, [], 3)
        assert "well, until it was stopped" in (tmp_path / "interleave.md").read_text()


def test_pages_tell_what_hunts_found(tmp_path: Path) -> None:
    found = Found(
        seed=7, examples=25, steps=Counter(a=1_000, b=200), faults=["a unit <too> many"],
        actions=Counter({"aim: stall, wipe": 4_321}),
    )  # fmt: skip
    write_hunts(Hunts(command="c", hunts=[found]), tmp_path)
    shown = [Shown(["an order <that> fails"], found), Shown([], Found(seed=7)), Shown([], found)]
    bugs = [
        Attempt(name="b", text="B.", model=None, shown=each, control=control)
        for each, control in zip(shown, ([], [], ["the same"]), strict=True)
    ]
    write_attempts(Attempts(command="c", bugs=bugs), tmp_path)
    for name, words in (
        ("interleave", "0 of 1"),
        ("bugs", "1 of 3 deliberate bugs show in the engine's steps, 1 of them"),
    ):
        page = (tmp_path / f"{name}.html").read_text()
        assert words in page.replace("&#39;", "'")
        assert "a unit &lt;too&gt; many" in page
        assert "1,200" in page
    assert "an order &lt;that&gt; fails" in page
    assert "| aim: stall, wipe | 4,321 |" in (tmp_path / "interleave.md").read_text()


@pytest.mark.parametrize("first_seed", [1, 4, 7, 10])
def test_examples_of_every_kind_hold(stores: Stores, first_seed: int) -> None:
    total = Found(seed=first_seed)
    for number in range(first_seed, first_seed + 3):
        total.add(play(stores, number, BLOCK, rules=FEW_RULES))
        assert "\n".join([*total.story, *total.program, *total.faults]) == ""
    assert total.examples >= 3 * BLOCK
    assert total.actions.keys() >= {
        "buy", "open", "crash", "copy", "go back", "wipe", "restart", "lose channel", "6000 ms", "rest",
        "fall asleep", "end stall", "go on: cut", "go on: answer lost", "go on: late", "aim: reached",
    }  # fmt: skip
