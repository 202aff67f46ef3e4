"""Hostile HTTP: malformed messages, requests that hide others, and too much of everything.

Whatever may by chance be a valid purchase names the product DECOY alone, and what is hidden inside another
request names CANARY. simulation.fuzz.abuse draws from these kinds and its own.
"""

import gzip
import random
import zlib
from collections.abc import Callable
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

DECOY: Final = 777_777_777_777_777_777
"""The product that hostile purchases may buy."""
CANARY: Final = 333_333_333_333_333_333
"""The product that only a smuggled request would buy: its stock must not move."""
PRODUCTS_BELOW: Final = 10**12
"""No hostile request names a product below this but by an invalid purchase, so that a sale may have them."""

LINE: Final = b"POST /purchase/buy HTTP/1.1"


class Then(StrEnum):
    """What the client does once it has sent its bytes."""

    LISTEN = "listen"
    """It waits for an answer, often not for long."""
    FIN = "fin"
    """It ends its side of the connection and waits for the other end."""
    RESET = "reset"
    """It resets the connection at once."""
    STAY = "stay"
    """It stays until it is dropped."""
    DEAF = "deaf"
    """It stays for a while and reads nothing."""


class Hostile(NamedTuple):
    """What one client does."""

    pieces: tuple[bytes, ...]
    """What it sends, one after the other."""
    then: Then = Then.LISTEN
    pause_s: float = 0.0
    """Between two pieces."""
    whole: bool = False
    """Whether this is one complete message, well-formed as HTTP, which must be answered."""


Random = random.Random
Kind = Callable[[Random], Hostile]


def frame(body: bytes, *headers: bytes, line: bytes = LINE, length: bytes | None = None) -> bytes:
    """A request of `body`, with `length` in place of its true Content-Length if one is given."""
    lines = [line, b"Host: shop", *headers]
    if not any(header.lower().startswith(b"content-type") for header in headers):
        lines.append(b"Content-Type: application/json")
    lines.append(b"Content-Length: " + (b"%d" % len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def buy(chance: Random, product: int = DECOY) -> bytes:
    """The body of a valid purchase."""
    return b'{"userId":%d,"productId":%d}' % (chance.randint(1, 1_000_000), product)


def _smuggled(chance: Random) -> bytes:
    return frame(buy(chance, CANARY))


def unframed(*headers: bytes) -> bytes:
    """A head without a length of its own."""
    return b"\r\n".join([LINE, b"Host: shop", b"Content-Type: application/json", *headers]) + b"\r\n\r\n"


def cut(chance: Random, text: bytes) -> tuple[bytes, ...]:
    """The text in one to three pieces."""
    places = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 0, 1, 2])))
    return tuple(text[start:end] for start, end in pairwise([0, *places, len(text)]) if start < end)


# Malformed HTTP


def _bad_method(chance: Random) -> Hostile:
    method = chance.choice(
        [
            b"post", b"", b"P" * 5_000, b"PO ST", b"POST\x00", b"P\xc3\x96ST", b"(POST)", b"BREW", b"\tPOST",
            b"G",
        ]
    )  # fmt: skip
    return Hostile((frame(buy(chance), line=method + b" /purchase/buy HTTP/1.1"),))


def _bad_target(chance: Random) -> Hostile:
    target = chance.choice(
        [
            b"", b"purchase/buy", b"/purchase/buy /x", b"/purchase/\x00buy", b"/purchase/buy\x7f", b"/%zz",
            b"/%00", b"/%ff%fe", b"/../../etc/passwd", b"//purchase//buy", b"/purchase/buy#x", b"*",
            b"http://", b"http://[", b"http://[::1/purchase/buy", b"http://x:99999/purchase/buy",
            b"ftp://shop/purchase/buy", b"\xe2\x98\x83", b"/purchase/orders/" + b"%ed%a0%80",
            b"/purchase/orders/" + b"x" * 3_000, b"/purchase/stock?productId=%",
            b"/purchase/stock?productId=" + b"9" * 5_000, b"/?" + b"&" * 4_000, b"/" + b"%2f" * 1_000,
            b"shop:443", b"/purchase/init?productId=%d&stock=-1" % DECOY,
            b"/purchase/init?%ed%a0%80=1&productId=1&stock=1",
            b"/purchase/init?productId=%d&stock=1e3" % DECOY, b"/purchase/init?productId=1;stock=1",
            b"/\\..\\x",
        ]
    )  # fmt: skip
    method = chance.choice([b"POST", b"GET", b"CONNECT", b"OPTIONS"])
    return Hostile((frame(buy(chance), line=b"%b %b HTTP/1.1" % (method, target)),))


