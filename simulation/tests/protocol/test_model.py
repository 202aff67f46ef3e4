"""The model of the protocol: nothing is broken in it as it is, and what is done wrong is found."""

import re

import pytest

from engine.tests.services import skip_or_fail
from simulation.errors import ModelError
from simulation.protocol.model import MODEL, Check, find_missing, load_checks, search

CHECKS = {check.name: check for check in load_checks()}
SMALL = [check.name for check in CHECKS.values() if not check.large and not check.mutant]
BUGS = [check.name for check in CHECKS.values() if check.mutant]


@pytest.fixture(autouse=True)
def tools() -> None:
    if missing := find_missing():
        skip_or_fail(f"{' and '.join(missing)} must be installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *BUGS])
def test_a_search_finds_what_it_must_and_nothing_else(name: str) -> None:
    found = search(CHECKS[name])
    assert found.is_right, [found.broken, *found.steps]
    assert bool(found.steps) == bool(found.broken)


def test_every_bug_of_the_model_is_tried() -> None:
    text = MODEL.read_text()
    assert sorted(BUGS) == sorted(set(re.findall(r"mutant\((\w+)\)", text)) - {"name"})
    assert len(BUGS) >= 20
    assert all(CHECKS[name].breaks for name in BUGS)


def test_whatever_must_hold_is_broken_by_a_bug() -> None:
    words = set(re.findall(r'broken\("(.+?)\\n"\)', MODEL.read_text()))
    assert {check.breaks for check in CHECKS.values()} - {None, "opens", "settles"} == words


def test_the_model_is_short_enough_to_be_read() -> None:
    assert len(MODEL.read_text().splitlines()) <= 400


@pytest.mark.slow
def test_a_search_that_does_not_come_to_its_end_says_so() -> None:
    with pytest.raises(ModelError, match="did not end in"):
        search(CHECKS["plain"], within_s=0.001)


def test_a_bug_that_the_model_does_not_know_is_no_result() -> None:
    with pytest.raises(ModelError, match="spin failed"):
        search(Check(name="NO_SUCH_BUG", text="", switches=CHECKS["plain"].switches, mutant=True))
