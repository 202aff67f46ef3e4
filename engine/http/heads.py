"""Heads of plain purchases: what they say, and a memory of those that clients repeat."""

import re
from typing import Final, NamedTuple

from engine.errors import InputError
from engine.http.answers import JSON
from engine.http.requests import parse_key

_MAX_HEAD_BYTES: Final = 4096
_MAX_HEADS: Final = 1024

_HEAD: Final = re.compile(
    # RFC 9112: request line, then field lines of a token, a colon and visible ASCII. Each line matches in one
    # way only: with two, a head of forty lines that fails at its end would be tried in 2^40 ways.
    rb"POST /purchase/buy HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[ -~\t]*\r\n)+\r\n"
)
_LENGTH: Final = re.compile(rb"[1-9][0-9]{0,2}")
_NOT_PLAIN: Final = re.compile(
    rb"transfer-encoding|content-encoding|expect|upgrade|te|trailer|proxy-connection|http2-settings|sec-websocket.*"
)
"""Headers that change how a message is framed, decoded or answered."""


class Head(NamedTuple):
    """What a plain request's head says."""

    body_length: int
    key: str | None


class Heads:
    """Plain heads without a key that came before, shared by all connections of a worker."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, head: bytes) -> Head | None:
        """Return what a head says; None if it is not plain."""
        return self._known.get(head) or self._read(head)

    def _read(self, head: bytes) -> Head | None:
        if len(head) > _MAX_HEAD_BYTES or not _HEAD.fullmatch(head):
            return None
        found: dict[bytes, bytes] = {}
        lines = head.split(b"\r\n")[1:-2]
        for line in lines:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            if name in found and name in (b"host", b"content-type", b"content-length", b"idempotency-key"):
                return None
            if _NOT_PLAIN.fullmatch(name) or (name == b"connection" and value.lower() != b"keep-alive"):
                return None
            found[name] = value
        length = found.get(b"content-length", b"")
        if (
            len(lines) > 64
            or b"host" not in found
            or found.get(b"content-type") != JSON.encode()
            or not _LENGTH.fullmatch(length)
        ):
            return None
        if b"idempotency-key" in found:
            try:
                return Head(int(length), parse_key([found[b"idempotency-key"].decode("ascii")]))
            except InputError:
                return None
        plain = Head(int(length), None)
        if len(self._known) >= _MAX_HEADS:
            # The oldest goes: if it is in use, its next request brings it back.
            del self._known[next(iter(self._known))]
        self._known[head] = plain
        return plain
