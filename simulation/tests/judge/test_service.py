"""A hand-over of a store turns everybody away for a moment: that is no fault, whoever asked then."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulation.judge.rules.service import count_shut_out, count_worst, find_outage, is_beside


def make_requests(products: int, down_s: tuple[float, float], seed: int) -> pd.DataFrame:
    """Half a minute of a hundred buyers a second, who try once more if they are turned away."""
    draw = np.random.default_rng(seed)
    sent_s = np.sort(draw.uniform(0, 30, 3_000))
    first = pd.DataFrame(
        {"sent_s": sent_s, "product_id": draw.integers(1, products + 1, 3_000), "user_id": range(3_000)}
    )
    again = first[first["sent_s"].between(*down_s)]
    again = again.assign(sent_s=again["sent_s"] + draw.uniform(0.2, 0.8, len(again)))
    requests = pd.concat([first, again]).sort_values("sent_s", ignore_index=True)
    requests["sent_ns"] = (requests["sent_s"] * 1e9).round().astype("int64")
    away = requests["sent_ns"].between(down_s[0] * 1e9, down_s[1] * 1e9)
    return requests.assign(door=0, excused=False, outcome=np.where(away, "UNAVAILABLE", "SOLD_OUT"))


def judge(requests: pd.DataFrame) -> tuple[int, int]:
    evidence: Any = SimpleNamespace(operations=requests)
    calm = requests.assign(excused=is_beside(find_outage(evidence), requests))
    return count_shut_out(calm), count_worst(calm)


@pytest.mark.parametrize("seed", range(5))
def test_a_hand_over_among_many_products_shuts_out_nobody(seed: int) -> None:
    requests = make_requests(products=20, down_s=(10.5, 11.5), seed=seed)
    assert count_shut_out(requests) > 0, "the same without a look at when it was"
    assert judge(requests) == (0, 0)


def test_an_outage_that_is_longer_than_a_hand_over_excuses_nobody() -> None:
    requests = make_requests(products=20, down_s=(10, 16), seed=1)
    evidence: Any = SimpleNamespace(operations=requests)
    assert not is_beside(find_outage(evidence), requests).any()
