"""A scenario says what is wrong with it in one line that names the key, and can be changed from outside."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.cli.running import parse_override
from simulation.drive.plan import build_plan
from simulation.errors import ScenarioError
from simulation.scenario.arrivals import expected_requests, peak_rps
from simulation.scenario.loading import FOLDER, list_scenarios, load_scenario, read_scenario
from simulation.scenario.schema import Topology


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "text": "A few.",
        "seed": 1,
        "sales": [{"product_id": 1, "stock": 5}],
        "arrivals": [{"shape": "constant", "seconds": 1, "rate_rps": 10}],
        "population": {"users": 100},
    } | changes


@pytest.mark.parametrize("name", list_scenarios())
def test_every_scenario_that_comes_along_is_valid_and_says_what_it_is(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_scenario_is_read_in_each_encoding_of_windows(tmp_path: Path, encoding: str, newline: str) -> None:
    """https://github.com/mpfaffenberger/code_puppy/pull/778: PowerShell's > writes UTF-16."""
    text = (FOLDER / "declines.toml").read_text(encoding="utf-8") + "# käse\n"
    file = tmp_path / "käse.toml"
    file.write_bytes(text.replace("\n", newline).encode(encoding))
    assert load_scenario(str(file)) == load_scenario("declines")


def test_one_entry_can_stand_for_many_products_but_none_is_sold_twice() -> None:
    sales = [{"product_id": 3, "products": 3, "stock": 7}, {"product_id": 6, "stock": 1}]
    scenario = read_scenario(minimal(sales=sales))
    assert [(sale.product_id, sale.stock) for sale in scenario.sales] == [(3, 7), (4, 7), (5, 7), (6, 1)]
    assert read_scenario(msgspec.to_builtins(scenario)) == scenario
    sales[1]["product_id"] = 5
    with pytest.raises(ScenarioError, match=r"sales\.1\.product_id: 5 is on sale already"):
        read_scenario(minimal(sales=sales))


def test_the_spike_asks_for_far_more_than_there_is() -> None:
    spike = load_scenario("spike")
    assert expected_requests(spike.arrivals) >= 160_000
    assert spike.sales[0].stock == 10_000
    assert 20 <= spike.duration_s() <= 40
    assert [name for name, _, _ in spike.phases()] == ["base", "peak", "tail"]


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("seed", -1, "seed: expected"),
        ("seed", "x", "seed: expected"),
        ("speed", 1, "speed: there is no such key"),
        ("name", "../etc", "name: expected"),
        ("sales", [], "sales: expected"),
        ("sales.0.stock", -1, "sales.0.stock: expected `int` >= 0, got -1"),
        ("sales.0.stok", 5, "sales.0.stok: there is no such key"),
        ("sales.0.limit", 0, "sales.0.limit: expected"),
        ("sales.1.stock", 5, "sales.1.stock: '1' must be a number below 1"),
        ("sales.first.stock", 5, "sales.first.stock: 'first' must be a number below 1"),
        ("sales.0", {"stock": 5}, "sales.0.product_id: is missing"),
        (
            "arrivals.0.shape",
            "square",
            "arrivals.0.shape: must be one of constant, decay, linear, sine, trace, got 'square'",
        ),
        ("arrivals.0.seconds", 0, "arrivals.0.seconds: expected"),
        ("arrivals.0.seconds", float("nan"), "arrivals.0.seconds: expected"),
        ("arrivals.0.rate_rps", float("inf"), "arrivals.0.rate_rps: expected"),
        ("arrivals.0.to_rps", 7, "arrivals.0.to_rps: there is no such key"),
        ("arrivals.2.to_rps", 0, "arrivals.2: a decay needs 0 < to_rps < rate_rps"),
        ("arrivals.0.rate_rps", 1e7, "arrivals: 51,"),
        ("population.users", 0, "population.users: expected"),
        ("population.keyed_share", 1.5, "population.keyed_share: expected"),
        ("population", 3, "population: expected"),
        ("driver.processes", 0, "driver.processes: expected"),
        ("driver.proceses", 1, "driver.proceses: there is no such key"),
        ("engine.payment_decline_rate", 2, "engine.payment_decline_rate: Expected"),
        ("engine.no_such_setting", 2, "engine.no_such_setting: "),
        ("engine.workers", [1], "engine: expected"),
        ("text.more", 1, "text.more: there is no such key"),
    ],
)
def test_a_bad_key_is_named(key: str, value: Any, names: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario("spike", {key: value})
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scenario_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ScenarioError, match=r"no scenario 'spyke' .*; there are: .*spike"):
        load_scenario("spyke")


