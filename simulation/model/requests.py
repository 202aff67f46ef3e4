"""Requests made from the templates of a contract; every value is encoded for the place where it stands.

What has no value is left out: the header field, the parameter of a query or form, the member of an object in
JSON.
"""

import re
from collections.abc import Container
from html import escape
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from simulation.model.contract import NAME, Request

Value = str | int | None
Place = Literal["url", "field", "json", "text", "xml", "plain"]
"""In a path, query or form; in a header field; in JSON, or within a JSON text; in XML; anywhere else."""
_MARK: Final = re.compile("\ue000(\\w+) (\\w+)\ue001")
"""Where a value comes: its place and its name, between characters that no text has."""
_JSON_MARK: Final = re.compile('"(\ue000json \\w+\ue001)"')
_JSON_PARTS: Final = re.compile(rf'"(?:[^"\\]|\\.)*"|{NAME.pattern}', re.S)
_PATH: Final = "/%?&=:@!$'()*+,;~{}"
"""What stands in a path as it is."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def encode(value: Value, place: Place) -> str:
    """Return a value as a request says it at a place."""
    if type(value) is int:
        return str(value)
    text = "" if value is None else str(value)
    match place:
        case "url":
            return quote(text, safe="", errors="replace")
        case "field":
            # A line end would be the end of the field.
            return _CONTROL.sub(lambda found: quote(found[0]), text)
        case "json" | "text":
            said = msgspec.json.encode(text).decode()
            return said if place == "json" else said[1:-1]
        case "xml":
            return escape(text)
        case "plain":
            return text


def fill(request: Request, **values: Value) -> tuple[str, dict[str, str], bytes]:
    """Return path with query, headers, and body."""
    missing = {name for name, value in values.items() if value in (None, "")}
    path, headers, body = _mark(request, missing)

    def say(text: str) -> str:
        return _MARK.sub(lambda found: encode(values[found[2]], found[1]), text)  # type: ignore[arg-type]

    return say(path), {name: say(text) for name, text in headers.items()}, say(body).encode()


class Encoder:
    """Encodes one request of a contract many times, with other values each time."""

    def __init__(self, request: Request, authority: str, prefix: str, missing: Container[str] = ()) -> None:
        """Every request goes to a path below `prefix`, without the values that are `missing`."""
        path, headers, body = _mark(request, missing)
        if "host" not in map(str.lower, headers):
            headers = {"Host": authority} | headers
        if body or request.method != "GET":
            headers["Content-Length"] = _write("{length}", "plain")
        lines = [f"{request.method} {prefix}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head, self._body = _Format("\r\n".join([*lines, "", ""])), _Format(body)

    def encode(self, **values: str | int) -> bytes:
        """Return the request as HTTP/1.1 sends it."""
        body = self._body.fill(values)
        values["length"] = len(body)
        return self._head.fill(values) + body


class _Format:
    """A marked text that is filled many times."""

    def __init__(self, text: str) -> None:
        self._slots: list[Any] = _MARK.findall(text)
        self._text = _MARK.sub("%s", text.replace("%", "%%"))

    def fill(self, values: dict[str, str | int]) -> bytes:
        # A number is the same everywhere, and most values are numbers.
        said = [
            value if type(value := values[name]) is int else encode(value, place)
            for place, name in self._slots
        ]
        return (self._text % tuple(said)).encode()


def list_json_texts(body: str) -> list[str]:
    """Return the texts of a body that is JSON, with a character in place of each value. Raises ValueError."""
    found: list[str] = []

    def walk(part: Any) -> None:
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, dict | list):
            for each in part.items() if isinstance(part, dict) else part:
                walk(list(each) if isinstance(each, tuple) else each)

    walk(_parse(body))
    return found


def find_nested(text: str) -> set[str]:
    """Return the names of the values within quotes in a text of JSON, which is then a text of a language of
    its own."""
    return {found[2] for found in _MARK.finditer(text) if text.count('"', 0, found.start()) % 2}


def find_language(request: Request) -> Place:
    """Return what the values of a body are encoded for."""
    kind = next((text for name, text in request.headers.items() if name.lower() == "content-type"), "")
    kind = kind.lower().partition(";")[0].strip()
    if kind == "application/x-www-form-urlencoded":
        return "url"
    suffix = re.split("[/+]", kind)[-1]
    return "json" if suffix == "json" else "xml" if suffix == "xml" else "plain"


def _mark(request: Request, missing: Container[str]) -> tuple[str, dict[str, str], str]:
    """Return path with query, headers, and body, with marks in place of values, without what is missing."""
    path = _write(quote(request.path, safe=_PATH), "url")
    query = "&".join(
        f"{quote(name, safe='')}={_write(text, 'url', encoded=True)}"
        for name, text in request.query.items()
        if not _lacks(text, missing)
    )
    if query:
        path += f"{'&' if '?' in path else '?'}{query}"
    headers = {
        name: _write(text, "field") for name, text in request.headers.items() if not _lacks(text, missing)
    }
    language, body = find_language(request), request.body
    if language == "json" and body:
        tree = _prune([_parse(body)], missing)[0]
        return path, headers, _JSON_MARK.sub(r"\1", msgspec.json.encode(tree).decode())
    if language == "url":
        body = "&".join(pair for pair in body.split("&") if not _lacks(pair, missing))
    return path, headers, _write(body, language)


def _write(template: str, place: Place, encoded: bool = False) -> str:
    """Return the template with marks; what stands between them is encoded as well if it says so."""
    parts = NAME.split(template)
    between = [encode(text, place) if encoded else text for text in parts[::2]]
    marks = [f"\ue000{place} {name}\ue001" for name in parts[1::2]]
    return "".join(text for pair in zip(between, [*marks, ""], strict=True) for text in pair)


def _lacks(template: str, missing: Container[str]) -> bool:
    return any(name in missing for name in NAME.findall(template))


def _parse(body: str) -> Any:
    """Return what a body says in JSON, with marks in place of values. Raises ValueError."""

    def mark(found: re.Match[str]) -> str:
        return f'"\ue000json {found[1]}\ue001"' if found[1] else _write(found[0], "text")

    return msgspec.json.decode(_JSON_PARTS.sub(mark, body))


def _prune(part: Any, missing: Container[str]) -> Any:
    """Return a part of JSON without members whose value is missing; an element of an array is null then."""

    def lacks(each: Any) -> bool:
        return isinstance(each, str) and any(name in missing for _, name in _MARK.findall(each))

    if isinstance(part, dict):
        kept = {name: each for name, each in part.items() if not lacks(name) and not lacks(each)}
        return {name: _prune(each, missing) for name, each in kept.items()}
    if isinstance(part, list):
        return [None if lacks(each) else _prune(each, missing) for each in part]
    return part
