"""What comes from outside, checked at the edge: one function for each kind of input.

Each raises InputError, which names the field at fault.
"""

import json
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

import msgspec

from engine.errors import InputError
from engine.model.order_id import is_order_id
from engine.model.sale import MAX_ID, MAX_STOCK, SaleTerms

MAX_BODY_BYTES: Final = 2047
"""Bodies of 2 KiB and more are refused."""

_BLANKS: Final = rb"[ \t\r\n]*+"
_ID: Final = rb"([1-9][0-9]{0,17}+)"
_USER: Final = _BLANKS.join((b"", b'"userId"', b":", _ID, b""))
_PRODUCT: Final = _BLANKS.join((b"", b'"productId"', b":", _ID, b""))
_BUY: Final = re.compile(b"%b\\{(?:%b,%b|%b,%b)\\}%b" % (_BLANKS, _USER, _PRODUCT, _PRODUCT, _USER, _BLANKS))
"""Every usual spelling of a purchase, with ids that surely fit; any other is decoded in full."""
_WHOLE_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_TIMES_MS: Final = range(100_000_000_000, 100_000_000_000_000)
"""From 1973 to 5138. Present times in seconds lie below, in microseconds above."""
_KEY: Final = re.compile(r"[!-~]{1,128}")


def parse_buy(data: bytes, start: int = 0, end: int = sys.maxsize) -> tuple[bytes, bytes]:
    """Return user id and product id, in digits, of a purchase's JSON body, which is a part of the data."""
    if buy := _BUY.fullmatch(data, start, end):
        user_id, product_id, other_product_id, other_user_id = buy.groups()
        return (user_id, product_id) if user_id is not None else (other_user_id, other_product_id)
    body = data[start:end]
    if len(body) > MAX_BODY_BYTES:
        raise InputError("body", f"must be at most {MAX_BODY_BYTES} bytes", 413)
    fields = _decode_object(body)
    if unknown := sorted(fields.keys() - {"userId", "productId"}):
        raise InputError(unknown[0], "is not a field of a purchase")
    return b"%d" % _check_id(fields, "userId"), b"%d" % _check_id(fields, "productId")


def parse_key(values: list[str]) -> str | None:
    """Return the Idempotency-Key out of the values of that header, None if there is none."""
    if not values:
        return None
    if len(values) > 1:
        raise InputError("Idempotency-Key", "must be given once")
    if not _KEY.fullmatch(values[0]):
        raise InputError("Idempotency-Key", "must be 1 to 128 visible ASCII characters without spaces")
    return values[0]


def parse_order_id(text: str) -> str:
    """Return an order id in its canonical form; some clients write it in upper case."""
    if not is_order_id(text.lower()):
        raise InputError("orderId", "is none: one looks like 01890a5d-ac96-774b-bcce-b302099a8057", 404)
    return text.lower()


def parse_product(query: Mapping[str, str]) -> int:
    """Return the product id of a query."""
    return _read_whole(_refuse_repeated(query.items()), "productId", 1, MAX_ID)


def parse_terms(query: Mapping[str, str]) -> SaleTerms:
    """Return the terms of a sale from the query that opens it."""
    given = _refuse_repeated(query.items())
    known = {"productId", "stock", "limit", "quantity", "startsAt", "endsAt"}
    if unknown := sorted(given.keys() - known):
        raise InputError(unknown[0], "is not an option of a sale")
    terms = SaleTerms(
        product_id=_read_whole(given, "productId", 1, MAX_ID),
        stock=_read_whole(given, "stock", 0, MAX_STOCK),
        limit=_read_whole(given, "limit", 1, MAX_STOCK) if "limit" in given else None,
        quantity=_read_whole(given, "quantity", 1, 1_000_000) if "quantity" in given else 1,
        starts_ms=_read_time(given, "startsAt") if "startsAt" in given else None,
        ends_ms=_read_time(given, "endsAt") if "endsAt" in given else None,
    )
    if 0 < terms.stock < terms.quantity:
        raise InputError("stock", "must be at least quantity, or nobody can buy")
    if terms.limit is not None and terms.limit < terms.quantity:
        raise InputError("limit", "must be at least quantity, or nobody can buy")
    if terms.starts_ms is not None and terms.ends_ms is not None and terms.ends_ms <= terms.starts_ms:
        raise InputError("endsAt", "must be after startsAt")
    return terms


def is_loopback(host: str) -> bool:
    """Return whether an address is one of this machine alone."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _decode_object(body: bytes) -> dict[str, Any]:
    body = body.removeprefix(BOM_UTF8)  # which some clients write before any text
    try:
        # msgspec is strict about what JSON is; the standard library finds names given twice.
        msgspec.json.decode(body, type=dict[str, Any])
        fields: dict[str, Any] = json.loads(body, object_pairs_hook=_refuse_repeated)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise InputError("body", "must be a JSON object") from None
    return fields


def _check_id(fields: dict[str, Any], name: str) -> int:
    if name not in fields:
        raise InputError(name, "is missing")
    value = fields[name]
    if type(value) is not int or not 1 <= value <= MAX_ID:
        raise InputError(name, "must be a whole number from 1 to 2^63-1")
    return value


def _refuse_repeated(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raises InputError if a name is given twice."""
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            raise InputError(name, "is given more than once")
        given[name] = value
    return given


def _read_whole(given: Mapping[str, str], name: str, least: int, most: int) -> int:
    if name not in given:
        raise InputError(name, f"is missing; it is looked for in the query, as in ?{name}=1")
    if not _WHOLE_NUMBER.fullmatch(given[name]) or not least <= int(given[name]) <= most:
        raise InputError(name, f"must be a whole number from {least} to {most}")
    return int(given[name])


def _read_time(given: Mapping[str, str], name: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(given[name]) or int(given[name]) not in _TIMES_MS:
        raise InputError(name, "must be a time in Unix milliseconds, thirteen digits at present")
    return int(given[name])
