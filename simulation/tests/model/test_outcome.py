"""An answer is called by the contract's word, and nothing is called failed that may be reserved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.model.outcome import OUTCOMES, classify, result_of


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
        (429, None, "SOLD_OUT", "fail"),
        (429, b'{"status":"SOLD_OUT"}', "SOLD_OUT", "fail"),
        (429, b"", "UNKNOWN", "unknown"),
        (429, b"status: SOLD_OUT", "UNKNOWN", "unknown"),
        (429, b'{"code":"OTHER"}', "UNKNOWN", "unknown"),
        (409, None, "LIMIT_REACHED", "fail"),
        (409, b'{"code":"LIMIT_REACHED"}', "LIMIT_REACHED", "fail"),
        (409, b"", "UNKNOWN", "unknown"),
        (409, b"status: LIMIT_REACHED", "UNKNOWN", "unknown"),
        (409, b'{"code":"OTHER"}', "UNKNOWN", "unknown"),
        (403, None, "NOT_STARTED", "fail"),
        (403, b'{"code":"NOT_STARTED"}', "NOT_STARTED", "fail"),
        (403, b"", "UNKNOWN", "unknown"),
        (403, b"status: NOT_STARTED", "UNKNOWN", "unknown"),
        (403, b'{"code":"OTHER"}', "UNKNOWN", "unknown"),
        (410, None, "SALE_ENDED", "fail"),
        (410, b'{"code":"SALE_ENDED"}', "SALE_ENDED", "fail"),
        (410, b"", "UNKNOWN", "unknown"),
        (410, b"status: SALE_ENDED", "UNKNOWN", "unknown"),
        (410, b'{"code":"OTHER"}', "UNKNOWN", "unknown"),
        (404, None, "UNKNOWN_PRODUCT", "fail"),
        (404, b'{"code":"UNKNOWN_PRODUCT"}', "UNKNOWN_PRODUCT", "fail"),
        (404, b"", "UNKNOWN", "unknown"),
        (404, b"status: UNKNOWN_PRODUCT", "UNKNOWN", "unknown"),
        (404, b'{"code":"OTHER"}', "UNKNOWN", "unknown"),
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
    status: int, body: bytes | None, outcome: str, result: str
) -> None:
    found, order_id = classify(status, body)
    assert (found, result_of(found)) == (outcome, result)
    assert order_id == ("7" if outcome == "ACCEPTED" else None)


@given(st.integers(100, 599), st.binary(max_size=50))
def test_no_body_brings_it_down(status: int, body: bytes) -> None:
    assert classify(status, body)[0] in OUTCOMES
