"""Bad input in good HTTP, valid purchases in every spelling, and requests that are mutated at random."""

import re
from typing import Final

from simulation.drive.hostile.request import (
    DECOY,
    LINE,
    PRODUCTS_BELOW,
    HostileRequest,
    Kinds,
    Random,
    Then,
    buy,
    buy_with,
    cut,
    frame,
    one_of,
    unframed,
)

_LENGTH: Final = re.compile(rb"Content-Length: \d+")
_NAMED: Final = re.compile(rb"productId[^0-9]{0,16}([0-9]*)")
_KEYS: Final = (
    b"", b" ", b"a b", b"k" * 129, b"k" * 4_000, b"\t", b"a\tb", b"\xe9", b"\xff",
    b"k\r\nIdempotency-Key: l", b"k\r\nidempotency-key: k", b"\xe2\x82\xac",
    b"'; DROP TABLE orders; --", b"%00", b"=", b".", b"\\", b"{}",
)  # fmt: skip
_PATHS: Final = (
    b"/purchase/stock", b"/purchase/stock?productId=", b"/purchase/stock?productId=0",
    b"/purchase/stock?a=1", b"/purchase/stock?productId=-1", b"/purchase/stock?productId=1.5",
    b"/purchase/stock?productId=%31%00", b"/purchase/stock?productId=9223372036854775808",
    b"/purchase/stock?productId=" + b"1" * 4_400, b"/purchase/stock?productId=1&productId=2",
    b"/purchase/stock?productId=%D9%A1", b"/purchase/stock?%FF=%FF", b"/purchase/stock?productId=+1",
    b"/purchase/stock?productId=%ED%A0%80", b"/purchase/orders/%00", b"/purchase/orders/x",
    b"/purchase/orders/..%2f..", b"/purchase/orders/%F0%9F%98%80", b"/purchase/orders/",
    b"/purchase/orders/01A204E2-1a27-7e59-a520-fa94be021000", b"/purchase/orders/'%20OR%201=1",
    b"/purchase/orders/01a204e2-1a27-7e59-a520-fa94be021000", b"/purchase/orders/" + b"0" * 2_000,
)  # fmt: skip
_OPENINGS: Final = (
    b"", b"productId=1", b"stock=1", b"productId=0&stock=1", b"productId=1&stock=-1",
    b"productId=1&stock=x", b"productId=1&stock=1&stock=2", b"productId=1&stock=1&limit=0",
    b"productId=1&stock=1&quantity=0", b"productId=1&stock=1&limit=1&quantity=2",
    b"productId=1&stock=1&startsAt=9&endsAt=8", b"%ED%A0%80=1", b"productId=1&stock=1000000000001",
    b"productId=1&stock=1&owner=me", b"productId=1&stock=" + b"9" * 4_000,
    b"productId=1&stock=1&%FF=1", b"productId=1&stock=1&endsAt=99999999999999999",
    b"productId=1e0&stock=1",
)  # fmt: skip
_TYPES: Final = (
    b"text/plain", b"", b"application/xml", b"multipart/form-data; boundary=x", b"json", b"*/*",
)  # fmt: skip
_HARMLESS: Final = (
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)", b"Accept: application/json, text/plain, */*",
    b'sec-ch-ua: "Chromium";v="126"', b"Sec-Fetch-Mode: cors", b"Accept-Encoding: gzip, deflate, br",
    b"Cookie: session=0123456789abcdef; theme=dark", b"Cookie: caf\xc3\xa9=1", b"Origin: https://shop.example",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"X-Forwarded-For: 10.0.0.1",
    b"X-Forwarded-For: 10.0.0.2, 10.0.0.3", b"X-Request-Id:", b"Pragma: no-cache", b"TE: trailers",
    b"Content-Language: en", b"Upgrade-Insecure-Requests: 1", b"X-Long: " + b"x" * 3_000,
)  # fmt: skip
_JSON_TYPES: Final = (
    b"application/json", b"application/json; charset=utf-8", b"application/json;charset=UTF-8",
    b'Application/JSON ;charset="utf-8"', b"application/json; charset=utf8; v=1", b"application/json;",
    b"application/json;odata=verbose", b"application/json; charset=iso-8859-1",
)  # fmt: skip
_TOKENS: Final = (
    b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b"{", b"}", b'"', b",", b"0", b"-", b"9" * 25,
    b"\xff", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n",
    b"HTTP/1.0", b"%00", b"Connection: close\r\n", b"\\u0000", b"GET ", b"POST ", b"\xed\xa0\x80",
    b"Upgrade: x\r\n", b"null", b"1e9",
)  # fmt: skip


def _bad_json(chance: Random) -> HostileRequest:
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
            b'{"userId":0x1,%b}' % decoy, b'{"userId":%d,%b}' % (10**30, decoy),
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
    return HostileRequest((frame(body),), whole=True)


def _mutation(chance: Random) -> HostileRequest:
    """Send a valid request that is changed in a few places at random."""
    while True:
        text = _mutate(chance, _valid(chance))
        # A request that names another product than the decoy might disturb the sale that is judged.
        if (
            all(len(digits) >= len(str(PRODUCTS_BELOW)) for digits in _NAMED.findall(text))
            and b"HEAD" not in text
        ):
            return HostileRequest(cut(chance, text), Then.FIN if chance.random() < 0.1 else Then.LISTEN)


def _spell(chance: Random) -> bytes:
    """Return a valid purchase as some client writes it."""
    blanks = [chance.choice([b"", b"", b" ", b"\n", b"\r\n\t"]) for _ in range(5)]
    fields = [
        b'"userId":%b%d' % (blanks[0], chance.randint(1, 10**6)),
        b'"productId":%b%d' % (blanks[1], DECOY),
    ]
    chance.shuffle(fields)
    body = b"{%b%b,%b%b}%b" % (blanks[2], fields[0], blanks[3], fields[1], blanks[4])
    headers = chance.sample(_HARMLESS, chance.randint(0, 8))
    if chance.random() < 0.3:
        headers.append(b"Idempotency-Key: k%d" % chance.randint(1, 10**6))
    headers.append(b"Content-Type: " + chance.choice(_JSON_TYPES))
    headers += chance.choice([[], [b"Connection: keep-alive"], [b"connection: Close"]])
    chance.shuffle(headers)
    return frame(body, *headers, line=chance.choice([LINE, LINE[:-1] + b"0"]))


def _spelling(chance: Random) -> HostileRequest:
    """Send a purchase that some client might send, with its body chunked or not; some end their side then."""
    text = _spell(chance)
    if text.startswith(LINE) and chance.random() < 0.3:
        text = _chunk(chance, text)
    end = text.index(b"\r\n\r\n") + 4
    pieces = chance.choice([(text,), (text[:end], text[end:]), (text[:60], text[60:]), cut(chance, text)])
    then = Then.FIN if chance.random() < 0.2 else Then.LISTEN
    return HostileRequest(pieces, then, whole=True, valid=True)


def _chunk(chance: Random, text: bytes) -> bytes:
    """Return a request with its body in chunks, mostly in one."""
    head, _, body = text.partition(b"\r\n\r\n")
    size = chance.choice([len(body), len(body), 20, 7, 1])
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    head = _LENGTH.sub(b"Transfer-Encoding: chunked", head)
    return (
        head + b"\r\n\r\n" + b"".join(b"%X\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
    )


def _valid(chance: Random) -> bytes:
    body = buy(chance)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return chance.choice(
        [
            frame(body), frame(body), frame(body, b"Idempotency-Key: k%d" % chance.randint(1, 10**6)),
            frame(body, b"Connection: keep-alive", b"User-Agent: a/1", b"Accept: */*"),
            frame(body) + frame(body), unframed(b"Transfer-Encoding: chunked") + chunks,
            _spell(chance), _spell(chance), _spell(chance) + frame(body),
            b"GET /purchase/stock?productId=%d HTTP/1.1\r\nHost: x\r\n\r\n" % DECOY,
            b"GET /purchase/orders/01a204e2-1a27-7e59-a520-fa94be021000 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
    )  # fmt: skip