def test_a_file_that_can_t_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"gone\.toml: No such file"):
        load_scenario(tmp_path / "gone.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "x"\nseed = [1,\n')
    with pytest.raises(ScenarioError, match=r"bad\.toml: is not TOML: .*at line 2, the end"):
        load_scenario(bad)
    bad.write_bytes(b"\xff\x00")
    with pytest.raises(ScenarioError, match=r"bad\.toml: is not TOML"):
        load_scenario(bad)


def test_a_product_is_on_sale_once() -> None:
    with pytest.raises(ScenarioError, match=r"sales\.1\.product_id: 1 is on sale already"):
        read_scenario(minimal(sales=[{"product_id": 1, "stock": 1}, {"product_id": 1, "stock": 2}]))


def test_a_scenario_without_requests_is_refused() -> None:
    with pytest.raises(ScenarioError, match="arrivals: 0 requests"):
        read_scenario(minimal(arrivals=[{"shape": "constant", "seconds": 1, "rate_rps": 0}]))


def test_dotted_keys_change_a_scenario() -> None:
    scenario = load_scenario("spike", {"sales.0.limit": 2, "driver.connections": 128, "engine.workers": 2})
    assert scenario.sales[0].limit == 2
    assert scenario.driver.connections == 128
    assert scenario.engine == {"workers": 2}


@given(rate_rps=st.floats(1, 100_000), duration_s=st.floats(0.1, 300))
def test_rate_sets_the_peak_and_duration_the_length(rate_rps: float, duration_s: float) -> None:
    spike = load_scenario("spike")
    scaled = (
        load_scenario("spike", rate_rps=rate_rps, duration_s=duration_s)
        if rate_rps * duration_s > 10
        else None
    )
    if scaled is None:
        return
    assert peak_rps(scaled.arrivals) == pytest.approx(rate_rps)
    assert scaled.duration_s() == pytest.approx(duration_s)
    ratio = rate_rps / peak_rps(spike.arrivals) * duration_s / spike.duration_s()
    assert expected_requests(scaled.arrivals) == pytest.approx(expected_requests(spike.arrivals) * ratio)


def test_stock_and_seed_have_shortcuts() -> None:
    scenario = load_scenario("spike", stock=7, seed=99)
    assert (scenario.sales[0].stock, scenario.seed) == (7, 99)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_rate_or_a_duration_of_nothing_is_refused(value: float) -> None:
    with pytest.raises(ScenarioError, match="rate"):
        load_scenario("spike", rate_rps=value)
    with pytest.raises(ScenarioError, match="duration"):
        load_scenario("spike", duration_s=value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("sales.0.stock=500", "sales.0.stock", 500),
        ("driver.late_p99_ms = 2.5", "driver.late_p99_ms", 2.5),
        ("driver.connections_may_run_out=true", "driver.connections_may_run_out", True),
        ("name=night", "name", "night"),
        ('name="night"', "name", "night"),
        ("text=a = b", "text", "a = b"),
    ],
)
def test_an_override_reads_like_toml(text: str, key: str, value: Any) -> None:
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize("text", ["", "stock", "=5"])
def test_an_override_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(ScenarioError, match="key=value"):
        parse_override(text)


def test_a_trace_is_read_beside_its_scenario_and_goes_where_that_goes(tmp_path: Path) -> None:
    (tmp_path / "crowd.csv").write_text("requests\n10\n40\n")
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\ntext = "Ours."\nseed = 1\nsales = [{product_id = 1, stock = 5}]\n'
        'arrivals = [{shape = "trace", file = "crowd.csv"}]\npopulation = {users = 9}\n'
    )
    scenario = load_scenario(file)
    assert (peak_rps(scenario.arrivals), scenario.duration_s()) == (40, 2)
    fine = load_scenario(file, {"arrivals.0.step_s": 0.5})
    assert (peak_rps(fine.arrivals), fine.duration_s()) == (80, 1)
    assert expected_requests(fine.arrivals) == expected_requests(scenario.arrivals) == 50
    with pytest.raises(ScenarioError, match=r"arrivals\.0\.step_s: must be seconds"):
        load_scenario(file, {"arrivals.0.step_s": 0})
    scaled = load_scenario(file, rate_rps=80, duration_s=1)
    assert expected_requests(scaled.arrivals) == pytest.approx(50)
    coarse = load_scenario(file, {"arrivals.0.step_s": 172_800})
    assert coarse.duration_s() == 345_600
    assert expected_requests(coarse.arrivals) == pytest.approx(50)
    with pytest.raises(ScenarioError, match=r"mine\.toml: arrivals\.0\.file: must name the file"):
        load_scenario(file, {"arrivals.0.file": 7})
    (tmp_path / "crowd.csv").unlink()
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=type(scenario)) == scenario
    assert len(build_plan(scenario)) > 20


