"""How the rate grows with machines: front doors that accept and refuse, shards of the gate that do."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from simulation.bench.results import DOORS, SHARDS, ScaledPoint, ScaledRound, Scaling
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Spread
from simulation.bench.scaling.sites import Site, serve_doors, serve_shards
from simulation.target.engine_process import private_services

SHARES: Final = {
    DOORS: {"sold out": 0.05, "accepting": 0.05},
    SHARDS: {"limit reached": 0.01, "accepting within a limit": 0.01},
}
"""Of a core, for each machine, by the states that are measured.

Shards are loaded with what takes them the most time: what each shopper has bought is counted, and each is
refused alone. With a larger share of a core the front door would be full before them.
"""
CONNECTIONS: Final = {DOORS: 256, SHARDS: 512}
"""For each machine: what waits while it has used its share keeps it busy in the next period."""
MOST_CORES: Final = 1.5
"""A round counts if all processes of the machine together used less: above, they wait for each other."""
FULL: Final = 0.85
"""A machine is the bound if it has used its share in so many of the periods."""
TIMES: Final = (1, 2)
"""Shares of a core that are measured, over the least."""
TRIES: Final = 3
"""How often a round is measured that does not count."""


async def measure_scaling(doors: Sequence[int], shards: Sequence[int], rounds: Rounds) -> list[Scaling]:
    """Measure front doors, then shards; both accept, and both refuse. Raises BenchError without root."""
    rounds.say(f"starting {max(doors)} front doors")
    async with private_services(rounds.say) as services, serve_doors(services, max(doors)) as site:
        by_size = dict.fromkeys(doors, site)
        found = await _measure_all(DOORS, by_size, rounds)
    async with AsyncExitStack() as sites:
        by_size = {}
        for size in shards:
            rounds.say(f"starting a gate of {size} shards")
            services = await sites.enter_async_context(private_services(rounds.say))
            by_size[size] = await sites.enter_async_context(serve_shards(services, size))
        return found + await _measure_all(SHARDS, by_size, rounds)


async def _measure_all(machines: str, sites: Mapping[int, Site], rounds: Rounds) -> list[Scaling]:
    """Measure both states, each with two shares of a core: fewer machines have the larger one.

    Each round measures both shares: what the machine does meanwhile meets them alike.
    """
    found = []
    for state, least in SHARES[machines].items():
        connections = CONNECTIONS[machines]
        loads = {
            size: (size, connections) if machines == DOORS else (1, size * connections) for size in sites
        }
        for size, site in sites.items():
            site.hold_to(least)
            await site.prepare(state, *loads[size])
        sizes = {times * least: [n for n in sites if n * times <= max(*sites, times)] for times in TIMES}
        measures: dict[str, Callable[[], Awaitable[ScaledRound]]] = {}
        for share, some in sizes.items():
            of = f"{machines} of {share:g} cores"
            measures |= {
                f"{size} {of}, {state}": partial(_try, sites[size], share, *loads[size], rounds.seconds)
                for size in some
            } | {f"{of}, idle": partial(_try, sites[max(some)], share, 0, 0, rounds.seconds)}
        measured = iter(await rounds.repeat(measures))
        for share, some in sizes.items():
            points = make_points(some, [next(measured) for _ in some])
            found.append(
                Scaling(machines=machines, state=state, share=share, points=points, idle=next(measured))
            )
    return found


async def _try(site: Site, share: float, doors: int, connections: int, seconds: float) -> ScaledRound:
    """Measure until it counts, as often as is allowed."""
    site.hold_to(share)
    for _ in range(TRIES):
        found = await site.measure(doors, connections, seconds)
        if not find_doubt(found):
            break
    return found


def find_doubt(found: ScaledRound) -> str:
    """Return why a round does not tell how much the machines can do; nothing if it does."""
    if found.fault:
        return found.fault
    if found.cores >= MOST_CORES:
        return f"all processes together used {found.cores:.2f} cores"
    return f"used its share in {found.throttled:.0%} of the time" if found.throttled < FULL else ""


def make_points(sizes: Sequence[int], found: Sequence[Sequence[ScaledRound]]) -> list[ScaledPoint]:
    """Return a point for each size, of what each of its rounds found; the smallest size first."""
    rates = [Spread.of(each.rps for each in rounds) for rounds in found]
    points = []
    for size, rps, rounds in zip(sizes, rates, found, strict=True):
        doubts = [doubt for each in rounds if (doubt := find_doubt(each))]
        linear = Spread.of(each * size / sizes[0] for each in rates[0].values)
        points.append(
            ScaledPoint(
                size=size,
                rps=rps,
                efficiency=rps.over(linear),
                cores=Spread.of(each.cores for each in rounds),
                throttled=Spread.of(each.throttled for each in rounds),
                doubt=f"{len(doubts)} of {len(rounds)} rounds: {doubts[0]}" if doubts else "",
                rounds=list(rounds),
            )
        )
    return points