def _mutate(chance: Random, text: bytes) -> bytes:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([1, 1, 2, 8, 40]))
        part = text[start:end]
        changes = [
            bytes(byte ^ 1 << chance.randrange(8) for byte in part),
            chance.randbytes(len(part)),
            chance.choice(_TOKENS) + part,
            chance.choice(_TOKENS) + part,
            b"",
            part * chance.choice([2, 3, 51]),
        ]
        rest = text[end:] if chance.random() < 0.95 else b""
        text = text[:start] + chance.choice(changes) + rest
    return text


BAD_INPUT: Final[Kinds] = {
    "bad json": (10, _bad_json),
    "bad key": (
        4,
        one_of(_KEYS, lambda chance, key: buy_with(chance, b"Idempotency-Key: " + key), whole=True),
    ),
    "bad query": (4, one_of(_PATHS, lambda _, path: frame(b"", line=b"GET %b HTTP/1.1" % path), whole=True)),
    "bad opening": (
        3,
        one_of(
            _OPENINGS,
            lambda _, query: frame(b"", line=b"POST /purchase/init?%b HTTP/1.1" % query),
            whole=True,
        ),
    ),
    "wrong type": (
        2,
        one_of(_TYPES, lambda chance, kind: buy_with(chance, b"Content-Type: " + kind), whole=True),
    ),
}
MUTATED: Final[Kinds] = {"spelling": (10, _spelling), "mutation": (30, _mutation)}
