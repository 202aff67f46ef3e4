"""A run that can't be made has a row that says why, in each campaign, and the others go on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engine.errors import BusUnavailable, StackError
from simulation.campaign import suite
from simulation.campaign.matrix import list_faults, run_matrix
from simulation.campaign.mutants import run_mutants
from simulation.campaign.mutation import list_mutations, load_mutation
from simulation.campaign.pairs import run_pairs
from simulation.campaign.suite import soak
from simulation.errors import FaultError
from simulation.run import Say
from simulation.target.services import Services

NOWHERE = Services(redis_url="redis://127.0.0.1:9", postgres_url="postgresql://127.0.0.1:9/x")
SAID = [
    StackError("rabbitmq 2: not back in the cluster after 90 s"),
    FaultError("the relay does not empty the outbox"),
]
MANY = range(3)


async def do_matrix(folder: Path, say: Say) -> list[Any]:
    return (await run_matrix(list_faults(3)[: len(MANY)], folder, NOWHERE, say, "", 3)).cells


async def do_pairs(folder: Path, say: Say) -> list[Any]:
    names = ["kill+kill", "kill+wipe", "stop+wipe"]
    return (await run_pairs(names, 1, folder, NOWHERE, say, "")).pairs


async def do_mutants(folder: Path, say: Say) -> list[Any]:
    mutations = [load_mutation(list_mutations()[number]) for number in MANY]
    return (await run_mutants(mutations, folder, NOWHERE, say, "")).trials


async def do_soak(folder: Path, say: Say) -> list[Any]:
    result, failed = await soak("cluster-chaos", 60, 1, folder, NOWHERE, say, "")
    assert failed is None
    return result.runs


@pytest.mark.parametrize("ill", ["run", "empty_services"])
@pytest.mark.parametrize(
    ("campaign", "file", "rows"),
    [(do_matrix, "matrix", 3), (do_pairs, "pairs", 3), (do_mutants, "mutants", 3), (do_soak, "soak", 2)],
    ids=["matrix", "pairs", "mutants", "soak"],
)
async def test_a_run_that_can_not_be_made_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Any, file: str, rows: int, ill: str
) -> None:
    failures = chain(SAID, repeat(asyncpg.CannotConnectNowError("it starts\nup")))

    @asynccontextmanager
    async def nothing(*_: object) -> AsyncIterator[Services]:
        yield NOWHERE

    async def fail(*_: object, **_named: object) -> None:
        raise next(failures)

    @asynccontextmanager
    async def fail_before(*_: object) -> AsyncIterator[Services]:
        await fail()
        yield NOWHERE

    monkeypatch.setattr(suite, "empty_services", nothing if ill == "run" else fail_before)
    monkeypatch.setattr(suite, "run", fail)
    told: list[str] = []
    found = await campaign(tmp_path, told.append)
    assert len(found) == rows, "a soak whose services are ill would go on for ever"
    said = [*map(str, SAID), "it starts up"][:rows]
    for row, text, line in zip(found, said, told[-rows:], strict=True):
        assert {"void", "unknown"} & {getattr(row, "verdict", ""), getattr(row, "outcome", "")}
        assert text in line
        assert text in (tmp_path / f"{file}.json").read_text()
        assert not row.folder


async def test_what_a_bus_says_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client has errors of many kinds."""
    bus = "amqp://127.0.0.1:9/"

    @asynccontextmanager
    async def no_gate(*_: object) -> AsyncIterator[list[object]]:
        yield []

    monkeypatch.setattr(suite, "open_gate", no_gate)
    services = Services(redis_url=NOWHERE.redis_url, postgres_url=NOWHERE.postgres_url, amqp_url=bus)
    with pytest.raises(BusUnavailable):
        async with suite.empty_services(services):
            pass
