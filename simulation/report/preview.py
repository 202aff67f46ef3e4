"""A scenario before it is run: its arrival curve, in the terminal."""

from typing import Final

import numpy as np

from simulation.drive.plan import build_plan
from simulation.judge.numbers.latency import Floats
from simulation.model.history import BUY
from simulation.scenario.schema import Scenario

ROWS: Final = 10
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"


def count_arrivals(scenario: Scenario, edges: Floats) -> Floats:
    """Return requests per second between edges in seconds from the start of the run, by the seed."""
    plan = build_plan(scenario)
    counts, _ = np.histogram(plan.intended_ns[plan.kind == BUY] / 1e9, edges)
    rates: Floats = counts / np.diff(edges)
    return rates


def preview(scenario: Scenario, columns: int = 72) -> str:
    """Return the arrival curve in `columns` characters, with its phases and what is on sale."""
    end_s = scenario.duration_s()
    rates = count_arrivals(scenario, np.linspace(0, end_s, columns + 1))
    top = max(float(rates.max()), 1.0)
    steps = len(_BLOCKS) - 1
    heights = np.rint(rates / top * ROWS * steps).astype(int)
    lines = []
    for row in reversed(range(ROWS)):
        label = f"{top:,.0f}/s" if row == ROWS - 1 else "0" if row == 0 else ""
        blocks = "".join(_BLOCKS[min(max(height - row * steps, 0), steps)] for height in heights)
        lines.append(f"{label:>9} {blocks.rstrip()}")
    starts = [" "] * columns
    for name, start_s, phase_end_s in scenario.phases():
        at, end = (int(moment / end_s * columns) for moment in (start_s, phase_end_s))
        starts[at:end] = f"╵{name}".ljust(end - at)[: end - at]
    units = sum(sale.stock for sale in scenario.sales)
    goods = f"{units:,} units" + (f" of {len(scenario.sales):,} products" if len(scenario.sales) > 1 else "")
    requests = float(rates.sum()) * end_s / columns
    return "\n".join(
        [
            f"{scenario.name}: {scenario.text}",
            "",
            *lines,
            f"{'':10}{''.join(starts).rstrip()}",
            "",
            f"{requests:,.0f} requests in {end_s:g} s for {goods}, seed {scenario.seed}",
            *(
                f"restocks {each.stock:,} units of product {each.product_id} at {each.at_s:g} s"
                for each in scenario.restocks
            ),
            *(f"stops early when {text}" for text in scenario.abort_when),
            *(f"fails unless {text}" for text in scenario.thresholds),
        ]
    )
