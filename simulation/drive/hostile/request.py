"""What a hostile client sends and does, and the parts that its requests are made of.

A request that may by chance be a valid purchase names the product DECOY; one that is hidden inside another
names SMUGGLED. Only invalid purchases name other products.
"""

import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple

DECOY: Final = 777_777_777_777_777_777
"""The product that hostile purchases may buy."""
SMUGGLED: Final = 333_333_333_333_333_333
"""The product that only a smuggled request would buy: its stock must not move."""
PRODUCTS_BELOW: Final = 10**12
"""The products below this are safe from hostile requests, so that a sale may have them."""

LINE: Final = b"POST /purchase/buy HTTP/1.1"


class Then(StrEnum):
    """What the client does once it has sent its bytes."""

    LISTEN = "listen"
    """It waits for a response, often not for long."""
    FIN = "fin"
    """It ends its side of the connection and waits for the other end."""
    RESET = "reset"
    """It resets the connection at once."""
    STAY = "stay"
    """It pauses between its pieces, and stays until it is dropped."""
    DEAF = "deaf"
    """It stays for a while and reads nothing."""


class HostileRequest(NamedTuple):
    """What one client sends, and what it does then."""

    pieces: tuple[bytes, ...]
    """What it sends, one after the other."""
    then: Then = Then.LISTEN
    whole: bool = False
    """Whether this is one complete message, well-formed as HTTP, which must be answered."""
    valid: bool = False
    """Whether it is a purchase, which must be accepted."""


Random = random.Random
Kind = Callable[[Random], HostileRequest]
Kinds = dict[str, tuple[float, Kind]]
"""Kinds of hostile requests by name, with the weights at which they are drawn."""


def one_of(texts: Sequence[bytes], build: Callable[[Random, bytes], bytes], *, whole: bool = False) -> Kind:
    """Return the kind that draws one of the texts and builds a request around it."""
    return lambda chance: HostileRequest((build(chance, chance.choice(texts)),), whole=whole)


def frame(body: bytes, *headers: bytes, line: bytes = LINE, length: bytes | None = None) -> bytes:
    """Return a request of `body`, with `length` in place of its true Content-Length if one is given."""
    lines = [line, b"Host: shop", *headers]
    if not any(header.lower().startswith(b"content-type") for header in headers):
        lines.append(b"Content-Type: application/json")
    lines.append(b"Content-Length: " + (b"%d" % len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def buy(chance: Random, product: int = DECOY) -> bytes:
    """Return the body of a valid purchase."""
    return b'{"userId":%d,"productId":%d}' % (chance.randint(1, 1_000_000), product)


def buy_with(chance: Random, header: bytes) -> bytes:
    """Return a purchase with one more header."""
    return frame(buy(chance), header)


def unframed(*headers: bytes) -> bytes:
    """Return a head without a length of its own."""
    return b"\r\n".join([LINE, b"Host: shop", b"Content-Type: application/json", *headers]) + b"\r\n\r\n"


def cut(chance: Random, text: bytes) -> tuple[bytes, ...]:
    """Return the text in one to three pieces."""
    places = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 0, 1, 2])))
    return tuple(text[start:end] for start, end in pairwise([0, *places, len(text)]) if start < end)