def _bad_version(chance: Random) -> Hostile:
    version = chance.choice(
        [
            b"", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"HTTP/11", b"HTTP/1.1x", b"HTTP/1.1 ",
            b"http/1.1", b"HTPP/1.1", b"HTTP/-1.1", b"HTTP/1,1", b"HTTP/1.\xd9\xa1", b"HTTP/" + b"9" * 2_000,
            b"\x00HTTP/1.1",
        ]
    )  # fmt: skip
    return Hostile((frame(buy(chance), line=b"POST /purchase/buy " + version),))


def _bad_header(chance: Random) -> Hostile:
    header = chance.choice(
        [
            b"X Y: a", b": a", b"X", b"X\x00: a", b"X\xe9: a", b"X : a", b" X: a", b"\x0bX: a", b"X(: a",
            b"X:\x00", b"X: a\x00b", b"X: a\rb", b"X: a\nb", b"X: \x7f", b"X: \xff\xfe", b"X: a\x0b",
            b"X:\r", b"=: ;", b"Host: other", b"Host: a b", b"Host: \x00", b"Host:",
            b"Content-Type: application/json; charset=\xff", b"Content-Type:", b"Content-Type: a/b/c",
            b"Content-Type: " + b";" * 2_000, b"Cookie: " + b"a=b;" * 500, b"Content-Encoding: \xff",
            b"Authorization: \xff", b"Range: bytes=0-18446744073709551616", b"Date: \xff",
        ]
    )  # fmt: skip
    return Hostile((frame(buy(chance), header),))


def _line_endings(chance: Random) -> Hostile:
    text = frame(buy(chance))
    head, _, body = text.partition(b"\r\n\r\n")
    changed = chance.choice(
        [
            text.replace(b"\r\n", b"\n"), text.replace(b"\r\n", b"\r"), text.replace(b"\r\n", b"\n\r"),
            text.replace(b"\r\n", b"\r\r\n"), text.replace(b"\r\n", b"\n", 1), b"\r\n" * 300 + text,
            b"\n" + text, head + b"\n\n" + body, head + b"\r\n\n" + body, head + b"\n\r\n" + body,
            head + b"\r\r" + body,
        ]
    )  # fmt: skip
    return Hostile((changed,))


def _folded_header(chance: Random) -> Hostile:
    header = chance.choice(
        [
            b"X: a\r\n b", b"X: a\r\n\tb", b"X:\r\n a", b"Transfer-Encoding:\r\n chunked",
            b"X: a\r\n" + b" b\r\n" * 900, b"Content-Length:\r\n 10", b"X: a\r\n Content-Length: 0",
            b"Idempotency-Key: a\r\n b",
        ]
    )  # fmt: skip
    return Hostile((frame(buy(chance), header),))


