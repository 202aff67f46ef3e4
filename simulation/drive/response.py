"""HTTP/1.1 responses (RFC 9112), parsed from bytes, for a client that sends one request at a time."""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from simulation.errors import BadResponse

MAX_BYTES: Final = 1 << 20
"""Longest response; a longer one is an error of the peer."""

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: |\r\n)")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_UNTIL_CLOSE, _CHUNKED = -1, -2


class Response(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    size: int
    """Bytes of the response, with its head."""
    keep_alive: bool
    """Whether the connection may carry another request."""
    head: bytes = b""
    """Its status line and header fields."""


class _Head(NamedTuple):
    status: int
    length: int
    keep_alive: bool


def parse_response(data: bytes, closed: bool = False) -> Response | None:
    """Return the response at the start of `data`, or None while it is incomplete.

    `closed` says that no more bytes will come. Interim responses (1xx) are skipped. Raises BadResponse.
    """
    start = end = status = 0
    head = b""
    while status < 200:
        start, end = end, data.find(b"\r\n\r\n", end) + 4
        if end == 3:
            if len(data) > MAX_BYTES or closed:
                raise BadResponse("the head does not end")
            return None
        head = data[start:end]
        status, length, keep_alive = _read_head(head)
    if length >= 0:
        if len(data) >= end + length:
            return Response(status, data[end : end + length], end + length, keep_alive, head)
    elif length == _CHUNKED:
        found = _join_chunks(data, end)
        if found:
            return Response(status, found[0], found[1], keep_alive, head)
    elif closed:
        return Response(status, data[end:], len(data), False, head)
    if closed or len(data) > MAX_BYTES:
        raise BadResponse("the body is incomplete")
    return None


# A server's heads differ in little more than their date, so nearly every head has been read before.
@lru_cache(maxsize=1_000)
def _read_head(raw: bytes) -> _Head:
    start = _STATUS_LINE.match(raw)
    if not start:
        raise BadResponse("no status line")
    minor, status = start[1], int(start[2])
    fields: dict[bytes, bytes] = {}
    for line in raw[:-4].split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon or not name or name != name.strip():
            raise BadResponse("malformed header line")
        fields[name] = fields[name] + b"," + value if name in fields else value
    options = {option.strip() for option in fields.get(b"connection", b"").lower().split(b",")}
    keep_alive = b"close" not in options if minor == b"1" else b"keep-alive" in options
    if status < 200 or status in (204, 304):
        if status == 101:
            raise BadResponse("an upgrade that was not requested")
        return _Head(status, 0, keep_alive)
    coding = fields.get(b"transfer-encoding", b"").lower()
    if coding:
        # A message with both may be an attempt at smuggling; RFC 9112, 6.3 lets a client refuse it.
        if coding != b"chunked" or b"content-length" in fields:
            raise BadResponse("unusable transfer coding")
        return _Head(status, _CHUNKED, keep_alive)
    length = fields.get(b"content-length")
    if length is None:
        return _Head(status, _UNTIL_CLOSE, False)
    if not length.isdigit() or len(length) > 12 or int(length) > MAX_BYTES:
        raise BadResponse("unusable content length")
    return _Head(status, int(length), keep_alive)


def _join_chunks(data: bytes, at: int) -> tuple[bytes, int] | None:
    """Return the chunked body and where it ends, or None while it is incomplete (RFC 9112, 7.1)."""
    parts: list[bytes] = []
    while (end := data.find(b"\r\n", at)) >= 0:
        size_line = _CHUNK_SIZE.fullmatch(data, at, end)
        if not size_line:
            raise BadResponse("malformed chunk size")
        size = int(size_line[1], 16)
        if size == 0:
            # An empty line ends the trailer section; the last chunk's own CRLF may be its first half.
            last = data.find(b"\r\n\r\n", end)
            return (b"".join(parts), last + 4) if last >= 0 else None
        at = end + 2 + size + 2
        if len(data) < at:
            return None
        if data[at - 2 : at] != b"\r\n":
            raise BadResponse("a chunk does not end")
        parts.append(data[end + 2 : at - 2])
    return None