def test_the_rows_of_a_trace_are_bought_as_they_were(tmp_path: Path) -> None:
    rows = [(round(0.013 * number, 3), 500 + number % 7, 5 + number % 3 // 2) for number in range(400)]
    lines = ["user,time,product", *(f"{user},{at_s},{product}" for at_s, user, product in rows)]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\ntext = "Ours."\nseed = 1\nsales = [{product_id = 5, products = 2, stock = 5}]\n'
        'arrivals = [{shape = "constant", seconds = 1.5, rate_rps = 3}, {shape = "trace", file = "rows.csv"}]'
        "\npopulation = {users = 9}\n"
    )
    scenario = load_scenario(file)
    plan = build_plan(scenario)
    replayed = plan.intended_ns >= 1_500_000_000
    bought = [*zip(plan.user_id[replayed], plan.product_id[replayed], strict=True)]
    assert bought == [row[1:] for row in rows]
    late_s = plan.intended_ns[replayed] / 1e9 - 1.5 - [at_s for at_s, *_ in rows]
    assert abs(late_s).max() <= 0.1, "a row is played in its step"
    assert plan.user_id[~replayed].max() <= 9
    twice = build_plan(load_scenario(file, rate_rps=2 * peak_rps(scenario.arrivals)))
    replayed = twice.intended_ns >= 1_500_000_000
    assert twice.user_id[replayed].tolist() == [user for _, user, _ in rows for _ in range(2)]
    with pytest.raises(ScenarioError, match=r"rows\.csv: line 4: product 6 is not on sale; there are 5$"):
        load_scenario(file, {"sales.0.products": 1})
    with pytest.raises(
        ScenarioError, match=r"mine\.toml: population\.bots: there are none where arrivals\.1"
    ):
        load_scenario(file, {"population.bots": {"users": 1, "share": 0.5}})
    inline = {"shape": "trace", "seconds": 1, "rate_rps": 1, "counts": [1], "users": [1]}
    with pytest.raises(ScenarioError, match=r"arrivals\.0\.products: 7 is not on sale"):
        load_scenario("spike", {"arrivals": [inline | {"products": [7]}]})
    with pytest.raises(ScenarioError, match="as many users as products"):
        load_scenario("spike", {"arrivals": [inline]})


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("restocks", [{"at_s": 3, "product_id": 2, "stock": 1}], "restocks.0.product_id: 2 is not on sale"),
        ("restocks", [{"at_s": 99, "product_id": 1, "stock": 1}], "restocks.0.at_s: the load lasts 30 s"),
        ("abort_when", ["oversold > 0"], "abort_when.0: 'oversold > 0': under the load there are only"),
        ("abort_when", ["error.share > 0.5 during peak"], "under the load there are only"),
        ("abort_when", ["accepted.response.p99 > 9"], "under the load there are only"),
    ],
)
def test_what_happens_under_the_load_is_checked_beforehand(key: str, value: Any, names: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario("spike", {key: value})
    assert names in str(caught.value)


def test_a_longer_run_is_restocked_later() -> None:
    restocks = [{"at_s": 3, "product_id": 1, "stock": 1}]
    assert load_scenario("spike", {"restocks": restocks}, duration_s=60).restocks[0].at_s == 6


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbf" + (FOLDER / "spike.toml").read_bytes())
    assert load_scenario(file).sales == load_scenario("spike").sales


def test_all_errors_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "bad"\ntext = "Wrong."\nseed = "seven"\n\n[[sales]]\nproduct_id = 1\nstok = 5\nstock = 0.5\n'
        '\n[[arrivals]]\nshape = "constant"\nseconds = 1\nrate_rps = -10\n\n[population]\nuserz = 100\n'
    )
    file.write_text('thresholds = ["oversold = 0"]\n' + file.read_text())
    with pytest.raises(ScenarioError) as raised:
        load_scenario(file)
    assert str(raised.value).splitlines() == [
        "bad.toml:4: seed: expected `int`, got `str`",
        "bad.toml:8: sales.0.stok: there is no such key (did you mean 'stock'?)",
        "bad.toml:9: sales.0.stock: expected `int`, got `float`",
        "bad.toml:14: arrivals.0.rate_rps: expected `float` >= 0.0, got -10",
        "bad.toml:17: population.userz: there is no such key (did you mean 'users'?)",
        "bad.toml:16: population.users: is missing",
        "bad.toml:1: thresholds.0: 'oversold = 0': must be a metric, a sign and a limit, as in"
        " accepted.response.p99 < 50",
    ]


