"""The URLs of the backing services: checked with their options before anything connects.

Messages never show a URL, since it may hold a password.
"""

import getpass
import os
import re
import shlex
import ssl
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from engine.certificates import check_files, check_pair
from engine.errors import SettingsError

_REDIS_OPTIONS: Final = (
    "db, client_name, health_check_interval,"
    " ssl_cert_reqs, ssl_ca_certs, ssl_ca_path, ssl_certfile, ssl_keyfile, ssl_check_hostname"
)
_REDIS_KINDS: Final = {
    "cluster": "redis+cluster://host:6379,host:6379,host:6379 or rediss+cluster://…",
    "sentinel": "redis+sentinel://host:26379,host:26379,host:26379/name or rediss+sentinel://…",
}
_AMQP_OPTIONS: Final = "heartbeat, cafile, capath, certfile, keyfile, no_verify_ssl, management_port"
_POSTGRES_OPTIONS: Final = (
    "host, port, user, password, dbname, passfile, application_name, options, target_session_attrs,"
    " timezone, search_path, sslmode, sslcert, sslkey, sslrootcert, sslcrl, sslpassword, sslnegotiation,"
    " ssl_min_protocol_version, ssl_max_protocol_version, krbsrvname, gsslib"
)
_POSTGRES_DROPPED: Final = {
    "connect_timeout|tcp_user_timeout|fallback_application_name|keepalives(_idle|_interval|_count)?": ".*",
    "channel_binding|gssencmode": "disable|prefer",
    "load_balance_hosts": "disable",
    "client_encoding": "(?i)utf-?8|auto",
}
"""Options of libpq that mean nothing here, with the values for which that holds.

The client library would take them for settings of the server, and the engine bounds its waits itself.
"""
_RELIED_ON: Final = re.compile(
    r"synchronous_commit|(default_)?transaction_\w+|\w+_timeout|session_replication_role|client_encoding"
    r"|decode_responses|encoding\w*|protocol|retry\w*|max_connections|timeout|frame_max|channel_max"
)
"""Settings of the server's session and of the client that no URL may change."""

_OF_TLS: Final = re.compile(r"ssl_\w+|cafile|capath|certfile|keyfile|no_verify_ssl")
_VALUES: Final = {
    "ssl_cert_reqs": ("none|optional|required", "none, optional or required"),
    "ssl_check_hostname": ("true|false", "true or false"),
    "no_verify_ssl": ("0|1", "0 or 1"),
    "health_check_interval": ("[0-9]{1,5}", "a number of seconds"),
    "client_name": ("[!-~]+", "visible ASCII characters, without spaces"),
    "management_port": ("[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-5][0-9]{3}", "a port"),
    "heartbeat": ("[1-9]|[1-5][0-9]|60", "1 to 60 s: without it a dead connection is noticed too late"),
}
"""Which values some options have: a pattern, and in words."""


class RedisUrl(NamedTuple):
    """A URL of Redis, taken apart."""

    kind: str
    """cluster or sentinel; nothing for one server."""
    nodes: tuple[tuple[str, int], ...]
    """Nodes of the cluster, or Sentinels."""
    name: str
    """What the Sentinels call the primary."""
    plain: str
    """The URL of one server, with user, password and options."""


def check_redis_url(url: str) -> str:
    """Return the URL of Redis. Raises SettingsError, in one line, if it can't be used."""
    read_redis_url(url)
    return url


def read_redis_url(url: str) -> RedisUrl:
    """Take a URL of Redis apart. Raises SettingsError, in one line, if it can't be used.

    rediss+cluster://… and rediss+sentinel://… speak TLS to all, the Sentinels among them.
    """
    scheme, _, kind = url.partition("://")[0].partition("+")
    if scheme in ("redis", "rediss") and kind in _REDIS_KINDS:
        return _read_redis_nodes(url, scheme, kind)
    example = "redis://host:6379/0, rediss://…, unix:///path, redis+cluster://… or redis+sentinel://…"
    parts, options = _split(url, ("redis", "rediss", "unix"), example)
    _check_redis_options(parts.scheme, options)
    if "," in parts.netloc:
        raise SettingsError("names several hosts: write redis+cluster://… or redis+sentinel://…")
    path = "" if parts.scheme == "unix" else parts.path.strip("/")
    _check_beside(options, {"db": path})
    database = options.get("db", path)
    if not re.fullmatch("[0-9]*", database):
        raise SettingsError("names its database by a number: redis://host:6379/0")
    if parts.path.strip("/") and not parts.hostname if parts.scheme == "unix" else parts.hostname:
        return RedisUrl("", (), "", url)
    raise SettingsError(f"must look like {example}")


