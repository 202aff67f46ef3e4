"""Where something stands in an answer: a path of names in its JSON, such as `data.orders.0.id`; `.`, the
whole body as text; or `header:Location`, a field of its head. A name with other characters than letters,
digits and $@#%&+~!^-_ stands in quotes: `data."order.id"`.

Of a field that is a path or a URL, its last part counts: 17 in `/orders/17` and in `https://shop/orders/17?new`.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import msgspec

HEADER: Final = "header:"
NAME: Final = re.compile(r"[\w$@#%&+~!^-]+")
_STEP: Final = rf'(?:{NAME.pattern}|"[^"]*")'
NAMES: Final = re.compile(rf"{_STEP}(?:\.{_STEP})*")
"""A path of names."""
_PARTS: Final = re.compile(r'"([^"]*)"|([^.]+)')
_NUMBER: Final = re.compile("[0-9]{1,9}")
# The judge reads a contract too, and may import nothing that could open a URL.
_SERVER: Final = re.compile(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_PATH: Final = re.compile(rb"/|[A-Za-z][A-Za-z0-9+.-]*://")
_PATHS: Final = ("location", "content-location")
"""Fields whose value may be a path that is not absolute."""
_BEHIND_PATH: Final = re.compile(rb"[?#]")
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def decode(body: bytes) -> Any:
    """Return what a body says in JSON; nothing if it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def find_in(place: str, body: bytes, head: bytes = b"") -> Any:
    """Return what stands at a place of an answer; None if there is nothing."""
    return look(place, body, decode(body), head)


def look(place: str, body: bytes, answer: Any, head: bytes = b"") -> Any:
    """Return what stands at a place of an answer whose body says `answer` in JSON."""
    if place == ".":
        return body.decode(errors="replace").strip()
    if place.startswith(HEADER):
        return find_field(place.removeprefix(HEADER), head)
    for name in _split(place):
        if isinstance(answer, list):
            answer = answer[int(name)] if _NUMBER.fullmatch(name) and int(name) < len(answer) else None
        else:
            answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


def write_path(names: Iterable[str]) -> str:
    """Return the place to which these names lead."""
    return ".".join(name if NAME.fullmatch(name) else f'"{name}"' for name in names)


@cache
def _split(place: str) -> list[str]:
    return [bare or quoted for quoted, bare in _PARTS.findall(place)]


def count_at(place: str, body: bytes, answer: Any, head: bytes = b"") -> Any:
    """Return the number at a place. A text that says one, as a body or a field of the head does, is that
    number, and so is 12.0."""
    found = answer if place == "." else look(place, body, answer, head)
    if isinstance(found, str):
        found = decode(found.strip().encode(errors="replace"))
    return int(found) if isinstance(found, float) and found.is_integer() else found


def word_at(place: str, body: bytes, answer: Any, head: bytes = b"") -> str | None:
    """Return the word at a place; None where there is none."""
    return write_word(look(place, body, answer, head))


def write_word(value: Any) -> str | None:
    """Return a text, or what JSON writes for a number or a truth value, 1 for 1.0; None for anything else."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool | int | float):
        return msgspec.json.encode(value).decode()
    return value if isinstance(value, str) else None


def find_field(name: str, head: bytes) -> str | None:
    """Return the value of a header field; of a path or a URL its last part. None without the field."""
    for line in head.split(b"\r\n"):
        field, colon, value = line.partition(b":")
        if colon and field.strip().lower() == name.lower().encode():
            value = value.strip()
            is_path = _PATH.match(value) or (name.lower() in _PATHS and b"/" in value)
            return (_find_last_part(value) if is_path else value).decode("utf-8", "replace")
    return None


def _find_last_part(url: bytes) -> bytes:
    path = _BEHIND_PATH.split(_SERVER.sub(b"", url))[0].rstrip(b"/")
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), path.rpartition(b"/")[2])