def test_an_error_that_nothing_fits_hides_no_other(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "bad"\ntext = "Wrong."\n[[sales]]\nproduct_id = 1\nstock = 1\n'
        '[[arrivals]]\nkind = "constant"\nseconds = 1\n[population]\nusers = 0\n'
    )
    with pytest.raises(ScenarioError) as raised:
        load_scenario(file)
    said = str(raised.value).splitlines()
    assert (
        said[0] == "bad.toml:6: arrivals.0.shape: is missing; there are: constant, decay, linear, sine, trace"
    )
    assert "bad.toml:10: population.users: expected `int` >= 1, got 0" in said
    with pytest.raises(ScenarioError, match=r"^spike\.toml: arrivals: must be tables \[\[arrivals\]\]"):
        load_scenario("spike", {"arrivals": {"shape": "trace"}})
    with pytest.raises(ScenarioError) as raised:
        load_scenario("spike", {"thresholds": ["sould == 1", "oversold = 0", "oversold == 0"]})
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "thresholds.0",
        "thresholds.1",
    ]


def test_a_value_that_was_set_outside_is_in_no_line_and_the_others_keep_theirs(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"^spike\.toml: sales\.0\.stok: there is no such key"):
        load_scenario("spike", {"sales.0.stok": 1})
    file = tmp_path / "bad.toml"
    file.write_text(
        'name = "bad"\ntext = "Wrong."\nseed = -1\nrecover_s = 0\n[[sales]]\nproduct_id = 0\nstock = -5\n'
        '[[arrivals]]\nshape = "trace"\n[population]\nusers = 0\n'
    )
    with pytest.raises(ScenarioError, match=r"^bad\.toml:8: arrivals\.0\.file: must name the file"):
        load_scenario(file, seed=1)
    curve = {"shape": "constant", "seconds": 1, "rate_rps": 1}
    with pytest.raises(ScenarioError) as raised:
        load_scenario(file, {"population": {"users": 0}, "arrivals": [curve]}, seed=-2, stock=-3)
    assert {line.partition(": expected")[0] for line in str(raised.value).splitlines()} == {
        "bad.toml: seed",
        "bad.toml:4: recover_s",
        "bad.toml:6: sales.0.product_id",
        "bad.toml: sales.0.stock",
        "bad.toml: population.users",
    }
    with pytest.raises(ScenarioError) as raised:
        load_scenario("spike", {"thresholds": ["oversold == 0"], "sales.0.product_id": [1] * 999})
    assert len(str(raised.value)) < 250


def test_a_misspelt_metric_or_scenario_is_guessed() -> None:
    with pytest.raises(ScenarioError, match=r"no scenario 'spik' \(did you mean 'spike'\?\); there are: "):
        load_scenario("spik")
    with pytest.raises(ScenarioError, match=r"thresholds\.0: .*\(did you mean 'accepted\.response\.p99'\?\)"):
        load_scenario("spike", {"thresholds": ["accepted.respons.p99 < 5"]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topology": {"machines": 2}}, "topology.machines: must be one of 1, 3, got 2"),
        ({"topology": {"machines": 1, "copies": 2}}, "topology.copies: 2 need as many machines, got 1"),
        ({"topology": {"copies": 4}}, "topology.copies: expected `int` <= 3, got 4"),
        ({"topology": {"front_doors": 0}}, "topology.front_doors: expected `int` >= 1, got 0"),
        ({"topology": {"doors": 2}}, "topology.doors: there is no such key"),
        ({"engine": {"gate_shards": 3}}, "engine.gate_shards: is topology.shards"),
        ({"engine": {"gate_copies": 2}}, "engine.gate_copies: is topology.copies"),
        (
            {
                "topology": {"machines": 3},
                "faults": [{"kind": "kill", "on": "redis", "at_s": 0.5, "seconds": 1}],
            },
            "faults.0.on: redis is several nodes on 3 machines",
        ),
    ],
)
def test_a_topology_that_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(said)):
        read_scenario(minimal(**changes))


def test_a_scenario_without_a_topology_has_one_machine() -> None:
    assert read_scenario(minimal()).topology == Topology(machines=1, front_doors=1, shards=1, copies=1)
    wide = read_scenario(minimal(topology={"machines": 3, "front_doors": 2, "shards": 3, "copies": 3}))
    assert build_plan(wide).intended_ns.tolist() == build_plan(read_scenario(minimal())).intended_ns.tolist()
