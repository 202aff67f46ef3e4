"""The scenario of a run as tables of its report: what was asked, and which of it is a default."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from simulation.report.words import count, seconds
from simulation.scenario.schema import DriverOptions, Population, SaleOffer, Scenario, Topology

MOST_SALES: Final = 6
"""Most sales that are listed one by one."""


class Fact(NamedTuple):
    """A key of the scenario, its value, and whether that is the default."""

    name: str
    value: str
    default: bool


def tabulate_sales(scenario: Scenario) -> list[list[str]]:
    """Return a row for each sale, many alike as one: product, units, limit, units of a purchase, hours."""
    rows: list[tuple[list[SaleOffer], list[str]]] = []
    for sale in scenario.sales:
        terms = [
            count(sale.stock),
            "none" if sale.limit is None else count(sale.limit),
            count(sale.quantity),
            "before the load" if sale.starts_in_s is None else f"at {sale.starts_in_s:g} s",
            "never" if sale.ends_in_s is None else f"at {sale.ends_in_s:g} s",
        ]
        if rows and rows[-1][1] == terms and len(scenario.sales) > MOST_SALES:
            rows[-1][0].append(sale)
        else:
            rows.append(([sale], terms))
    named = [[_name_products(sales), *terms] for sales, terms in rows[:MOST_SALES]]
    left = sum(len(sales) for sales, _ in rows[MOST_SALES:])
    return named + ([[f"and {left:,} more", *[""] * 5]] if left else [])


def _name_products(sales: Sequence[SaleOffer]) -> str:
    first, last = sales[0].product_id, sales[-1].product_id
    return str(first) if first == last else f"{first} to {last}, each"


def tabulate_arrivals(scenario: Scenario) -> list[list[str]]:
    """Return a row for each segment of the arrival curve: phase, shape, length, rates, and spacing."""
    return [
        [
            name,
            str(type(segment).__struct_config__.tag),
            seconds(segment.seconds),
            f"{count(segment.rate_rps)}/s",
            f"{count(getattr(segment, 'to_rps', segment.rate_rps))}/s",
            segment.spacing,
        ]
        for (name, _, _), segment in zip(scenario.phases(), scenario.arrivals, strict=True)
    ]


def list_facts(scenario: Scenario) -> dict[str, list[Fact]]:
    """Return the keys of population, driver and engine, and those of the run as a whole."""
    plain = Scenario(
        name=scenario.name,
        text=scenario.text,
        seed=scenario.seed,
        sales=scenario.sales,
        arrivals=scenario.arrivals,
        population=scenario.population,
    )
    whole = [
        Fact(name, _write(getattr(scenario, name)), getattr(scenario, name) == getattr(plain, name))
        for name in ("drain_s", "recover_s")
    ]
    return {
        "Population": _list(scenario.population, Population(users=scenario.population.users)),
        "Driver": _list(scenario.driver, DriverOptions()),
        "Topology": _list(scenario.topology, Topology()),
        "Engine": [Fact(name, _write(value), False) for name, value in scenario.engine.items()],
        "Run": [
            Fact("seed", str(scenario.seed), False),
            *whole,
            *(Fact("stops when", text, False) for text in scenario.abort_when),
        ],
    }


def _list(part: msgspec.Struct, plain: msgspec.Struct, above: str = "") -> list[Fact]:
    """Return the keys of a table and of those in it; what is None is left out."""
    facts: list[Fact] = []
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if isinstance(value, msgspec.Struct):
            facts += _list(value, value, f"{above}{name}.")
        elif value is not None:
            default = not above and value == getattr(plain, name) and name != "users"
            facts.append(Fact(f"{above}{name}", _write(value), default))
    return facts


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return count(value) if float(value).is_integer() else f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
