"""Marks for tests that need a program that the benchmark does not bring."""

from contextlib import suppress

import pytest

from simulation.bench.programs import find_program
from simulation.errors import BenchError


def is_installed(program: str) -> bool:
    with suppress(BenchError):
        return bool(find_program(program))
    return False


needs_wrk = pytest.mark.skipif(not is_installed("wrk"), reason="wrk is not installed")
needs_nginx = pytest.mark.skipif(not is_installed("nginx"), reason="nginx is not installed")
