"""Requests made from the templates of a contract."""

import re
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
        # A number, or within the quotes of a JSON string.
        return "null" if value is None else msgspec.json.encode(value).decode().strip('"')

    return path, _fill_all(request.headers, values), NAME.sub(say, request.body).encode()


def encode(request: Request, authority: str, prefix: str, **values: Value) -> bytes:
    """Return the request as HTTP/1.1 sends it, its path below `prefix`."""
    path, headers, body = fill(request, **values)
    lines = [f"{request.method} {prefix}{path} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if request.method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _fill_all(templates: dict[str, str], values: dict[str, Value]) -> dict[str, str]:
    """Return the filled templates, without those that lack a value."""
    return {
        name: NAME.sub(lambda found: str(values[found[1]]), text)
        for name, text in templates.items()
        if not any(values[each] in (None, "") for each in NAME.findall(text))
    }
