"""bench.md and the plots: pure functions of what a run of the benchmark found."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from simulation.bench.plots import draw_front_door, draw_growth, draw_responses
from simulation.bench.results import Bench, Curve, Spread
from simulation.report.canvas import Canvas


def write_page(bench: Bench, folder: Path) -> None:
    """Write bench.md and plots/*.png."""
    (folder / "plots").mkdir(exist_ok=True)
    drawings: dict[str, Canvas | None] = {
        "front_door": draw_front_door(bench.front_door),
        "responses": draw_responses(bench.responses),
        "growth": draw_growth(bench.growth),
    }
    for name, canvas in drawings.items():
        if canvas is not None:
            canvas.to_png(folder / "plots" / f"{name}.png")
    drawn = [name for name, canvas in drawings.items() if canvas is not None]
    (folder / "bench.md").write_text(render(bench, drawn), encoding="utf-8")


def render(bench: Bench, plots: Sequence[str] = ()) -> str:
    """The page, in Markdown."""
    sections = [
        _front, _front_door, _disk, _persistence, _ledger, _driver, _responses, _growth, _memory,
    ]  # fmt: skip
    parts = [part for section in sections if (part := section(bench))]
    parts += [f"![{name.replace('_', ' ')}](plots/{name}.png)" for name in plots]
    return "\n\n".join(parts) + "\n"


def _front(bench: Bench) -> str:
    machine = bench.machine
    lines = [
        "# Benchmark",
        "",
        f"{bench.started_at:%Y-%m-%d %H:%M} UTC, commit {bench.commit[:12]}"
        f"{'+dirty' if bench.commit.endswith('+dirty') else ''}: `{bench.command}`.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, {machine['system']};"
        f" load average {bench.load_before} at the start.",
        ", ".join(f"{name} {version}" for name, version in bench.versions.items()) + ".",
        f"Medians of {bench.rounds} rounds of {bench.seconds:g} s ({bench.growth_seconds:.2g} s where a cost"
        " is measured as it grows), in brackets lowest and highest;"
        f" took {bench.took_s:,.0f} s. Load, servers and services share the machine.",
        *(f"- {note}" for note in bench.notes),
    ]
    return "\n".join(lines)


def _front_door(bench: Bench) -> str:
    if not bench.front_door:
        return ""
    columns = sorted({row.connections for row in bench.front_door})
    rates = {(row.subject, row.connections): row.rps for row in bench.front_door}
    ratios = {(row.name, row.connections): row.ratio for row in bench.ratios}
    faults = {
        f"- {row.subject}, {row.connections} connections: {sample.fault}"
        for row in bench.front_door
        for sample in row.samples
        if sample.fault
    }
    heads = [f"{size} connections" for size in columns]
    return _section(
        "Answers per second",
        "wrk, one thread, keep-alive, everybody gets the same bytes. The engine has one front-door worker;"
        " Redis writes with `appendfsync always`; relay, RabbitMQ, fulfilment and PostgreSQL run as well."
        " The textbook has the same Redis and RabbitMQ, and nobody who consumes its queue."
        " Sold out: a sale without a unit left; the front door asks the gate ten times a second and repeats"
        " its answer in between. Accepting: every purchase gets a unit.",
        _table(["subject", *heads], _rows(rates, columns, _count)),
        _table(["ratio, round by round", *heads], _rows(ratios, columns, _ratio)) if ratios else "",
        "Not what was meant to be measured:\n\n" + "\n".join(sorted(faults)) if faults else "",
    )


def _disk(bench: Bench) -> str:
    if (disk := bench.disk) is None:
        return ""
    rows = [["p50", _spread(disk.p50_ms, _ms)], ["p99", _spread(disk.p99_ms, _ms)]]
    rows.append(["longest", _spread(disk.longest_ms, _ms)])
    return _section(
        "Disk",
        f"How long {disk.write_bytes:,} appended bytes take to be on disk (fdatasync) while nothing else"
        " writes. Every accepted purchase waits for that, and where the disk stalls all of them wait.",
        _table(["a write is on disk after", ""], rows),
    )


def _persistence(bench: Bench) -> str:
    if not bench.persisted:
        return ""
    rows = [
        [
            str(row.connections), _spread(row.accepted_rps), _spread(row.during_rps), _spread(row.backlog),
            _spread(row.drain_s, _seconds), _spread(row.drain_rps),
        ]
        for row in bench.persisted
    ]  # fmt: skip
    heads = [
        "connections",
        "accepted/s",
        "settled/s meanwhile",
        "behind at the end",
        "drained in",
        "drained/s",
    ]
    return _section(
        "From accepted to persisted",
        "Orders settled in PostgreSQL while the front door accepts at its limit, how many were not when the"
        " load ended, and how long these took.",
        _table(heads, rows),
    )


def _ledger(bench: Bench) -> str:
    if (ledger := bench.ledger) is None:
        return ""
    rows = [[f"batches of {ledger.batch}, {ledger.in_flight} in flight", _spread(ledger.batched_rps)]]
    if ledger.one_by_one_rps:
        rows.append(["one at a time, a transaction each", _spread(ledger.one_by_one_rps)])
    return _section("Ledger alone", "", _table(["orders settled per second", ""], rows))


def _driver(bench: Bench) -> str:
    if (driver := bench.driver) is None:
        return ""
    rows = [
        ["requests per second", _spread(driver.capacity_rps)],
        [f"lag p99 at {driver.offered_rps:,.0f}/s", _spread(driver.lag_p99_ms, _ms)],
    ]
    return _section(
        "Driver",
        f"One process of the open-loop driver against nginx, {driver.connections} connections. Lag is sent −"
        " intended.",
        _table(["", ""], rows),
    )


def _responses(bench: Bench) -> str:
    if not bench.responses:
        return ""
    rows = [
        [
            row.subject, f"{row.share:.0%}" if row.share else "–", f"{row.offered_rps:,.0f}",
            *(_spread(row.ms[name], _ms) for name in row.ms), _spread(row.lag_p99_ms, _ms), f"{row.lost:,}",
        ]
        for row in bench.responses
    ]  # fmt: skip
    capacity = "; ".join(
        f"{row.subject}: {_spread(row.rps)}/s on {row.connections} connections" for row in bench.capacities
    )
    percentiles = list(bench.responses[0].ms)
    return _section(
        "Response times in open loop",
        "Poisson arrivals from one driver process; response time counts from the intended start."
        + (
            " Capacity is what driver and engine together answer when far more is due, so that each"
            f" connection is always busy: {capacity}."
            if capacity
            else ""
        ),
        _table(["subject", "of capacity", "requests/s", *percentiles, "lag p99", "not as claimed"], rows),
    )


def _growth(bench: Bench) -> str:
    if not bench.growth:
        return ""
    return _section(
        "How the cost of a request grows",
        "Time per request at saturation, that is one second over the rate, and the same over that of the"
        " smallest size of each round. ¹ Processor time of front door and Redis, together.",
        *map(_curve, bench.growth),
    )


def _curve(curve: Curve) -> str:
    rows = [
        [
            f"{point.size:,}", _spread(point.rps), _spread(point.cost_us, _short),
            _spread(point.times_smallest, _ratio), f"{point.times_cheapest:.2f}",
            "–" if point.cpu_us is None else _short(point.cpu_us),
        ]
        for point in curve.points
    ]  # fmt: skip
    heads = [
        curve.axis, "per second", "µs each", "× smallest size", "× cheapest size", "µs of processor¹",
    ]  # fmt: skip
    return f"**{curve.subject}, by {curve.axis}**: {curve.note}.\n\n{_table(heads, rows)}"


def _memory(bench: Bench) -> str:
    lines = []
    if memory := bench.memory:
        lines.append(
            f"Resident memory of the front door: {memory.rss_mib[0]:.1f} MiB warm,"
            f" {memory.rss_mib[-1]:.1f} MiB after {memory.requests[-1]:,} sold-out purchases,"
            f" at most {max(memory.rss_mib):.1f} MiB."
        )
    lines += [
        f"{row.connections:,} idle connections that each bought once: {row.bytes_each:,.0f} bytes each"
        " (the process alone, without the kernel's share)."
        for row in bench.idle
    ]
    return _section("Memory", "\n".join(lines)) if lines else ""


def _section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *filter(None, parts)])


def _rows(
    found: dict[tuple[str, int], Spread], columns: Sequence[int], show: Callable[[float], str]
) -> list[list[str]]:
    names = dict.fromkeys(name for name, _ in found)
    return [
        [name, *(_spread(found[name, size], show) if (name, size) in found else "–" for size in columns)]
        for name in names
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _spread(spread: Spread, show: Callable[[float], str] | None = None) -> str:
    show = show or _count
    if len(spread.values) == 1:
        return show(spread.median)
    return f"{show(spread.median)} ({show(spread.low)}–{show(spread.high)})"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _ms(value: float) -> str:
    return f"{_short(value)} ms"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"
