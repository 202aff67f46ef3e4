"""What a description may not say: values that do not exist, places that are none, requests that HTTP can't
carry.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from string import Formatter
from typing import Final

from simulation.errors import EngineError, suggest
from simulation.model.contract import Request
from simulation.model.outcome import TERMINAL
from simulation.model.places import HEADER, NAMES, write_path
from simulation.model.requests import find_language, find_nested, list_json_texts
from simulation.scenario.fault import split_command
from simulation.scenario.schema import Scenario, Topology
from simulation.target.foreign.description import FILLED, Description

VALUES: Final = {
    "init": {"product_id", "stock", "limit", "quantity", "starts_ms", "ends_ms", "admin_token", "key"},
    "buy": {"user_id", "product_id", "key", "token"},
    "stock": {"product_id"},
    "order": {"order_id", "user_id", "token"},
}
"""The values that each request may take."""
NEEDED: Final = {"init": {"stock"}, "buy": {"user_id", "token"}, "order": {"order_id"}}
"""Values of which a request must take one."""
TERMS: Final = {"limit": "limit", "starts_in_s": "starts_ms", "ends_in_s": "ends_ms", "quantity": "quantity"}
"""The terms of a sale that an engine need not know, and the value that says each of them."""
OPTIONAL: Final = {"limit", "starts_ms", "ends_ms", "admin_token"}
"""Values that may be missing in any request; {key} may be in a purchase."""
TEXTS: Final = {"key", "token", "admin_token", "order_id"}
STATUSES: Final = ("PENDING", *TERMINAL)
_BRACES: Final = re.compile(r"(\{+)(\s*)([A-Za-z_][\w.-]*)\s*\}")
_FIELD: Final = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_FIELD_PLACE: Final = re.compile(rf"header:{_FIELD.pattern}", re.ASCII)
_OTHER_FIELD: Final = re.compile(r"(?i)headers?\s*(?:[:./]|\[)[\s\"']*([!-&(-9;-Z^-~]+?)[\s\"']*\]?")
_OTHER_ROOT: Final = re.compile(r"[$@](\.|$)")
_OTHER_STEP: Final = re.compile(
    r"""\.?(?:\[\s*(?:(\d+)|\*?)\s*\]|\*|\[?\s*"([^"]*)"\s*\]?|\[?\s*'([^'"]*)'\s*\]?|([^][."'\s(){}?*<>|=,;\\]+))"""
)
"""JSONPath, JSON pointers and the like; the first of many (* or []) is number 0."""


def find_faults(described: Description) -> Iterator[str]:
    """Yield what is wrong, in one line each, which begins with the key at fault."""
    requests = {name: request for name in VALUES if (request := getattr(described, name))}
    faults = [fault for name, request in requests.items() for fault in _check_request(name, request)]
    yield from faults or _check_ids(described, requests)
    yield from _check_places(described)
    yield from _check_answers(described)
    yield from _check_witness(described)
    yield from _check_processes(described)


def check_terms(described: Description, scenario: Scenario) -> None:
    """Raise EngineError for a scenario that asks for what this engine's contract can't say."""
    for number, sale in enumerate(scenario.sales):
        for term, value in TERMS.items():
            if getattr(sale, term) not in (None, 1) and value not in described.init.names:
                raise EngineError(f"sales.{number}.{term}: this engine's init takes no {{{value}}}")
    if "product_id" not in described.buy.names and len({sale.product_id for sale in scenario.sales}) > 1:
        raise EngineError("sales: this engine's requests take no {product_id}: it can sell one product")
    if scenario.restocks and described.init.sale_id is None:
        raise EngineError("restocks: this engine names no sales (init.sale_id), so they can't be told apart")
    if scenario.topology != Topology():
        raise EngineError("topology: is for Flashgrid, and this engine is another one")


def _list_templates(name: str, request: Request) -> Iterator[tuple[str, str]]:
    """Yield each template of a request behind its key."""
    yield f"{name}.path", request.path
    yield from ((f"{name}.query.{key}", text) for key, text in request.query.items())
    yield from ((f"{name}.headers.{key}", text) for key, text in request.headers.items())
    yield f"{name}.body", request.body


def _check_request(name: str, request: Request) -> Iterator[str]:
    strange = [
        fault
        for key, text in _list_templates(name, request)
        for fault in _check_values(key, text, VALUES[name])
    ]
    yield from strange
    if needless := sorted(_list_names(request.path) & (OPTIONAL | ({"key"} if name == "buy" else set()))):
        yield f"{name}.path: {{{needless[0]}}} may be missing, and a path can't leave it out: take the query"
    for each in request.query:
        if braces := _BRACES.search(each):
            yield f"{name}.query: {braces[0]} stands in a name, and must stand behind one: id = {braces[0]!r}"
    fields = [field.lower() for field in request.headers]
    if twice := [field for field in request.headers if fields.count(field.lower()) > 1]:
        yield f"{name}.headers: {' and '.join(twice)} are the same field: capitals make no difference"
    for field, text in request.headers.items():
        key = f"{name}.headers.{field}"
        if not _FIELD.fullmatch(field):
            yield f"{name}.headers: {field!r} is no name of a header field"
        elif field.lower() in ("content-length", "transfer-encoding", "expect"):
            yield f"{key}: is said by the client itself"
        elif field.lower() == "accept-encoding" and text.lower() != "identity":
            yield f"{key}: answers are read as they come: leave it out"
        elif _CONTROL.search(text):
            yield f"{key}: a header field has no line ends or other control characters"
    if request.body and "content-type" not in map(str.lower, request.headers):
        yield f"{name}.headers: a body needs its Content-Type, such as application/json"
    if request.body and not strange and find_language(request) == "json":
        yield from _check_json(f"{name}.body", request.body)


def _check_json(key: str, body: str) -> Iterator[str]:
    try:
        texts = list_json_texts(body)
    except ValueError as error:
        yield f"{key}: is no JSON with a value in each place: {error}"
        return
    if nested := sorted(TEXTS & {each for text in texts for each in find_nested(text)}):
        yield (
            f"{key}: {{{nested[0]}}} stands in quotes within a text: give it as a member of its own, in"
            " GraphQL as a variable"
        )


def _check_values(key: str, text: str, known: Iterable[str]) -> Iterator[str]:
    """Look for braces that are meant for a value and are none.

    In a body or a query braces with a space within are the engine's own, such as { id } in GraphQL.
    """
    own = ".body" in key or ".query." in key
    for braces, space, name in _BRACES.findall(text):
        if name in known and (braces != "{" or (space and not own)):
            yield f"{key}: {braces}{space}{name}: a value is written {{{name}}}"
        elif name not in known and not space:
            more = f"; for braces of its own write {{ {name} }}" if own else ""
            meant = _find_elsewhere(name) or suggest(name.lower(), known)
            yield f"{key}: there is no {{{name}}}{meant}; there are: {', '.join(sorted(known))}{more}"


def _find_elsewhere(name: str) -> str:
    """Return where a value can be said that a request does not take; nothing where there is none."""
    if name == "sale_id":
        return " to send: a sale's number is only read (init.sale_id), and requests name the {product_id}"
    users = [f"[{request}]" for request, values in VALUES.items() if name in values]
    own = ": nobody in particular looks, so write a token as it is" if name == "token" else ""
    return f" here, but in {' and '.join(users)}{own}" if users else ""


def _check_ids(described: Description, requests: Mapping[str, Request]) -> Iterator[str]:
    """Look for requests that don't say what they are about."""
    for name, needed in NEEDED.items():
        if name in requests and not needed & requests[name].names:
            yield f"{name}: must take {' or '.join(f'{{{each}}}' for each in sorted(needed, reverse=True))}"
    takers = {
        name for name in ("init", "buy", "stock") if name in requests and "product_id" in requests[name].names
    }
    for name in ("init", "buy", "stock"):
        if takers and name in requests and name not in takers:
            yield f"{name}: must take {{product_id}}, as {sorted(takers)[0]} does"
    tokens = [each for each in (described.buy, described.order) if each and "token" in each.names]
    if bool(tokens) != bool(described.tokens):
        yield "tokens: a file of tokens and the {token} of a request need each other"


