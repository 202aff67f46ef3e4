"""What the answer to a batch of purchases promises each of them."""

import pytest
from prometheus_client import REGISTRY

from engine.gate.batch import give_replies
from engine.model.purchase import Outcome, Purchase


@pytest.mark.parametrize(
    ("codes", "outcomes"),
    [
        ("SSS", [Outcome.SOLD_OUT] * 3),
        ("ASL", [Outcome.ACCEPTED, Outcome.SOLD_OUT, Outcome.LIMIT_REACHED]),
        ("AAA", [Outcome.ACCEPTED] * 3),
    ],
)
def test_purchases_are_counted_before_anyone_is_told(codes: str, outcomes: list[Outcome]) -> None:
    before, told = count_purchases(), list[Outcome]()

    def reply(outcome: Outcome, _order_id: str | None) -> None:
        told.append(outcome)
        counted = {name: count - before[name] for name, count in count_purchases().items()}
        assert counted == {each: outcomes.count(each) for each in Outcome}

    purchases: list[Purchase] = [(b"1", b"1", None, reply)] * len(codes)
    give_replies("stem", purchases, codes)
    assert told == outcomes


def count_purchases() -> dict[Outcome, float]:
    name = "flashgrid_purchases_total"
    return {outcome: REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0.0 for outcome in Outcome}
