"""Deliberate bugs: each fits the engine, and shows."""

from pathlib import Path

import pytest

from simulation.campaign.mutation import copy_engine, mutate
from simulation.protocol.bugs import ORDERS, attempt, load_bugs, load_edits
from simulation.protocol.hunt import private_stack

# On a busy machine each step waits for its turn at the processor.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", load_bugs())
def test_a_bug_fits_the_engine(name: str, tmp_path: Path) -> None:
    mutation = load_edits(name)
    copy_engine(tmp_path)
    mutate(mutation, tmp_path)
    for edit in mutation.edits:
        if edit.file.endswith(".py"):
            compile((tmp_path / "engine" / edit.file).read_text(), edit.file, "exec")


def test_a_bug_shows_in_orders_with_a_name_and_in_examples_but_not_without_it() -> None:
    with private_stack() as stack:
        found = attempt("unit-vanishes", stack, examples=50, shrink=False)
    assert "a plain sale ends as the ledger says" in found.shown.orders
    assert len(found.shown.orders) < len(ORDERS)
    assert found.shown.found.faults
    assert found.control == []
    assert found.shows
