"""The scenario's tables say what was asked, and what of it is a default."""

from simulation.report.scenario import Fact, list_facts, tabulate_arrivals, tabulate_sales
from simulation.scenario.loading import list_scenarios, load_scenario


def test_many_sales_alike_are_one_row() -> None:
    scenario = load_scenario("spike", {"sales.0.products": 50, "sales.0.stock": 3})
    assert tabulate_sales(scenario) == [["1 to 50, each", "3", "none", "1", "before the load", "never"]]
    several = load_scenario("spike", {"sales": [{"product_id": i, "stock": i} for i in range(1, 10)]})
    rows = tabulate_sales(several)
    assert len(rows) == 7
    assert rows[-1][0] == "and 3 more"


def test_defaults_are_told_from_what_was_asked() -> None:
    facts = list_facts(load_scenario("declines", {"driver.processes": 2}))
    assert Fact("processes", "2", False) in facts["Driver"]
    assert Fact("timeout_ms", "5,000", True) in facts["Driver"]
    assert Fact("machines", "1", True) in facts["Topology"]
    assert Fact("payment_decline_rate", "0.1", False) in facts["Engine"]
    assert Fact("reads.order_share", "0.2", False) in facts["Population"]


def test_every_scenario_has_its_tables() -> None:
    for name in list_scenarios():
        scenario = load_scenario(name)
        assert tabulate_sales(scenario)
        assert len(tabulate_arrivals(scenario)) == len(scenario.arrivals)
        assert list_facts(scenario)["Driver"]
