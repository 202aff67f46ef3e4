"""Heads of requests: those of plain purchases and looks, and where any other message ends."""

import re
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
    rb"(?:charset=(?:utf-?8|\"utf-?8\")|(?!charset)[a-z]{1,20}+=[0-9a-z.\-]{1,40}+)?[ \t]{0,64}+){0,8})"
)
"""Parameters may mean UTF-8, or nothing to a reader of JSON."""


def _field(name: bytes, value: bytes, group: int) -> bytes:
    """Return the pattern of a header that may be there once, whose value is a group of that number."""
    return b"(?i:%b):(?(%d)(?!))%b(%b)%b" % (name, group, _BLANKS, value, _BLANKS)


_HEAD: Final = re.compile(
    rb"(?:POST /purchase/buy|GET /purchase/(?:stock\?productId=([1-9][0-9]{0,17}+)|orders/((?i:"
    + PATTERN.encode()
    + rb")))) HTTP/1\.([01])\r\n(?:(?:"
    # Most headers say nothing that matters here. Those that change how a message is framed, decoded or
    # answered, or that may not be repeated, are aiohttp's, but for the ones that are named below.
    rb"(?![ceimpstuhCEIMPSTUH])" + _NAME + _VALUE
    + rb"|(?=[empstEMPST])(?!(?i:expect:|etag:|max-forwards:|proxy-connection:|server:|sec-websocket"
    rb"|te:|trailer:|transfer-encoding:))" + _NAME + _VALUE
    + b"|" + _field(b"content-length", rb"[1-9][0-9]{0,2}+", 4)
    + b"|" + _field(b"content-type", _TYPE, 5)
    + b"|" + _field(b"host", _VALUE, 6)
    + b"|" + _field(b"user-agent", _VALUE, 7)
    + b"|" + _field(b"connection", rb"(?i:keep-alive|close)", 8)
    + b"|" + _field(b"idempotency-key", rb"[!-~]{1,128}+", 9)
    + rb"|(?=[chiuCHIU])(?!(?i:connection:|content-|host:|http2-settings:|idempotency-key:|upgrade:"
    rb"|user-agent:))" + _NAME + _VALUE
    + rb")\r\n){0,%d}\r\n" % _LINES
)  # fmt: skip
_FRAMED: Final = re.compile(
    rb"(?!CONNECT )[A-Z]{1,20}+ [!-~]{1,4000}+ HTTP/1\.[01]\r\n(?:(?:"
    rb"(?![cthuCTHU])" + _NAME + _VALUE
    + b"|" + _field(b"content-length", rb"[0-9]{1,9}+", 1)
    + rb"|(?=[cthuCTHU])(?!(?i:content-encoding:|content-length:|http2-settings:|transfer-encoding:"
    rb"|upgrade:))" + _NAME + _VALUE
    # The head ends, or it is cut off here and nothing was wrong so far.
    + rb")\r\n){0,%d}(?:\r\n|([ -~\t\x80-\xff]*+\r?+)\Z)" % _LINES
)  # fmt: skip

_CUT_OFF_LINE: Final = re.compile(rb"[A-Z]{1,20}+(?: [!-~]{0,4000}+(?: [HTP/1.0]{0,8}+\r?+)?)?")

KEEP, CLOSE, KEEP_10, CLOSE_10 = FRAMINGS = range(4)
"""How an answer is framed: the connection goes on or ends, in HTTP/1.1 and HTTP/1.0."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """What a plain request's head says."""

    end: int
    """Where the body begins."""
    whole: int
    """Where it ends."""
    framing: int
    key: str | None = None
    look: int | str | None = None
    """The product whose stock, or the order that is to be shown."""


def read_head(data: bytes) -> Head | None:
    """Return what the head at the start of the data says, None if it is not plain."""
    match = _HEAD.match(data)
    if match is None:
        return None
    product_id, order_id, minor, length, kind, host, _, connection, key = match.groups()
    is_look = product_id is not None or order_id is not None
    if host is None or is_look != (length is None) or (kind is None and not is_look):
        return None
    if minor == b"1":
        framing = CLOSE if connection is not None and connection.lower() == b"close" else KEEP
    else:
        framing = KEEP_10 if connection is not None and connection.lower() == b"keep-alive" else CLOSE_10
    end = match.end()
    if product_id is not None:
        return Head(end, end, framing, look=int(product_id))
    if order_id is not None:
        return Head(end, end, framing, look=order_id.decode("ascii").lower())
    return Head(end, end + int(length), framing, None if key is None else key.decode("ascii"))


def measure_message(data: bytes, start: int) -> int | None:
    """Return the length of the message that begins there: 0 if its head is cut off, None if not sure."""
    match = _FRAMED.match(data, start)
    if match is None:
        return 0 if _CUT_OFF_LINE.fullmatch(data, start) else None
    length, cut_off = match.groups()
    if cut_off is not None:
        return 0 if len(data) - start <= _MAX_CUT_OFF_BYTES else None
    return match.end() - start + int(length or 0)