def _read_redis_nodes(url: str, scheme: str, kind: str) -> RedisUrl:
    """Take the URL of a cluster, or of Sentinels, apart."""
    example = _REDIS_KINDS[kind]
    parts, options = _split(url, (f"{scheme}+{kind}",), example)
    _check_redis_options(scheme, options)
    credentials, at, places = parts.netloc.rpartition("@")
    nodes = list[tuple[str, int]]()
    for place in places.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?", place)
        if match is None:
            raise SettingsError(f"must look like {example}")
        if match[2] is None:
            raise SettingsError(f"the host {match[1]} has no port: it must look like {example}")
        nodes.append((match[1].strip("[]"), int(match[2])))
    name, database = parts.path.strip("/"), options.get("db", "0")
    if kind == "cluster" and (name or database != "0"):
        raise SettingsError(f"a Redis Cluster has one database: leave /{name or database} out")
    if kind == "sentinel" and not re.fullmatch(r"[\w.-]+", name):
        raise SettingsError(
            f"lacks the name that the Sentinels call the primary: it must look like {example}"
        )
    if not re.fullmatch("[0-9]+", database):
        raise SettingsError("names its database by a number: db=0")
    query = f"?{parts.query}" if parts.query else ""
    return RedisUrl(
        kind, tuple(nodes), name, f"{scheme}://{credentials}{at}{places.partition(',')[0]}{query}"
    )


def _check_redis_options(scheme: str, options: Mapping[str, str]) -> None:
    _check_options(options, _REDIS_OPTIONS, "" if scheme == "rediss" else "rediss")
    check_files(options, "ssl_ca_certs, ssl_certfile, ssl_keyfile", "ssl_ca_path")
    check_pair(options, "ssl_certfile", "ssl_keyfile")


def check_amqp_url(url: str) -> str:
    """Return the URL of RabbitMQ. Raises SettingsError, in one line, if it can't be used."""
    example = "amqp://user:password@host:5672/vhost, amqp://host1,host2:5673/vhost or amqps://…"
    parts, options = _split(url, ("amqp", "amqps"), example)
    if not parts.hostname:
        raise SettingsError(f"must look like {example}")
    _check_options(options, _AMQP_OPTIONS, "" if parts.scheme == "amqps" else "amqps")
    check_files(options, "cafile, certfile, keyfile", "capath")
    check_pair(options, "certfile", "keyfile")
    return url


