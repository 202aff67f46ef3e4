"""Responses are parsed however they are cut; bytes that are no response are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.drive.response import parse_response
from simulation.errors import BadResponse

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

WHOLE = {
    "plain": (PLAIN, 200, b"hello", True),
    "no reason phrase": (b"HTTP/1.1 429\r\ncontent-length:0\r\n\r\n", 429, b"", True),
    "says close": (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", 200, b"x", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x", False),
    "HTTP/1.0 kept": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
        200,
        b"x",
        True,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "chunked": (
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;why=not\r\nlo\r\n0\r\n\r\n",
        503,
        b"hello",
        True,
    ),
    "chunked with a trailer": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\nDigest: x\r\n\r\n",
        200,
        b"0123456789",
        True,
    ),
    "after interim responses": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + PLAIN,
        200,
        b"hello",
        True,
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_response_is_complete_at_its_last_byte_and_not_before(name: str) -> None:
    data, status, body, keep_alive = WHOLE[name]
    response = parse_response(data)
    assert response
    assert response[:4] == (status, body, len(data), keep_alive)
    assert response.head.endswith(b"\r\n\r\n")
    assert response.head in data
    for cut in range(len(data)):
        assert parse_response(data[:cut]) is None


@pytest.mark.parametrize("name", WHOLE)
def test_bytes_after_a_response_are_not_part_of_it(name: str) -> None:
    data, *_ = WHOLE[name]
    found = parse_response(data + b"HTTP/1.1 200 OK\r\n")
    assert found
    assert found.size == len(data)


@pytest.mark.parametrize("name", WHOLE)
def test_a_response_that_is_cut_off_is_refused(name: str) -> None:
    data, *_ = WHOLE[name]
    with pytest.raises(BadResponse):
        parse_response(data[:-1], closed=True)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nhel"
    assert parse_response(data) is None
    response = parse_response(data + b"lo", closed=True)
    assert response
    assert response[:4] == (200, b"hello", len(data) + 2, False)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 999 No\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsize\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n",
        b"x" * 2_000_000,
    ],
)
def test_bytes_that_are_no_response_are_refused(data: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_response(data)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_bring_the_parser_down(data: bytes, closed: bool) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            found = parse_response(prefix + data, closed)
        except BadResponse:
            continue
        assert found is None or 0 < found.size <= len(prefix + data)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
def test_chunks_join_to_the_body(chunks: list[bytes]) -> None:
    coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + coded
    response = parse_response(data)
    assert response
    assert response[:4] == (200, b"".join(chunks), len(data), True)
