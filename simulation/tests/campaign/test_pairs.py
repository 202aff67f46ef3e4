"""Faults in pairs: every two kinds meet, each pair can be done, and the seed alone decides what it is."""

from datetime import UTC, datetime
from itertools import combinations_with_replacement
from pathlib import Path

import click
import pytest

from simulation.campaign.pairs import CHANGES, Pair, Pairs, draw_pair, list_pairs, write_pairs
from simulation.cli.proving import _choose
from simulation.scenario.checks import check_faults
from simulation.scenario.fault import TARGETS
from simulation.scenario.loading import load_scenario

SURVIVED = Pair(
    "kill+wipe", "kill relay", "wipe redis 0.51 s later", "pass", "All 17 rules hold.",
    accepted=9_000, refused=1_234, unknown=56, sold=8_950, oversold=0, healed_s=1.2, drained_s=0.03,
)  # fmt: skip


def test_every_two_kinds_meet() -> None:
    met = [frozenset(name.split("+")) for name in list_pairs()]
    assert len(set(met)) == len(met) >= 136
    assert set(met) == {frozenset(pair) for pair in combinations_with_replacement(TARGETS, 2)}


@pytest.mark.parametrize("seed", range(20))
def test_a_pair_can_be_done_and_leaves_time_to_recover(seed: int) -> None:
    duration_s = load_scenario("single-fault", CHANGES).duration_s()
    for name in list_pairs():
        first, second = draw_pair(name, seed)
        check_faults([first, second], duration_s)
        assert sorted([first.kind, second.kind]) == sorted(name.split("+"))
        assert first.at_s <= second.at_s
        assert max(first.end_s, second.end_s) <= duration_s - 2


def test_seeds_draw_every_component_either_order_and_both_ways_to_meet() -> None:
    drawn = [draw_pair("drop_connections+wipe", seed) for seed in range(1, 60)]
    assert drawn[0] == draw_pair("drop_connections+wipe", 1)
    assert {fault.on for pair in drawn for fault in pair} == {"redis", "rabbitmq", "postgres"}
    assert {pair[0].kind for pair in drawn} == {"drop_connections", "wipe"}
    assert {pair[1].at_s < pair[0].end_s for pair in drawn} == {True, False}


def test_only_takes_a_pair_in_either_order_and_refuses_what_is_none() -> None:
    assert _choose(list_pairs(), ["wipe+kill", "kill+kill"]) == ["kill+kill", "kill+wipe"]
    assert _choose(list_pairs(), []) == list_pairs()
    for wrong in ("kill", "kill+explode", "kill+wipe+wipe", "kill:redis"):
        with pytest.raises(click.BadParameter, match="there is no"):
            _choose(list_pairs(), [wrong])


def test_its_tables_say_what_the_runs_gave(tmp_path: Path) -> None:
    lost = Pair(
        "cut+wipe", "<b>", "wipe redis meanwhile", "fail", "1 of 17 rules broken: recovers from faults."
    )
    result = Pairs(
        command="flashsim matrix --pairs", started_at=datetime(2026, 1, 2, tzinfo=UTC), commit="abc",
        machine={"cpu": "a processor", "cores": 2}, pairs=[SURVIVED, lost],
    )  # fmt: skip
    write_pairs(result, tmp_path)
    table = (tmp_path / "pairs.md").read_text()
    assert "1 of 2 pairs of faults survived" in table
    assert (
        "| kill+wipe | kill relay | wipe redis 0.51 s later | pass | 9,000 | 1,234 | 56 | 8,950 | 0 | 1.2 s |"
    ) in table
    assert "meanwhile | fail | – | – | – | – | – | – | – |" in table
    page = (tmp_path / "pairs.html").read_text()
    assert "1 of 2 pairs of faults survived" in page
    assert "<b>" not in page
