"""Heads of requests: those of plain purchases and looks, and where any other message ends."""

import re
import sys
from typing import Final

import msgspec

from engine.model.order_id import PATTERN

_MAX_CUT_OFF_BYTES: Final = 16_384

# Each line matches in one way only: with two, a head of forty lines that fails at its end would be tried in
# 2^40 ways. aiohttp takes as many lines, and longer ones.
_NAME: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,150}+:"
_VALUE: Final = rb"[ -~\t\x80-\xff]{0,8000}+"
_BLANKS: Final = rb"[ \t]{0,64}+"
_LINES: Final = 128
_TYPE: Final = (
    rb"(?i:application/json[ \t]{0,64}+(?:;[ \t]{0,64}+"
    rb"(?:[\w.\-]{1,20}+=(?:[\w.\-]{1,40}+|\"[\w.\-]{1,40}+\"))?[ \t]{0,64}+){0,8})"
)
"""Parameters mean nothing to a reader of JSON, which is UTF-8."""
_QUERY: Final = rb"(?:\?[\w.~&=%+\-]{0,400}+)?"
_OTHER: Final = rb"(?!productId\b)\w{1,20}+(?:=[\w.\-]{0,40}+)?"
"""A parameter that says nothing. Many pages add one, so that no cache answers; a second might be the same."""
_OPTIONS: Final = rb"(?i:%b(?:[ \t]{0,64}+,[ \t]{0,64}+%b){0,8}+)" % (
    (rb"(?:keep-alive|close|upgrade|http2-settings|te)",) * 2
)
"""Some clients offer another protocol or take trailers, which a server may ignore (RFC 9110, 7.8, 10.1.4)."""


def _field(name: bytes, value: bytes, group: int) -> bytes:
    """Return the pattern of a header that may be there once, whose value is a group of that number."""
    return b"(?i:%b):(?(%d)(?!))%b(%b)%b" % (name, group, _BLANKS, value, _BLANKS)


