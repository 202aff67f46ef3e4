"""An answer is called by the contract's word, and nothing is called failed that may be reserved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.model.contract import FLASHGRID
from simulation.model.outcome import OUTCOMES, result_of

classify = FLASHGRID.classify


@pytest.mark.parametrize(
    ("status", "body", "outcome", "result"),
    [
        (200, b'{"status":"ACCEPTED","orderId":"7"}', "ACCEPTED", "ok"),
        (200, b'{"status":"ACCEPTED","orderId":""}', "UNKNOWN", "unknown"),
        (200, b'{"status":"ACCEPTED","orderId":7}', "UNKNOWN", "unknown"),
        (200, b'{"status":"ACCEPTED"}', "UNKNOWN", "unknown"),
        (200, b'{"orderId":"7"}', "UNKNOWN", "unknown"),
        (200, b"<html>", "UNKNOWN", "unknown"),
        (200, b"", "UNKNOWN", "unknown"),
        (400, b"", "INVALID", "fail"),
        (413, b"", "INVALID", "fail"),
        (415, b"", "INVALID", "fail"),
        (503, b'{"code":"GATE_UNAVAILABLE"}', "UNAVAILABLE", "fail"),
        (503, b'{"code":"OVERLOADED"}', "UNAVAILABLE", "fail"),
        (503, b'{"code":"OUTCOME_UNKNOWN"}', "UNKNOWN", "unknown"),
        (503, b"upstream is down", "UNKNOWN", "unknown"),
        (503, b"[]", "UNKNOWN", "unknown"),
        (500, b'{"code":"GATE_UNAVAILABLE"}', "UNKNOWN", "unknown"),
        (502, b"", "UNKNOWN", "unknown"),
        (204, b"", "UNKNOWN", "unknown"),
        (302, b"", "UNKNOWN", "unknown"),
    ],
)
def test_an_answer_is_called_by_the_contract_s_word(
    status: int, body: bytes, outcome: str, result: str
) -> None:
    found, order_id = classify(status, body)
    assert (found, result_of(found)) == (outcome, result)
    assert order_id == ("7" if outcome == "ACCEPTED" else None)


@pytest.mark.parametrize(
    ("status", "member", "word"),
    [
        (429, "status", "SOLD_OUT"),
        (409, "code", "LIMIT_REACHED"),
        (403, "code", "NOT_STARTED"),
        (410, "code", "SALE_ENDED"),
        (404, "code", "UNKNOWN_PRODUCT"),
    ],
)
def test_a_refusal_is_known_by_its_status_and_a_body_that_says_the_same(
    status: int, member: str, word: str
) -> None:
    for body in (None, f'{{"{member}":"{word}"}}'.encode()):
        assert classify(status, body) == (word, None)
    for body in (b"", f"status: {word}".encode(), b'{"code":"OTHER"}'):
        assert classify(status, body) == ("UNKNOWN", None)
    assert (result_of(word), result_of("UNKNOWN")) == ("fail", "unknown")


@given(st.integers(100, 599), st.binary(max_size=50))
def test_no_body_brings_it_down(status: int, body: bytes) -> None:
    assert classify(status, body)[0] in OUTCOMES
