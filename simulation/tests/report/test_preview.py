"""A scenario can be looked at before it is run."""

import numpy as np
import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.report.preview import ROWS, count_arrivals, preview
from simulation.scenario.loading import load_scenario


@pytest.mark.parametrize("name", ["spike", "herd", "wave", "many-products", "replay"])
def test_it_draws_the_curve_and_names_phases_and_thresholds(name: str) -> None:
    scenario = load_scenario(name)
    text = preview(scenario, columns=60)
    assert all(len(line) <= 70 for line in text.splitlines()[2 : 2 + ROWS])
    assert "█" in text.splitlines()[2 + ROWS - 1]
    assert all(threshold in text for threshold in scenario.thresholds)


def test_the_bins_hold_every_request() -> None:
    scenario = load_scenario("wave")
    rates = count_arrivals(scenario, np.linspace(0, scenario.duration_s(), 31))
    assert rates.sum() == pytest.approx(30 * 2_100, rel=0.03)
    assert rates[4:6].mean() > 10 * rates[0]


def test_the_command_draws_it() -> None:
    done = CliRunner().invoke(main, ["show", "spike", "--duration", "3"])
    assert done.exit_code == 0
    assert "╵base" in done.output