def check_postgres_url(url: str) -> str:
    """Return the URL of PostgreSQL without the options that the engine has no use for.

    Several hosts stand before its path, even if options gave them. Raises SettingsError, in one line, if it
    can't be used.
    """
    example = "postgresql://user:password@host:5432/database or postgresql://host1,host2:5433/database"
    parts, options = _split(url, ("postgresql", "postgres"), example)
    kept = {
        name: value
        for name, value in options.items()
        if not any(
            re.fullmatch(names, name) and re.fullmatch(values, value)
            for names, values in _POSTGRES_DROPPED.items()
        )
    }
    _check_options(kept, _POSTGRES_OPTIONS)
    place, login = parts.netloc.rpartition("@")[2], {"user": parts.username, "password": parts.password}
    _check_beside(kept, {"host": place, "port": place, "dbname": parts.path.strip("/"), **login})
    _check_options(dict.fromkeys(_read_session_options(kept.get("options", "")), ""))
    if kept.get("sslrootcert") == "system":
        kept["sslrootcert"] = ssl.get_default_verify_paths().cafile or "system"
        if kept.setdefault("sslmode", "verify-full") != "verify-full":
            raise SettingsError("sslrootcert=system needs sslmode=verify-full, and gets a weaker one")
    check_files(kept, "sslrootcert, sslcert, sslkey, sslcrl, passfile")
    if {"sslcert", "sslkey"} <= kept.keys():  # else PGSSLCERT, PGSSLKEY or a file at home may be the other
        check_pair(kept, "sslcert", "sslkey", "sslpassword")
    target = kept.get("target_session_attrs", "any")
    if target not in ("any", "primary", "read-write"):
        raise SettingsError(f"target_session_attrs={target} may find one that can't write: use read-write")
    if not (parts.username or kept.get("user") or os.environ.get("PGUSER")):
        try:
            getpass.getuser()
        except (KeyError, OSError):
            raise SettingsError(f"names no user, and this process has no name: {example}") from None
    address = url.partition("?")[0]
    hosts, ports = kept.get("host", "").split(","), kept.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise SettingsError(f"names {len(hosts)} hosts and {len(ports)} ports")
    for port in filter(None, ports):
        if not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536):
            raise SettingsError(f"port names {port}, which is no port")
    if len(hosts) > 1:
        del kept["host"]
        kept.pop("port", None)
        written = [f"[{host}]" if ":" in host else quote(host, safe="") for host in hosts]
        named = zip(written, ports * (len(hosts) // len(ports)), strict=True)
        hosts = [f"{host}:{port}" if port else host for host, port in named]
        _check_hosts(hosts, example)
        address = f"{parts.scheme}://{parts.netloc}{','.join(hosts)}{parts.path}"
    elif not hosts[0].startswith("/"):
        _check_name(hosts[0])
    return f"{address}?{urlencode(kept, quote_via=quote)}" if kept else address


def split_hosts(url: str) -> dict[str, str]:
    """Return a URL for each host that a URL names, by host and port as they stand in it."""
    netloc = urlsplit(url).netloc
    login, at, hosts = netloc.rpartition("@")
    return {host: url.replace(netloc, f"{login}{at}{host}", 1) for host in hosts.split(",")}


def _check_hosts(hosts: Sequence[str], example: str) -> None:
    """Raise SettingsError for one of several hosts that can't be read, or is named twice."""
    for host in hosts:
        try:
            parts = urlsplit(f"//{host}")
            name = parts.hostname if parts.port != 0 else None
        except ValueError:
            name = None
        if not name:
            raise SettingsError(f"names several hosts, and one can't be read: it must look like {example}")
        if not name.startswith("%2f"):  # a socket
            _check_name(name)
    if len(set(hosts)) < len(hosts):
        raise SettingsError("names a host twice")


def _split(url: str, schemes: tuple[str, ...], example: str) -> tuple[SplitResult, dict[str, str]]:
    """Return the parts and the options of a URL."""
    if url.partition("://")[0] not in schemes:
        raise SettingsError(f"must look like {example}")
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        url.encode()  # raises ValueError if some bytes of it were no text
        if "\0" in unquote(url) or (len(hosts) == 1 and parts.port == 0):
            raise ValueError(url)  # noqa: TRY301
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        pairs, parts, hosts = [], urlsplit("#bad"), []
    if parts.fragment or parts.netloc.count("@") > 1 or re.search(r"\s", url):
        raise SettingsError(
            f"can't be read: it must look like {example}, and a password with special characters"
            " must be percent-encoded (%40 for @, %2F for /, %23 for #)"
        )
    if len(hosts) > 1:
        _check_hosts(hosts, example)
    else:
        _check_name(parts.hostname or "")
    options = dict(pairs)
    if len(options) < len(pairs):
        raise SettingsError("gives an option twice")
    return parts, options


def _check_options(options: Mapping[str, str], known: str | None = None, tls: str = "") -> None:
    """Raise SettingsError for an option that the engine relies on or, if `known` is given, an unknown one.

    Where a URL has no TLS, `tls` is the scheme that has it.
    """
    for name, value in options.items():
        if _RELIED_ON.fullmatch(name):
            raise SettingsError(f"the option {name} would change what the engine relies on")
        if name == "channel_binding":
            raise SettingsError("channel_binding=require can't be kept: use sslmode=verify-full")
        if known is not None and name not in known.split(", "):
            raise SettingsError(f"the option {name} is unknown; known are {known}")
        if tls and _OF_TLS.fullmatch(name):
            raise SettingsError(f"the option {name} is for TLS: write {tls}://, or leave it out")
        if name in _VALUES and not re.fullmatch(_VALUES[name][0], value):
            raise SettingsError(f"{name} must be {_VALUES[name][1]}")


def _check_beside(options: Mapping[str, str], others: Mapping[str, str | None]) -> None:
    """Raise SettingsError for an option unlike what stands before the options, of which one would count."""
    if unlike := [name for name, value in options.items() if others.get(name) not in (None, "", value)]:
        raise SettingsError(f"the option {unlike[0]} contradicts what stands before it: write one of them")


def _check_name(host: str) -> None:
    """Raise SettingsError for a host that can't be looked up."""
    try:
        unquote(host).encode("idna")
    except UnicodeError:
        raise SettingsError("names a host with an empty label, or one of more than 63 letters") from None


def _read_session_options(text: str) -> list[str]:
    """Return the names of the settings in libpq's `options`, as in "-c name=value --name=value"."""
    try:
        words = shlex.split(text)
    except ValueError:
        raise SettingsError("options can't be read: it must look like -c name=value") from None
    joined = re.sub(r"(^|\s)-c\s+", r"\1-c", " ".join(words))
    return [
        word.removeprefix("-c").removeprefix("--").partition("=")[0].replace("-", "_").lower()
        for word in joined.split()
    ]