def _check_places(described: Description) -> Iterator[str]:
    places = [("init.sale_id", described.init.sale_id), ("buy.order_id", described.buy.order_id)]
    places += [("buy.words", place) for place in described.buy.words]
    if stock := described.stock:
        places += [
            (f"stock.{name}", getattr(stock, name)) for name in ("remaining", "initial", "sold", "product_id")
        ]
    if order := described.order:
        places += [("order.status", order.status), ("order.order_id", order.order_id)]
    for key, place in places:
        if place is None or place == ".":
            continue
        if how := _find_other(place):
            yield f"{key}: {place!r} is no place of an answer: {how}"
    if strange := [place for place in described.buy.words if place.startswith(HEADER)]:
        yield f"buy.words: {strange[0]}: a word must stand in the body"
    order_id = described.buy.order_id or ""
    if described.buy.numbered and (order_id.startswith(HEADER) or order_id == "."):
        what = "a whole body" if order_id == "." else "a header field"
        yield f"buy.numbered: {what} is a text, also where it holds a number"


def _find_other(place: str) -> str:
    """Return how to write a place that is written as elsewhere; nothing if it is right."""
    if _FIELD_PLACE.fullmatch(place):
        return ""
    if _OTHER_ROOT.fullmatch(place):
        return "write ."
    if found := _OTHER_FIELD.fullmatch(place):
        first, _, others = place.partition(".")
        body = f', or "{first}".{others} for a part of the body' if NAMES.fullmatch(place) else ""
        return f"write {HEADER}{found[1]}{body}"
    if NAMES.fullmatch(place) and not _OTHER_ROOT.match(place):
        return ""
    text = re.sub(r"->>?|\?\.|/", ".", place.strip())
    text = re.sub(r"^[$@#]+(?=[.\[])", "", text)
    names: list[str] = []
    while text and (step := _OTHER_STEP.match(text)):
        names.append(next((each for each in step.groups() if each is not None), "0"))
        text = text[step.end() :]
    if names and not text:
        return f"write {write_path(names)}"
    return 'it is names and numbers, as in data.0.id; another name stands in quotes, as in data."my id"'


