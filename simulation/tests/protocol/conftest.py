from collections.abc import Iterator

import pytest

from simulation.protocol.example.processes import Stores
from simulation.protocol.hunt import private_stores


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    with private_stores() as stores:
        yield stores
