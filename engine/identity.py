"""What answers at a service's address: another service is told before any client has waited for long."""

import asyncio
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from engine.errors import SettingsError
from engine.urls import split_hosts

_WAIT_S: Final = 1.0
_ALERT_S: Final = 0.3
_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)
"""PostgreSQL's protocol, 55.7: Message Formats, SSLRequest; it is answered by one byte."""
_QUESTIONS: Final[Mapping[bytes, Mapping[bytes, str]]] = {
    b"PING\r\n": {b"+PONG": "Redis", b"-": "Redis", b"HTTP/": "an HTTP server"},
    b"AMQP\x00\x00\x09\x01": {b"\x01\x00\x00": "RabbitMQ", b"AMQP": "RabbitMQ"},
    _SSL_REQUEST: {b"S": "PostgreSQL", b"N": "PostgreSQL"},
}
"""Bytes that one kind of service answers by itself → how its answers begin, and what that means."""
_TLS: Final = "TLS"
_ASKING: Final = "TLS, and a certificate of the client"
_CERTIFICATES: Final = {"Redis": ("ssl_certfile", "ssl_keyfile"), "RabbitMQ": ("certfile", "keyfile")}
"""The options of a URL that name a client's certificate and its key."""
_SERVICES: Final = {
    "redis": "Redis",
    "amqp": "RabbitMQ",
    "postgres": "PostgreSQL",
    "postgresql": "PostgreSQL",
}
_PORTS: Final = {"Redis": 6379, "RabbitMQ": 5672, "PostgreSQL": 5432}


async def check_identity(url: str) -> None:
    """Raise SettingsError if another service than the URL's answers at one of its hosts, or the same without
    TLS, or one that wants a certificate which the URL does not name.

    Says nothing of what does not answer.
    """
    await asyncio.gather(*map(_check_host, split_hosts(url).values()))


async def _check_host(url: str) -> None:
    parts = urlsplit(url)
    scheme, plus, kind = parts.scheme.partition("+")
    tls = scheme in ("rediss", "amqps")
    expected = _SERVICES.get(scheme.removesuffix("s") if tls else scheme)
    if expected is None or not parts.hostname:
        return
    host, port = parts.hostname, parts.port or _PORTS[expected]
    answers = await asyncio.gather(
        *(_ask(host, port, question) for question in _QUESTIONS), _greet_by_tls(host, port)
    )
    found = next(filter(None, answers), None)
    if found in (_TLS, _ASKING):
        if not tls and expected != "PostgreSQL":
            raise SettingsError(f"what answers at {host}:{port} wants TLS: write {scheme}s{plus}{kind}://")
        certificate, key = _CERTIFICATES.get(expected, ("", ""))
        if found == _ASKING and certificate and certificate not in dict(parse_qsl(parts.query)):
            raise SettingsError(
                f"{host}:{port} wants a certificate of its client: add {certificate}=…&{key}=…"
            )
    elif found == expected:
        if tls:
            plain = f"{scheme.removesuffix('s')}{plus}{kind}"
            raise SettingsError(f"{found} at {host}:{port} speaks no TLS: write {plain}://")
    elif found is not None:
        raise SettingsError(f"{found} answers at {host}:{port}, where {expected} is looked for")


async def _greet_by_tls(host: str, port: int) -> str | None:
    """Return that TLS is spoken there, and whether the client is asked for a certificate; None if not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = None
    try:
        async with asyncio.timeout(_WAIT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
        found = _TLS
        try:
            # It misses the certificate after its own handshake.
            async with asyncio.timeout(_ALERT_S):
                await reader.read(1)
        finally:
            await _abort(writer)
    except ssl.SSLError as error:
        reason = error.reason or ""
        return _ASKING if "CERTIFICATE_REQUIRED" in reason else _TLS if "ALERT" in reason else found
    except (OSError, TimeoutError, ValueError):
        pass
    return found


async def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection, and hear how it ended: asyncio logs an error that nobody has heard of."""
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def _ask(host: str, port: int, question: bytes) -> str | None:
    """Return what an answer to these bytes tells; None without one."""
    try:
        async with asyncio.timeout(_WAIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(question)
                answer = await reader.read(8)
            finally:
                await _abort(writer)
    except (OSError, TimeoutError, ValueError):
        return None
    if question == _SSL_REQUEST and len(answer) != 1:
        return None
    return next((told for begin, told in _QUESTIONS[question].items() if answer.startswith(begin)), None)