def _random_bytes(chance: Random) -> Hostile:
    start = chance.choice(
        [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    )
    return Hostile((start + chance.randbytes(chance.randint(1, 2_000)),))


# Request smuggling


def _two_lengths(chance: Random) -> Hostile:
    """Both Content-Length and Transfer-Encoding, in every disguise, with a purchase behind the end."""
    coding = chance.choice(
        [
            b"Transfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding : chunked",
            b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: chunked, identity",
            b"transfer-encoding:chunked", b"Transfer-Encoding: identity, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            b"X: a\nTransfer-Encoding: chunked", b"Transfer-Encoding:\r\n chunked",
            b"Transfer-Encoding: \"chunked\"", b"Transfer-Encoding: chunked\x00",
            b"Transfer-Encoding: ChUnKeD", b" Transfer-Encoding: chunked",
        ]
    )  # fmt: skip
    inner = _smuggled(chance)
    outer = chance.choice(
        [b"0\r\n\r\n" + inner, b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner), buy(chance) + inner]
    )
    length = chance.choice([0, 1, 3, 5, len(outer) - len(inner), len(outer), len(outer) + 10])
    headers = [coding, b"Content-Length: %d" % length]
    chance.shuffle(headers)
    return Hostile(cut(chance, unframed(*headers) + outer))


def _lengths_that_disagree(chance: Random) -> Hostile:
    """Content-Length more than once, or as a number that readers may read differently."""
    body, inner = buy(chance), _smuggled(chance)
    true, long = b"%d" % len(body), b"%d" % (len(body) + len(inner))
    length = chance.choice(
        [
            true + b"\r\nContent-Length: " + long, long + b"\r\nContent-Length: " + true,
            true + b", " + long, b"+" + true, b"-" + true, b"0x" + true, true + b".0", true + b"e0",
            b"00 " + true, true + b" 0", b"", b" ", b"\xd9\xa1", true + b"\x00", b"1" * 30,
            b"18446744073709551616", true + b"\r\n 0", b"0\r\nContent-Length: " + long,
            true + b"\nContent-Length: 0",
        ]
    )  # fmt: skip
    return Hostile(cut(chance, frame(body, length=length) + inner))


def _broken_chunks(chance: Random) -> Hostile:
    """Chunks whose size or end is read one way by the strict and another by the lenient."""
    body, inner = buy(chance), _smuggled(chance)
    size = b"%x" % len(body)
    chunks = chance.choice(
        [
            b"0x%b\r\n%b\r\n0\r\n\r\n" % (size, body), b"+%b\r\n%b\r\n0\r\n\r\n" % (size, body),
            b"-%b\r\n%b\r\n0\r\n\r\n" % (size, body), b"%b \r\n%b\r\n0\r\n\r\n" % (size, body),
            b"%b\n%b\n0\n\n" % (size, body), b"%b\r\n%b0\r\n\r\n" % (size, body), b"f" * 17 + b"\r\n" + body,
            b"%b\r\n%bXX0\r\n\r\n" % (size, body), b"%b;a\nb\r\n%b\r\n0\r\n\r\n" % (size, body),
            b"\r\n" + body, b"%b;%b\r\n%b\r\n0\r\n\r\n" % (size, b"x" * 9_000, body), b"zz\r\n" + body,
            b"1_0\r\n" + body, b"%b\r\n%b\r\n0\r\nContent-Length: 9\r\n\r\n" % (size, body),
            b"0\r\n" + b"T: a\r\n" * 500 + b"\r\n", b"%b\r\n%b\r\n0\r\nX\r\n\r\n" % (size, body), b"0\n\n",
            b"0\r\n\n", b"ffffffffffffffff\r\n" + body, b"%b\r\r\n%b\r\n0\r\n\r\n" % (size, body),
            b"1\r\n{\r\n" * 300, b"0;\n\r\n\r\n",
        ]
    )  # fmt: skip
    # A whole last chunk ends the request, and the next one would be a purchase in its own right.
    hidden = inner if not chunks.endswith((b"\r\n0\r\n\r\n", b"9\r\n\r\n", b"a\r\n\r\n", b"0\n\n")) else b""
    return Hostile(cut(chance, unframed(b"Transfer-Encoding: chunked") + chunks + hidden))


