"""Traces: recorded arrivals, read from a file that lies beside its scenario.

    counts      one number a line: requests in each step of `step_s` seconds, one second if not said
    times       one time a line: ISO 8601, seconds or milliseconds since 1970 (a number from 1,000,000,000
                on), or, under a header such as `time`, seconds from any start
    rows        time, user and product, separated by commas, semicolons or tabs; under a header that names
                them also in another order and among other columns
    access log  lines in the common or the combined format of Apache and nginx

Counts and rows may have a header, and a file may be compressed by gzip. Rows say who buys what, and each is
played once at the recorded rate; otherwise that is drawn as the population says. Of a log every line counts.
"""

import csv
import gzip
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from simulation.errors import ScenarioError
from simulation.scenario.arrivals import MAX_RPS, MOST_STEPS

STEP_S: Final = 0.1
"""Shortest step into which times are counted; those of a log are whole seconds."""
FORMS: Final = (
    "a count (12), a time (2026-11-29T08:00:00Z, or seconds since 1970), a row of time, user and product,"
    " or a line of an access log"
)
FIRST_TIME_S: Final = 1e9  # a smaller number is a count where no header says that it is a time
GZIP: Final = b"\x1f\x8b"
_LOG: Final = re.compile(r'\S+ \S+ .*?\[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "')
_SEPARATORS: Final = (";", "\t", ",")  # a comma may also be part of a number, so it is looked for last
_HEADERS: Final = {
    "time": {"time", "timestamp", "date", "datetime", "at", "t", "t_s", "seconds"},
    "user": {"user", "user_id", "userid", "customer", "customer_id", "customerid", "buyer", "buyer_id"},
    "product": {"product", "product_id", "productid", "item", "item_id", "itemid", "sku"},
}
"""What a column may be called, in small letters, `-` and blanks as `_`."""
_MOST_NAMED: Final = 5


class Recorded(NamedTuple):
    """Requests in each step of so many seconds."""

    counts: list[float]
    step_s: float
    users: Sequence[int] = ()
    products: Sequence[int] = ()
    """Who bought what, the earliest first; empty where the file does not say so."""


class _Row(NamedTuple):
    """A recorded purchase."""

    at_s: float
    user: str
    product_id: int


