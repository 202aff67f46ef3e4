"""Requests made from the templates of a contract."""

import re
from collections.abc import Container, Iterable
from urllib.parse import quote, urlencode

import msgspec

from simulation.model.contract import NAME, Request

Value = str | int | None


def fill(request: Request, **values: Value) -> tuple[str, dict[str, str], bytes]:
    """Return path with query, headers, and body."""
    path = NAME.sub(lambda found: quote(str(values[found[1]]), safe=""), request.path)
    if query := _fill_all(request.query, values):
        path += f"?{urlencode(query)}"

    def say(found: re.Match[str]) -> str:
        value = values[found[1]]
        if value is None:
            return "null"
        text = msgspec.json.encode(value).decode()
        # A text stands within the quotes of a JSON string.
        return text[1:-1] if isinstance(value, str) else text

    return path, _fill_all(request.headers, values), NAME.sub(say, request.body).encode()


class Encoder:
    """Encodes one request of a contract many times, with other numbers and keys each time."""

    def __init__(self, request: Request, authority: str, prefix: str, missing: Container[str] = ()) -> None:
        """Every request goes to a path below `prefix`, without the values that are `missing`."""
        marks = {name: None if name in missing else f"Q{name}Q" for name in request.names}
        path, headers, body = fill(request, **marks)
        lines = [f"{request.method} {prefix}{path} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if request.method != "GET":
            lines.append("Content-Length: QlengthQ")
        self._head = self._make_format("\r\n".join([*lines, "", ""]), {*marks, "length"})
        self._body = self._make_format(body.decode(), marks)

    def encode(self, **values: str | int) -> bytes:
        """Return the request as HTTP/1.1 sends it. Strings must be plain: they are sent as they are."""
        body = (self._body % values).encode()
        values["length"] = len(body)
        return (self._head % values).encode() + body

    @staticmethod
    def _make_format(text: str, names: Iterable[str]) -> str:
        text = text.replace("%", "%%")
        for name in names:
            text = text.replace(f"Q{name}Q", f"%({name})s")
        return text


def _fill_all(templates: dict[str, str], values: dict[str, Value]) -> dict[str, str]:
    """Return the filled templates, without those that lack a value."""
    return {
        name: NAME.sub(lambda found: str(values[found[1]]), text)
        for name, text in templates.items()
        if not any(values[each] in (None, "") for each in NAME.findall(text))
    }
