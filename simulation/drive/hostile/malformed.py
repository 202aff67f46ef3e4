"""Malformed HTTP messages, and too much of everything."""

import gzip
import zlib
from typing import Final

from simulation.drive.hostile.request import (
    DECOY,
    HostileRequest,
    Kinds,
    Random,
    buy,
    buy_with,
    frame,
    one_of,
    unframed,
)

_METHODS: Final = (
    b"post", b"", b"P" * 5_000, b"PO ST", b"POST\x00", b"P\xc3\x96ST", b"(POST)", b"BREW", b"\tPOST",
    b"G",
)  # fmt: skip
_VERSIONS: Final = (
    b"", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"HTTP/11", b"HTTP/1.1x", b"HTTP/1.1 ",
    b"http/1.1", b"HTPP/1.1", b"HTTP/-1.1", b"HTTP/1,1", b"HTTP/1.\xd9\xa1", b"HTTP/" + b"9" * 2_000,
    b"\x00HTTP/1.1",
)  # fmt: skip
_HEADERS: Final = (
    b"X Y: a", b": a", b"X", b"X\x00: a", b"X\xe9: a", b"X : a", b" X: a", b"\x0bX: a", b"X(: a",
    b"X:\x00", b"X: a\x00b", b"X: a\rb", b"X: a\nb", b"X: \x7f", b"X: \xff\xfe", b"X: a\x0b",
    b"X:\r", b"=: ;", b"Host: other", b"Host: a b", b"Host: \x00", b"Host:",
    b"Content-Type: application/json; charset=\xff", b"Content-Type:", b"Content-Type: a/b/c",
    b"Content-Type: " + b";" * 2_000, b"Cookie: " + b"a=b;" * 500, b"Content-Encoding: \xff",
    b"Authorization: \xff", b"Range: bytes=0-18446744073709551616", b"Date: \xff",
)  # fmt: skip
_FOLDED: Final = (
    b"X: a\r\n b", b"X: a\r\n\tb", b"X:\r\n a", b"Transfer-Encoding:\r\n chunked",
    b"X: a\r\n" + b" b\r\n" * 900, b"Content-Length:\r\n 10", b"X: a\r\n Content-Length: 0",
    b"Idempotency-Key: a\r\n b",
)  # fmt: skip
_BOMB: Final = b" " * 2_000_000 + b'{"userId":1,"productId":%d}' % DECOY
_BOMBS: Final = (
    (b"gzip", gzip.compress(_BOMB, mtime=0)),
    (b"deflate", zlib.compress(_BOMB)),
    (b"gzip", gzip.compress(_BOMB, mtime=0)[:-9]),
    (b"gzip", gzip.compress(_BOMB[-100:], mtime=0)),
)


def _bad_target(chance: Random) -> HostileRequest:
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
    return HostileRequest((frame(buy(chance), line=b"%b %b HTTP/1.1" % (method, target)),))


def _line_endings(chance: Random) -> HostileRequest:
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
    return HostileRequest((changed,))


def _random_bytes(chance: Random) -> HostileRequest:
    start = chance.choice(
        [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    )
    return HostileRequest((start + chance.randbytes(chance.randint(1, 2_000)),))


def _oversized_head(chance: Random) -> HostileRequest:
    big = chance.choice([5_000, 9_000, 9_000, 70_000])
    place, body = chance.randrange(6), buy(chance)
    texts = [
        frame(body, line=b"POST /purchase/buy?" + b"a" * big + b" HTTP/1.1"),
        frame(body, b"X: " + b"a" * big),
        frame(body, b"a" * big + b": a"),
        frame(body, b"\r\n".join([b"X: a"] * (big // 6))),
        frame(body, b"Idempotency-Key: " + b"k" * big),
        b"POST " + b"a" * big,
    ]
    return HostileRequest((texts[place],))


def _oversized_body(chance: Random) -> HostileRequest:
    big = chance.choice([2_048, 2_048, 9_000, 70_000])
    place, body = chance.randrange(6), buy(chance)
    texts = [
        frame(b" " * big),
        frame(body + b" " * big),
        frame(b'{"a":"' + b"x" * big + b'"}'),
        frame(b"{" + b" " * 500, length=b"9" * 18),
        frame(b" " * big * 10),
        unframed(b"Transfer-Encoding: chunked") + (b"400\r\n" + b" " * 1024 + b"\r\n") * (big // 1024),
    ]
    return HostileRequest((texts[place],))


def _compressed(chance: Random) -> HostileRequest:
    """Return a body that unpacks to a thousand times its size, or does not unpack."""
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
    return HostileRequest((frame(body, b"Content-Encoding: " + coding),))


MALFORMED: Final[Kinds] = {
    "bad method": (
        4,
        one_of(
            _METHODS,
            lambda chance, method: frame(buy(chance), line=method + b" /purchase/buy HTTP/1.1"),
        ),
    ),
    "bad target": (4, _bad_target),
    "bad version": (
        3,
        one_of(
            _VERSIONS,
            lambda chance, version: frame(buy(chance), line=b"POST /purchase/buy " + version),
        ),
    ),
    "bad header": (4, one_of(_HEADERS, buy_with)),
    "line endings": (3, _line_endings),
    "folded header": (3, one_of(_FOLDED, buy_with)),
    "random bytes": (3, _random_bytes),
}
OVERSIZED: Final[Kinds] = {
    "oversized head": (3, _oversized_head),
    "oversized body": (2, _oversized_body),
    "compressed": (2, _compressed),
}