def _hidden_in_a_body(chance: Random) -> Hostile:
    """A purchase as the body of another request, which may be refused long before its body has come."""
    inner = _smuggled(chance)
    line = chance.choice(
        [
            LINE, b"GET /healthz HTTP/1.1", b"GET /nowhere HTTP/1.1", b"PUT /purchase/buy HTTP/1.1",
            b"POST /x HTTP/1.1", b"GET /purchase/stock?productId=0 HTTP/1.1",
            b"POST /purchase/init HTTP/1.1", b"DELETE / HTTP/1.1",
        ]
    )  # fmt: skip
    filler = b" " * chance.choice([0, 0, 100, 3_000, 70_000])
    kind = chance.choice([b"application/json", b"text/plain", b""])
    extra = [b"Expect: 100-continue"] if chance.random() < 0.2 else []
    text = frame(filler + inner, b"Content-Type: " + kind, *extra, line=line)
    if chance.random() < 0.5:
        return Hostile((text[: -len(inner)], inner))
    return Hostile((text,))


def _upgrade(chance: Random) -> Hostile:
    """A purchase behind the request for another protocol, which is not given."""
    inner = _smuggled(chance)
    head = chance.choice(
        [
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Content-Length: %d\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: %d\r\n\r\n",
            b"CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\nContent-Length: %d\r\n\r\n",
        ]
    )  # fmt: skip
    return Hostile((head % len(inner), inner))


# Too much of everything


def _oversized_head(chance: Random) -> Hostile:
    big = chance.choice([5_000, 9_000, 9_000, 70_000])
    header, many = b"X: a", big // 6
    match chance.randrange(6):
        case 0:
            text = frame(buy(chance), line=b"POST /purchase/buy?" + b"a" * big + b" HTTP/1.1")
        case 1:
            text = frame(buy(chance), b"X: " + b"a" * big)
        case 2:
            text = frame(buy(chance), b"a" * big + b": a")
        case 3:
            text = frame(buy(chance), b"\r\n".join([header] * many))
        case 4:
            text = frame(buy(chance), b"Idempotency-Key: " + b"k" * big)
        case _:
            text = b"POST " + b"a" * big
    return Hostile((text,))


def _oversized_body(chance: Random) -> Hostile:
    big = chance.choice([2_048, 2_048, 9_000, 70_000])
    match chance.randrange(6):
        case 0:
            text = frame(b" " * big)
        case 1:
            text = frame(buy(chance) + b" " * big)
        case 2:
            text = frame(b'{"a":"' + b"x" * big + b'"}')
        case 3:
            text = frame(b"{" + b" " * 500, length=b"9" * 18)
        case 4:
            text = frame(b" " * big * 10)
        case _:
            text = unframed(b"Transfer-Encoding: chunked") + (b"400\r\n" + b" " * 1024 + b"\r\n") * (
                big // 1024
            )
    return Hostile((text,))


def _compressed(chance: Random) -> Hostile:
    """A body that unpacks to a thousand times its size, or doesn't unpack."""
    coding, body = chance.choice(
        [
            *_BOMBS,
            (b"gzip", buy(chance)),
            (b"br", chance.randbytes(50)),
            (b"zstd", chance.randbytes(50)),
            (b"gzip, gzip", chance.randbytes(50)),
            (b"nonsense", buy(chance)),
        ]
    )
    return Hostile((frame(body, b"Content-Encoding: " + coding),))


_BOMB: Final = b" " * 2_000_000 + b'{"userId":1,"productId":%d}' % DECOY
_BOMBS: Final = (
    (b"gzip", gzip.compress(_BOMB, mtime=0)),
    (b"deflate", zlib.compress(_BOMB)),
    (b"gzip", gzip.compress(_BOMB, mtime=0)[:-9]),
    (b"gzip", gzip.compress(_BOMB[-100:], mtime=0)),
)


HTTP_KINDS: Final[tuple[tuple[float, Kind], ...]] = (
    (4, _bad_method), (4, _bad_target), (3, _bad_version), (4, _bad_header), (3, _line_endings),
    (3, _folded_header), (3, _random_bytes), (5, _two_lengths), (5, _lengths_that_disagree),
    (5, _broken_chunks), (4, _hidden_in_a_body), (2, _upgrade), (3, _oversized_head), (2, _oversized_body),
    (2, _compressed),
)  # fmt: skip
"""The kinds of this module, with the weights at which they are drawn."""