def _check_answers(described: Description) -> Iterator[str]:
    if not any(rule.outcome == "ACCEPTED" for rule in described.buy.answers):
        yield "buy.answers: no status is ACCEPTED"
    for word, status in described.order.words.items() if described.order else ():
        if status not in STATUSES:
            meant = suggest(status.upper(), STATUSES)
            yield (
                f"order.words: {word} = {status!r}: there is no such status{meant}; there are: "
                + ", ".join(STATUSES)
            )


def _check_witness(described: Description) -> Iterator[str]:
    remaining = described.sql and described.sql.remaining
    if remaining and remaining.get and not described.stock:
        yield "sql.remaining.get: needs the request [stock]"
    if remaining and remaining.redis and "product_id" in described.init.names - _list_names(remaining.redis):
        yield "sql.remaining.redis: must name a key with {product_id}"


def _check_processes(described: Description) -> Iterator[str]:
    names = [program.name for program in described.processes]
    if names and "front-door" not in names:
        yield "processes: one must have the name front-door"
    if twice := {name for name in names if names.count(name) > 1}:
        yield f"processes: {twice.pop()} is there twice"
    for number, program in enumerate(described.processes):
        key = f"processes.{number}.command"
        yield from _check_command(key, program.command)
        try:
            found = [each for each in Formatter().parse(program.command) if each[1] is not None]
        except ValueError as error:
            yield f"{key}: {error}; braces of its own are written twice: {{{{ }}}}"
            continue
        for _, name, form, kind in found:
            if name not in FILLED:
                meant = suggest(str(name), FILLED)
                yield f"{key}: there is no {{{name}}}{meant}; there are: {', '.join(FILLED)}"
            elif form or kind:
                yield f"{key}: a value is written {{{name}}}"
    if described.reset is not None:
        yield from _check_command("reset", described.reset)
    if strange := [name for name in FILLED if f"{{{name}}}" in (described.reset or "")]:
        yield f"reset: {{{strange[0]}}} is for processes: a reset is done as it is written"


def _check_command(key: str, command: str) -> Iterator[str]:
    try:
        split_command(command)
    except ValueError as error:
        yield f"{key}: {error}"


def _list_names(text: str) -> set[str]:
    return {name for _, _, name in _BRACES.findall(text)}
