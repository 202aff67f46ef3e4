"""All kinds of hostile requests, drawn from a seed; and clients that are slow, half there or many at once."""

from typing import Final

from simulation.drive.hostile.inputs import BAD_INPUT, MUTATED
from simulation.drive.hostile.malformed import MALFORMED, OVERSIZED
from simulation.drive.hostile.request import (
    LINE,
    HostileRequest,
    Kinds,
    Random,
    Then,
    buy,
    cut,
    frame,
    unframed,
)
from simulation.drive.hostile.smuggling import SMUGGLING


def draw(seed: int, number: int) -> tuple[str, HostileRequest]:
    """Return the kind and the request of a client by its number, from 0 on: the same seed gives the same."""
    chance = Random(f"hostile {seed} {number}")
    kind = chance.choices(list(KINDS), [weight for weight, _ in KINDS.values()])[0]
    return kind, KINDS[kind][1](chance)


def _pipelined_garbage(chance: Random) -> HostileRequest:
    good = [frame(buy(chance)) for _ in range(chance.randint(1, 40))]
    bad = chance.choice(
        [chance.randbytes(200), b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"}" * 3_000, b"\r\n" * 50]
    )
    good.insert(chance.randint(0, len(good)), bad)
    return HostileRequest(cut(chance, b"".join(good)))


def _half_open(chance: Random) -> HostileRequest:
    """End or reset the connection somewhere in the middle."""
    text = frame(buy(chance))
    end = chance.choice([0, 1, chance.randint(1, len(text) - 1), text.index(b"\r\n\r\n") + 4, len(text)])
    return HostileRequest(cut(chance, text[:end]), chance.choice([Then.FIN, Then.RESET]))


def _slow_head(chance: Random) -> HostileRequest:
    """Send a head a little at a time that never ends (Slowloris)."""
    drops = [b"X-%d: a\r\n" % number for number in range(400)]
    pieces = chance.choice(
        [(), (LINE[:9],), (LINE + b"\r\n", *drops), tuple(b"%c" % byte for byte in LINE * 9)]
    )
    return HostileRequest(pieces, Then.STAY)


def _slow_body(chance: Random) -> HostileRequest:
    """Send a body a little at a time, or not at all."""
    head = frame(b"", length=b"1999")
    pieces = chance.choice(
        [(head,), (head[:70], head[70:]), (head, *[b" "] * 300), (head + b"{", *[b" " * 5] * 300)]
    )
    return HostileRequest(pieces, Then.STAY)


def _slow_chunks(chance: Random) -> HostileRequest:
    """Send chunks of one byte that never end."""
    return HostileRequest((unframed(b"Transfer-Encoding: chunked"), *[b"1\r\n \r\n"] * 300), Then.STAY)


def _deaf(chance: Random) -> HostileRequest:
    """Ask for much and read nothing."""
    ask = chance.choice([b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", frame(buy(chance))])
    return HostileRequest((ask * 300,), Then.DEAF)


_CONDUCT: Final[Kinds] = {
    "pipelined garbage": (2, _pipelined_garbage),
    "half open": (4, _half_open),
    "slow head": (0.2, _slow_head),
    "slow body": (0.2, _slow_body),
    "slow chunks": (0.1, _slow_chunks),
    "deaf": (0.1, _deaf),
}
KINDS: Final[Kinds] = MALFORMED | SMUGGLING | OVERSIZED | BAD_INPUT | _CONDUCT | MUTATED