# Most headers say nothing that matters here. Those that change how a message is framed, decoded or answered,
# or that may not be repeated, are aiohttp's, but for the ones that _HEAD names.
_HARMLESS: Final = (
    rb"(?![ceimpstuhCEIMPSTUH])" + _NAME + _VALUE
    + rb"|(?=[empstEMPST])(?!(?i:expect:|etag:|max-forwards:|proxy-connection:|server:|sec-websocket"
    rb"|trailer:|transfer-encoding:))" + _NAME + _VALUE
)  # fmt: skip
_HARMLESS_TOO: Final = (
    rb"(?=[chiuCHIU])(?!(?i:connection:|content-(?:encoding|length|location|range|transfer-encoding|type):"
    rb"|host:|idempotency-key:|upgrade:[^\r\n]{0,8000}websocket|user-agent:))" + _NAME + _VALUE
)
_HEAD: Final = re.compile(
    rb"(?:(POST) /purchase/buy" + _QUERY
    + b"|GET /purchase/(?:orders/((?i:" + PATTERN.encode() + b"))" + _QUERY
    + rb"|stock\?(?:(" + _OTHER + b")&)?productId=([1-9][0-9]{0,17}+)(?(3)|(?:&" + _OTHER + b")?)"
    + rb")) HTTP/1\.([01])\r\n(?:(?:" + _HARMLESS
    # Some clients send the length and the type of no body with a look.
    + b"|" + _field(b"content-length", rb"(?(1)[1-9][0-9]{0,2}+|0)", 6)
    + b"|" + _field(b"content-type", b"(?(1)" + _TYPE + b"|" + _VALUE + b")", 7)
    + b"|" + _field(b"host", _VALUE, 8)
    + b"|" + _field(b"user-agent", _VALUE, 9)
    + b"|" + _field(b"connection", _OPTIONS, 10)
    + b"|" + _field(b"idempotency-key", rb"[!-~]{1,128}+", 11)
    + b"|" + _field(b"transfer-encoding", b"(?(1)(?i:chunked)|(?!))", 12)
    + b"|" + _HARMLESS_TOO
    + b"|" + _field(b"max-forwards", _VALUE, 13) + rb")\r\n){0,%d}\r\n" % (_LINES // 2)
)  # fmt: skip
_REST: Final = re.compile(
    rb"(?:(?:" + _HARMLESS + b"|" + _HARMLESS_TOO + rb")\r\n){0,%d}\r\n" % (_LINES // 2)
)
"""What follows the last line of a head that matters. Together they have no more lines than aiohttp takes."""
_FRAMED: Final = re.compile(
    rb"(?!CONNECT )[A-Z]{1,20}+ [!-~]{1,4000}+ HTTP/1\.([01])\r\n(?:(?:"
    rb"(?![cthuCTHU])" + _NAME + _VALUE
    + b"|" + _field(b"content-length", rb"[0-9]{1,9}+", 2)
    + b"|" + _field(b"transfer-encoding", rb"(?i:chunked)", 3)
    + rb"|(?=[cthuCTHU])(?!(?i:content-encoding:|content-length:|http2-settings:|transfer-encoding:"
    rb"|upgrade:))" + _NAME + _VALUE
    # The head ends, or it is cut off here and nothing was wrong so far.
    + rb")\r\n){0,%d}(?:\r\n|([ -~\t\x80-\xff]*+\r?+)\Z)" % _LINES
)  # fmt: skip

_CHUNK: Final = re.compile(rb"([1-9a-fA-F][0-9a-fA-F]{0,5}+)\r\n|0\r\n\r\n")
"""The line before a chunk, or the last chunk: without more zeros, extensions and trailers."""
_CUT_OFF_CHUNK: Final = re.compile(rb"(?:[1-9a-fA-F][0-9a-fA-F]{0,5}+)?\r?|0(?:\r(?:\n\r?)?)?")
_MAX_JOINED_BYTES, _MAX_JOINED_CHUNKS = 999, 8
MORE: Final = sys.maxsize
"""Where a chunked body ends of which chunks are missing."""

_CUT_OFF_LINE: Final = re.compile(rb"[A-Z]{1,20}+(?: [!-~]{0,4000}+(?: [HTP/1.0]{0,8}+\r?+)?)?")

KEEP, CLOSE, KEEP_10, CLOSE_10 = FRAMINGS = range(4)
"""How an answer is framed: the connection goes on or ends, in HTTP/1.1 and HTTP/1.0."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a plain request's head says."""

    end: int
    """Where the body begins."""
    whole: int
    """Where it ends; 0 if it comes in chunks."""
    framing: int
    stem: int
    """Where its last line ends that matters: heads with the same beginning say the same."""
    key: str | None = None
    look: int | str | None = None
    """The product whose stock, or the order that is to be shown."""


def read_head(data: bytes, last: Head | None = None, last_bytes: bytes = b"") -> Head | None:
    """Return what the head at the start of the data says, None if it is not plain.

    Much of it need not be read again if the last one of its connection, with these bytes, begins alike.
    """
    if last is not None and data.startswith(last_bytes[: last.stem]):
        rest = _REST.match(data, last.stem)
        if rest is not None:
            end = rest.end()
            whole = end + last.whole - last.end if last.whole else 0
            return Head(end, whole, last.framing, last.stem, last.key, last.look)
    match = _HEAD.match(data)
    if match is None:
        return None
    buy, order_id, _, product_id, minor, length, kind, host, _, connection, key, chunked, _ = match.groups()
    if host is None or (buy is not None and kind is None):
        return None
    # With two lengths, or chunks in HTTP/1.0, a proxy may find another end, and another request behind it.
    if (buy is not None and (length is None) == (chunked is None)) or (chunked and minor == b"0"):
        return None
    options = b"" if connection is None else connection.lower()
    if b"close" in options and b"keep-alive" in options:
        return None
    if minor == b"1":
        framing = CLOSE if b"close" in options else KEEP
    else:
        framing = KEEP_10 if b"keep-alive" in options else CLOSE_10
    end, stem = match.end(), data.index(b"\n", match.end(match.lastindex or 0)) + 1
    if product_id is not None:
        return Head(end, end, framing, stem, look=int(product_id))
    if order_id is not None:
        return Head(end, end, framing, stem, look=order_id.decode("ascii").lower())
    whole = 0 if length is None else end + int(length)
    return Head(end, whole, framing, stem, None if key is None else key.decode("ascii"))


def join_chunks(data: bytes, start: int) -> tuple[bytes, int]:
    """Return the data with the chunked body that begins there in one piece, and where that then ends.

    Where anything is not plain or is cut off, the data stays as it is, and the end is beyond it: MORE if
    nothing but the next chunks is missing.
    """
    chunks, at, size = [data[:start]], start, 0
    while at < len(data):
        match = _CHUNK.match(data, at)
        if match is None:
            break
        at = match.end()
        if match[1] is None and size:
            return b"".join([*chunks, data[at:]]), start + size
        end = at + int(match[1] or b"0", 16)
        size += end - at
        is_whole = at < end and data[end : end + 2] == b"\r\n"
        if not is_whole or size > _MAX_JOINED_BYTES or len(chunks) > _MAX_JOINED_CHUNKS:
            break
        chunks.append(data[at:end])
        at = end + 2
    else:
        return data, MORE
    return data, len(data) + 1


def measure(data: bytes, start: int, in_chunks: bool) -> tuple[int | None, bool]:
    """Return the length of the message that begins there, or of the chunks that do: 0 if a head is cut off,
    None if not sure. Return also whether more chunks follow.
    """
    at = start
    if not in_chunks:
        match = _FRAMED.match(data, start)
        if match is None:
            return 0 if _CUT_OFF_LINE.fullmatch(data, start) else None, False
        minor, length, chunked, cut_off = match.groups()
        if cut_off is not None:
            return 0 if len(data) - start <= _MAX_CUT_OFF_BYTES else None, False
        if chunked is not None and (length is not None or minor == b"0"):
            return None, False
        at = match.end() + int(length or 0)
        in_chunks = chunked is not None
    while in_chunks and at < len(data):
        chunk = _CHUNK.match(data, at)
        if chunk is None:
            return (at - start, True) if _CUT_OFF_CHUNK.fullmatch(data, at) else (None, False)
        in_chunks = chunk[1] is not None
        at = chunk.end() + (int(chunk[1], 16) + 2 if in_chunks else 0)
    return at - start, in_chunks
