"""Abuse: all kinds of hostile clients, drawn from a seed.

To the hostile HTTP of simulation.fuzz.hostile come bad input in good HTTP, clients that are slow, half there
or many at once, and random mutations of valid requests.
"""

import re
from itertools import accumulate
from typing import Final

from simulation.drive.hostile.http import (
    DECOY,
    HTTP_KINDS,
    LINE,
    PRODUCTS_BELOW,
    Hostile,
    Kind,
    Random,
    Then,
    buy,
    cut,
    frame,
    unframed,
)

_NAMED: Final = re.compile(rb"productId[^0-9]{0,16}([0-9]*)")
_FAR: Final = 10**30


def draw(seed: int, number: int) -> tuple[str, Hostile]:
    """The kind and the client of a number, from 0 on; a pure function, so that both can be had again."""
    chance = Random(f"hostile {seed} {number}")
    kind = chance.choices(_NAMES, cum_weights=_WEIGHTS)[0]
    return kind, KINDS[kind][1](chance)


# Bad input in good HTTP


def _bad_json(chance: Random) -> Hostile:
    decoy = b'"productId":%d' % DECOY
    deep = chance.choice([100, 500, 900])
    body = chance.choice(
        [
            b"[" * 2 * deep, b"[" * deep + b"]" * deep, b'{"a":' * (deep // 5 * 2), b"null", b"true", b"1",
            b'"x"', b"", b" ", b"[]", b"{}", b"{", b"{]", b"{'userId':1}", b'{"userId":1,}',
            b"\xef\xbb\xbf{}", b"\x00", b"{}{}", b'{"userId":1,%b}//' % decoy, b'{"userId":NaN,%b}' % decoy,
            b'{"userId":Infinity,%b}' % decoy, b'{"userId":-1,%b}' % decoy, b'{"userId":0,%b}' % decoy,
            b'{"userId":1.0,%b}' % decoy, b'{"userId":1e0,%b}' % decoy, b'{"userId":1E400,%b}' % decoy,
            b'{"userId":-0,%b}' % decoy, b'{"userId":01,%b}' % decoy, b'{"userId":+1,%b}' % decoy,
            b'{"userId":0x1,%b}' % decoy, b'{"userId":%d,%b}' % (_FAR, decoy),
            b'{"userId":%b,%b}' % (b"9" * 1_900, decoy), b'{"userId":9223372036854775808,%b}' % decoy,
            b'{"userId":18446744073709551617,%b}' % decoy, b'{"userId":0.%b1,%b}' % (b"0" * 1_000, decoy),
            b'{"userId":"1",%b}' % decoy, b'{"userId":null,%b}' % decoy, b'{"userId":true,%b}' % decoy,
            b'{"userId":[1],%b}' % decoy, b'{"userId":{"a":1},%b}' % decoy,
            b'{"userId":1,"userId":2,%b}' % decoy, b'{"userId":1,"user\\u0049d":2,%b}' % decoy,
            b'{"userId":1,%b,%b}' % (decoy, decoy), b'{"userId":1,%b,"admin":true}' % decoy,
            b'{"userId":1,%b,"\\ud800":1}' % decoy, b'{"userId":1,%b,"\\u0000":1}' % decoy,
            b'{"userId":1,%b,"\xff":1}' % decoy, b'{"userId":1,%b,"\xed\xa0\x80":1}' % decoy,
            b'{"userId":1,%b,"%b":1}' % (decoy, b"n" * 1_900), b'{"userId":1,%b,"":1}' % decoy,
            b'{"__proto__":{},"userId":1,%b}' % decoy, b"\xff\xfe{\x00}\x00", b'{"userId":1\x00,%b}' % decoy,
            b'{"USERID":1,%b}' % decoy, b'{"userId":1 %b}' % decoy,
        ]
    )  # fmt: skip
    return Hostile((frame(body),), whole=True)


def _bad_key(chance: Random) -> Hostile:
    key = chance.choice(
        [
            b"", b" ", b"a b", b"k" * 129, b"k" * 4_000, b"\t", b"a\tb", b"\xe9", b"\xff",
            b"k\r\nIdempotency-Key: l", b"k\r\nidempotency-key: k", b"\xe2\x82\xac",
            b"'; DROP TABLE orders; --", b"%00", b"=", b".", b"\\", b"{}",
        ]
    )  # fmt: skip
    return Hostile((frame(buy(chance), b"Idempotency-Key: " + key),), whole=True)


def _bad_query(chance: Random) -> Hostile:
    path = chance.choice(
        [
            b"/purchase/stock", b"/purchase/stock?productId=", b"/purchase/stock?productId=0",
            b"/purchase/stock?a=1", b"/purchase/stock?productId=-1", b"/purchase/stock?productId=1.5",
            b"/purchase/stock?productId=%31%00", b"/purchase/stock?productId=9223372036854775808",
            b"/purchase/stock?productId=" + b"1" * 4_400, b"/purchase/stock?productId=1&productId=2",
            b"/purchase/stock?productId=%D9%A1", b"/purchase/stock?%FF=%FF", b"/purchase/stock?productId=+1",
            b"/purchase/stock?productId=%ED%A0%80", b"/purchase/orders/%00", b"/purchase/orders/x",
            b"/purchase/orders/..%2f..", b"/purchase/orders/%F0%9F%98%80", b"/purchase/orders/",
            b"/purchase/orders/01A204E2-1a27-7e59-a520-fa94be021000", b"/purchase/orders/'%20OR%201=1",
            b"/purchase/orders/01a204e2-1a27-7e59-a520-fa94be021000", b"/purchase/orders/" + b"0" * 2_000,
        ]
    )  # fmt: skip
    return Hostile((frame(b"", line=b"GET %b HTTP/1.1" % path),), whole=True)


def _bad_opening(chance: Random) -> Hostile:
    """A sale that can't be opened."""
    query = chance.choice(
        [
            b"", b"productId=1", b"stock=1", b"productId=0&stock=1", b"productId=1&stock=-1",
            b"productId=1&stock=x", b"productId=1&stock=1&stock=2", b"productId=1&stock=1&limit=0",
            b"productId=1&stock=1&quantity=0", b"productId=1&stock=1&limit=1&quantity=2",
            b"productId=1&stock=1&startsAt=9&endsAt=8", b"%ED%A0%80=1", b"productId=1&stock=1000000000001",
            b"productId=1&stock=1&owner=me", b"productId=1&stock=" + b"9" * 4_000,
            b"productId=1&stock=1&%FF=1", b"productId=1&stock=1&endsAt=99999999999999999",
            b"productId=1e0&stock=1",
        ]
    )  # fmt: skip
    return Hostile((frame(b"", line=b"POST /purchase/init?%b HTTP/1.1" % query),), whole=True)


def _wrong_type(chance: Random) -> Hostile:
    kind = chance.choice(
        [b"text/plain", b"", b"application/xml", b"multipart/form-data; boundary=x", b"json", b"*/*"]
    )
    return Hostile((frame(buy(chance), b"Content-Type: " + kind),), whole=True)


# Many at once, slow, and half


def _pipelined_garbage(chance: Random) -> Hostile:
    good = [frame(buy(chance)) for _ in range(chance.randint(1, 40))]
    bad = chance.choice(
        [chance.randbytes(200), b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"}" * 3_000, b"\r\n" * 50]
    )
    good.insert(chance.randint(0, len(good)), bad)
    return Hostile(cut(chance, b"".join(good)))


def _half_open(chance: Random) -> Hostile:
    """A client that ends or resets the connection somewhere in the middle."""
    text = frame(buy(chance))
    end = chance.choice([0, 1, chance.randint(1, len(text) - 1), text.index(b"\r\n\r\n") + 4, len(text)])
    return Hostile(cut(chance, text[:end]), chance.choice([Then.FIN, Then.RESET]))


def _slow_head(chance: Random) -> Hostile:
    """Slowloris: a head that comes a little at a time and has no end."""
    drops = [b"X-%d: a\r\n" % number for number in range(400)]
    pieces = chance.choice(
        [(), (LINE[:9],), (LINE + b"\r\n", *drops), tuple(b"%c" % byte for byte in LINE * 9)]
    )
    return Hostile(pieces, Then.STAY, 0.1)


def _slow_body(chance: Random) -> Hostile:
    """A body that comes a little at a time, or not at all."""
    head = frame(b"", length=b"1999")
    pieces = chance.choice(
        [(head,), (head[:70], head[70:]), (head, *[b" "] * 300), (head + b"{", *[b" " * 5] * 300)]
    )
    return Hostile(pieces, Then.STAY, 0.1)


def _slow_chunks(chance: Random) -> Hostile:
    """Chunks of a byte each that never end."""
    return Hostile((unframed(b"Transfer-Encoding: chunked"), *[b"1\r\n \r\n"] * 300), Then.STAY, 0.1)


def _deaf(chance: Random) -> Hostile:
    """A client that asks for much and reads nothing."""
    ask = chance.choice([b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", frame(buy(chance))])
    return Hostile((ask * 300,), Then.DEAF)


# Mutations

_TOKENS: Final = (
    b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b"{", b"}", b'"', b",", b"0", b"-", b"9" * 25,
    b"\xff", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
    b"HTTP/1.0", b"%00", b"Connection: close\r\n", b"\\u0000", b"GET ", b"POST ", b"\xed\xa0\x80",
    b"Upgrade: x\r\n", b"null", b"1e9",
)  # fmt: skip


def _mutation(chance: Random) -> Hostile:
    """A valid request, changed in a few places at random."""
    while True:
        text = _mutate(chance, _valid(chance))
        # What names another product than the decoy might disturb the sale that is judged.
        if (
            all(len(digits) >= len(str(PRODUCTS_BELOW)) for digits in _NAMED.findall(text))
            and b"HEAD" not in text
        ):
            return Hostile(cut(chance, text), Then.FIN if chance.random() < 0.1 else Then.LISTEN)


def _valid(chance: Random) -> bytes:
    body = buy(chance)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return chance.choice(
        [
            frame(body), frame(body), frame(body, b"Idempotency-Key: k%d" % chance.randint(1, 10**6)),
            frame(body, b"Connection: keep-alive", b"User-Agent: a/1", b"Accept: */*"),
            frame(body) + frame(body), unframed(b"Transfer-Encoding: chunked") + chunks,
            frame(b' {"productId": %d, "userId": 5}' % DECOY),
            b"GET /purchase/stock?productId=%d HTTP/1.1\r\nHost: x\r\n\r\n" % DECOY,
            b"GET /purchase/orders/01a204e2-1a27-7e59-a520-fa94be021000 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
    )  # fmt: skip


def _mutate(chance: Random, text: bytes) -> bytes:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([1, 1, 2, 8, 40]))
        match chance.randrange(7):
            case 0 if start < len(text):
                text = text[:start] + bytes([text[start] ^ 1 << chance.randrange(8)]) + text[start + 1 :]
            case 1:
                text = text[:start] + chance.randbytes(end - start) + text[end:]
            case 2 | 3:
                text = text[:start] + chance.choice(_TOKENS) + text[start:]
            case 4:
                text = text[:start] + text[end:]
            case 5:
                text = text[:end] + text[start:end] * chance.choice([1, 2, 50]) + text[end:]
            case _:
                text = text[: max(start, 1)] if chance.random() < 0.3 else text
    return text


KINDS: Final[dict[str, tuple[float, Kind]]] = {
    kind.__name__.strip("_").replace("_", " "): (weight, kind)
    for weight, kind in (
        *HTTP_KINDS, (10, _bad_json), (4, _bad_key), (4, _bad_query), (3, _bad_opening), (2, _wrong_type),
        (2, _pipelined_garbage), (4, _half_open), (0.2, _slow_head), (0.2, _slow_body), (0.1, _slow_chunks),
        (0.1, _deaf), (30, _mutation),
    )
}  # fmt: skip
"""Every kind by name, with the weight at which it is drawn."""
_NAMES: Final = list(KINDS)
_WEIGHTS: Final = list(accumulate(weight for weight, _ in KINDS.values()))