class _Form(NamedTuple):
    """How the lines of a trace are read."""

    name: str
    parse: Callable[[str], Any]
    """Returns a number or a row. Raises ValueError, or ScenarioError in words to follow the line's number."""


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8 or, as PowerShell writes it, UTF-16, and perhaps in gzip.

    Raises OSError, ValueError.
    """
    if "\0" in str(file):
        raise OSError("is no name of a file")
    raw = file.read_bytes()
    if raw.startswith(GZIP):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error) as error:
            raise OSError(f"is no whole gzip file: {error}") from None
    return raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")


def read_trace(file: Path, step_s: float = 1.0, on_sale: Collection[int] = ()) -> Recorded:
    """Return the counts in a file, or those of the times in it; counts are of steps of `step_s`. Rows may
    name the products `on_sale` alone, if there are any.

    Raises ScenarioError, which names the file and the line at fault, and what would be understood.
    """
    try:
        # Not splitlines: what a browser calls itself may hold other ends of lines.
        text = read_text(file).replace("\r\n", "\n").rstrip()
        lines = text.split("\n") if text else []
    except OSError as error:
        raise ScenarioError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{file}: is no text in UTF-8: {error.reason} at byte {error.start}") from None
    header, form = _find_form(lines, file)
    values: list[Any] = []
    for number, line in enumerate(lines[header:], 1 + header):
        if not line.strip() and form is not _COUNT:
            continue
        try:
            values.append(value := form.parse(line))
            if form is _COUNT:
                _check_count(value, step_s, line)
            if isinstance(value, _Row):
                _check_product(value.product_id, on_sale)
        except ScenarioError as error:
            raise ScenarioError(f"{file}: line {number}: {error}") from None
        except ValueError:
            raise ScenarioError(f"{file}: line {number}: must be {form.name}, got {line!r}") from None
    if not values and form is not _COUNT:
        raise ScenarioError(f"{file}: line {len(lines)}: ends without {form.name}")
    if values and isinstance(values[0], _Row):
        rows = sorted(values, key=lambda row: row.at_s)
        recorded = _count([row.at_s for row in rows], STEP_S)
        return recorded._replace(
            users=_number_users([row.user for row in rows]), products=[row.product_id for row in rows]
        )
    if form is not _COUNT:
        return _count(values, 1.0 if form is _LOG_LINE else STEP_S)
    if not any(values):
        raise ScenarioError(f"{file}: line {len(lines)}: ends without a count above 0")
    return Recorded(values, step_s)


def _find_form(lines: list[str], file: Path) -> tuple[int, _Form]:
    """Return the number of lines that are a header, and how the others are read, by the first of them."""
    first = lines[0] if lines else "0"
    if form := _match(first):
        return 0, form
    form = _match(lines[1]) if len(lines) > 1 else None
    names: list[str] = []
    with suppress(ValueError):
        names = [re.sub("[- ]", "_", name.lower()) for name in _split(first)]
    columns = [
        next((at for at, name in enumerate(names) if name in known), -1) for known in _HEADERS.values()
    ]
    if len(names) > 1 and -1 not in columns:
        return 1, _make_row(_find_separator(first), columns, names)
    if len(names) > 1 and (form in _ROWS.values() or columns.count(-1) == 1):
        raise ScenarioError(f"{file}: line 1: must name the columns time, user and product, got {first!r}")
    if len(names) == 1 and form in (None, _COUNT, _TIME) and len(lines) > 1:
        return 1, _ANY_TIME if columns[0] == 0 else form or _COUNT
    raise ScenarioError(f"{file}: line 1: must be {FORMS}, got {first!r}")


def _find_separator(line: str) -> str:
    """Return what separates the fields of a line."""
    return next((each for each in _SEPARATORS if each in line), _SEPARATORS[-1])


def _split(line: str, separator: str | None = None) -> list[str]:
    """Return the fields of a line. Raises ValueError."""
    try:
        fields = next(csv.reader([line], delimiter=separator or _find_separator(line), skipinitialspace=True))
    except (csv.Error, StopIteration):
        raise ValueError(line) from None
    return [field.strip() for field in fields]


def _match(line: str) -> _Form | None:
    """Return how a line is read; None where it is not understood."""
    for form in (_LOG_LINE, _ROWS[_find_separator(line)], _TIME, _COUNT):
        try:
            form.parse(line)
        except ScenarioError:
            return form  # a row, and of no product
        except ValueError:
            continue
        return form
    return None


def _count(times_s: list[float], step_s: float) -> Recorded:
    """Return how many of the times lie in each step from the first one on."""
    since_s = np.sort(np.array(times_s)) - min(times_s)
    step_s = max(step_s, float(since_s[-1]) / (MOST_STEPS - 1))
    steps = np.floor(since_s / step_s + 1e-6).astype(int)
    return Recorded(np.bincount(steps).astype(float).tolist(), step_s)


def _parse_time(text: str, least_s: float = FIRST_TIME_S) -> float:
    """Return a time in seconds: ISO 8601, in UTC where it names no zone, or a number that can be told from a
    count, which may be that of a day or a week."""
    text = text.strip().strip('"')
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not least_s <= number < 1e15:
        raise ValueError(text)
    # Seconds since 1970 have ten digits for the next two centuries, milliseconds thirteen.
    return number / 1e3 if number > 1e11 else number


def _parse_any_time(text: str) -> float:
    """Return a time in seconds, where something else says that it is one."""
    return _parse_time(text, 0)


def _make_row(separator: str, columns: Sequence[int], names: Sequence[str]) -> _Form:
    """Return how rows are read that have time, user and product in these columns, of those named."""

    def parse(text: str) -> _Row:
        fields = _split(text, separator)
        moment, user, product = (fields[at] for at in columns) if len(fields) == len(names) else ("", "", "")
        at_s = _parse_any_time(moment)
        if not user or not product:
            raise ValueError(text)
        if not _is_id(product):
            raise ScenarioError(f"the product must be the number of one on sale, got {product!r}")
        return _Row(at_s, user, int(product))

    *others, last = names
    return _Form(f"a row of {', '.join(others)} and {last}", parse)


def _is_id(text: str) -> bool:
    """Return whether a text is the number of a user or a product."""
    return text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) < 2**63


def _number_users(users: Sequence[str]) -> list[int]:
    """Return the users as numbers: as they are written, or else counted as they come."""
    if all(map(_is_id, set(users))):
        return [*map(int, users)]
    numbers = {user: number for number, user in enumerate(dict.fromkeys(users), 1)}
    return [numbers[user] for user in users]


def _check_count(count: float, step_s: float, line: str) -> None:
    if not 0 <= count / step_s <= MAX_RPS:
        raise ScenarioError(f"must be a count from 0 to {MAX_RPS * step_s:,.0f}, got {line}")


def _check_product(product_id: int, on_sale: Collection[int]) -> None:
    """Raise ScenarioError for a product that is not on sale, if any is."""
    if on_sale and product_id not in on_sale:
        first = [*map(str, sorted(on_sale)[:_MOST_NAMED])]
        known = ", ".join([*first, "…"] if len(on_sale) > _MOST_NAMED else first)
        raise ScenarioError(f"product {product_id} is not on sale; there are {known}")


def _parse_log(text: str) -> float:
    if not (found := _LOG.match(text)):
        raise ValueError(text)
    return datetime.strptime(found[1], "%d/%b/%Y:%H:%M:%S %z").timestamp()


_COUNT: Final = _Form("a count", lambda text: float(text.strip('"')))
_TIME: Final = _Form("a time", _parse_time)
_ANY_TIME: Final = _Form("a time", _parse_any_time)
_ROWS: Final = {each: _make_row(each, range(3), [*_HEADERS]) for each in _SEPARATORS}
_LOG_LINE: Final = _Form("a line of an access log", _parse_log)


def fill_traces(raw: Mapping[str, Any], path: Path) -> None:
    """Put the counts of each trace into the scenario read from `path`, which then needs the file no more.

    Raises ScenarioError, or ValueError in words that begin with the key at fault.
    """
    arrivals = raw.get("arrivals")
    for number, segment in enumerate(arrivals if isinstance(arrivals, list) else []):
        if not isinstance(segment, dict) or segment.get("shape") != "trace" or "counts" in segment:
            continue
        if type(file := segment.get("file")) is not str:
            raise ValueError(f"arrivals.{number}.file: must name the file of a trace")
        step_s = segment.get("step_s", 1.0)
        if isinstance(step_s, bool) or not isinstance(step_s, int | float) or not 0 < step_s <= 7 * 86_400:
            raise ValueError(f"arrivals.{number}.step_s: must be seconds, up to a week")
        found = read_trace(path.parent / file, float(step_s), _list_on_sale(raw.get("sales")))
        given: dict[str, float | str] = {"seconds": len(found.counts) * found.step_s}
        given["rate_rps"] = max(found.counts) / found.step_s
        if found.users:
            given |= {"spacing": "even"}  # each row once
        segment.update(given | segment, **found._asdict())


def _list_on_sale(sales: Any) -> set[int]:
    """Return the products of the sales in a scenario that nobody has checked."""
    found: set[int] = set()
    for sale in sales if isinstance(sales, list) else []:
        match sale:
            case {"product_id": int(first), "products": int(many)} if many <= 100_000:
                found |= {*range(first, first + many)}
            case {"product_id": int(first)}:
                found.add(first)
    return found
