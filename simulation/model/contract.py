"""The HTTP contract of an engine, as data: the requests that it takes, and what its answers mean.

A request is a template: `{user_id}`, `{product_id}`, `{order_id}`, `{key}` and so on stand for values, which
simulation.model.requests encodes. Places in an answer are those of simulation.model.places.
"""

import re
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from simulation.model.outcome import Stock
from simulation.model.places import HEADER, count_at, decode, look, word_at, write_word

Outcome = Literal[
    "ACCEPTED", "SOLD_OUT", "LIMIT_REACHED", "NOT_STARTED", "SALE_ENDED", "UNKNOWN_PRODUCT", "INVALID",
    "UNAVAILABLE", "UNKNOWN",
]  # fmt: skip
"""One of OUTCOMES."""
Method = Literal["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"]
"""Those of HTTP whose answers have bodies to wait for."""
Word = bool | int | str
NAME: Final = re.compile(r"\{([a-z_]+)\}")
MOST_UNITS: Final = 10**15
MOST_RULES: Final = 1_024
"""Refusals that are remembered: thousands of them have the same bytes."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A table of the contract; a key that it does not know is an error."""


class Request(Part, frozen=True, kw_only=True):
    """The template of a request."""

    path: Annotated[str, Meta(pattern="^/")]
    method: Method = "GET"
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    body: str = ""

    @property
    def names(self) -> set[str]:
        """The names of the values that it takes."""
        texts = [self.path, self.body, *self.query.values(), *self.headers.values()]
        return {name for text in texts for name in NAME.findall(text)}


class Rule(Part, frozen=True, kw_only=True):
    """A status, perhaps with a word in the answer, and what it means of a purchase."""

    status: Annotated[int, Meta(ge=200, le=599)]
    outcome: Outcome
    word: Word | None = None
    """A number and its text are the same word. None: whatever the answer says."""


class Init(Request, frozen=True, kw_only=True):
    """Opens a sale; any status from 200 to 299 says that it is open. 503 is tried again."""

    method: Method = "POST"
    sale_id: str | None = None
    """Where the sale's number stands in the answer; None: a product is its sale."""


class Buy(Request, frozen=True, kw_only=True):
    """Buys."""

    method: Method = "POST"
    answers: Annotated[tuple[Rule, ...], Meta(min_length=1)]
    """What answers mean; the first rule that fits counts. A status without a rule is INVALID from 400 to 499,
    or else UNKNOWN; one whose rules don't fit is UNKNOWN."""
    words: tuple[str, ...] = ("status", "code")
    """The places where an answer says its word."""
    order_id: str | None = None
    """Where the order id stands; None: the engine names none."""
    numbered: bool = False
    """Whether order ids are numbers."""


class StockRead(Request, frozen=True, kw_only=True):
    """Reads a product's stock. A place that is not given is not shown."""

    remaining: str
    initial: str | None = None
    sold: str | None = None
    product_id: str | None = None


class OrderRead(Request, frozen=True, kw_only=True):
    """Reads an order."""

    status: str
    """The place of its status."""
    order_id: str | None = None
    statuses: tuple[Annotated[int, Meta(ge=200, le=299)], ...] = (200,)
    """The statuses of answers that show it."""
    words: dict[str, str] = {}
    """PENDING, CONFIRMED, FAILED or REJECTED for each word of the engine that says so in another way; a
    number or a truth value counts as the word by which JSON writes it, such as 3 or true."""


class Contract(Part, frozen=True, kw_only=True):
    """The contract of an engine. Without `stock` or `order` nobody can read them there."""

    init: Init
    buy: Buy
    stock: StockRead | None = None
    order: OrderRead | None = None

    @property
    def has_keys(self) -> bool:
        """Whether a purchase may carry an Idempotency-Key."""
        return "key" in self.buy.names

    @cached_property
    def kept(self) -> frozenset[int]:
        """The statuses whose bodies tell more than whether they fit: an order id, one of several outcomes, or
        what was read."""
        return self.ambiguous | self.accepting | {200, *(self.order.statuses if self.order else ())}

    @cached_property
    def places(self) -> list[str]:
        """Where something stands in answers to purchases and reads."""
        found = [self.buy.order_id]
        if self.stock:
            found += [self.stock.remaining, self.stock.initial, self.stock.sold, self.stock.product_id]
        if self.order:
            found += [self.order.status, self.order.order_id]
        return [place for place in found if place is not None]

    @cached_property
    def reads_heads(self) -> bool:
        """Whether something stands in a header field of an answer."""
        return any(place.startswith(HEADER) for place in self.places)

    @cached_property
    def ambiguous(self) -> frozenset[int]:
        """The statuses that have several outcomes."""
        return frozenset(status for status, words in self._outcomes.items() if len(words) > 1)

    @cached_property
    def accepting(self) -> frozenset[int]:
        """The statuses of purchases that may be accepted."""
        return frozenset(rule.status for rule in self.buy.answers if rule.outcome == "ACCEPTED")

    @cached_property
    def judge_refusal(self) -> Callable[[int, bytes | None], str]:
        """Return the outcome of an answer; without a body its status counts alone."""
        return lru_cache(MOST_RULES)(self._judge)

    def classify(self, status: int, body: bytes | None = None, head: bytes = b"") -> tuple[str, str | None]:
        """Return outcome and order id of the answer to a purchase. An answer that accepts and names no order
        is UNKNOWN, if the engine names them; without a body, the status counts alone."""
        if status not in self.accepting:
            return self.judge_refusal(status, body), None
        outcome = self._judge(status, body or b"")
        if outcome != "ACCEPTED" or self.buy.order_id is None:
            return outcome, None
        found = look(self.buy.order_id, body or b"", decode(body or b""), head)
        named = str(found) if type(found) is (int if self.buy.numbered else str) else ""
        return ("ACCEPTED", named) if named else ("UNKNOWN", None)

    def classify_stock(
        self, status: int, body: bytes, product_id: int, head: bytes = b""
    ) -> tuple[str, Stock | None]:
        """Return the outcome of a read of a product's stock, and what it showed."""
        if status != 200 or self.stock is None:
            return _outcome_of_read(status), None
        places = {name: getattr(self.stock, name) for name in ("initial", "remaining", "sold")}
        answer = decode(body)
        found = {
            name: count_at(place, body, answer, head) for name, place in places.items() if place is not None
        }
        named = None if self.stock.product_id is None else look(self.stock.product_id, body, answer, head)
        if named not in (None, product_id, str(product_id)) or not all(map(_is_count, found.values())):
            return "UNKNOWN", None
        return "SHOWN", Stock(**found)

    def classify_order(
        self, status: int, body: bytes, order_id: str, head: bytes = b""
    ) -> tuple[str, str | None]:
        """Return the outcome of a read of an order, and the status that it showed."""
        if self.order is None or status not in self.order.statuses:
            return _outcome_of_read(status), None
        answer = decode(body)
        word = word_at(self.order.status, body, answer, head)
        named = None if self.order.order_id is None else look(self.order.order_id, body, answer, head)
        if word and (named is None or str(named) == order_id):
            return "SHOWN", self.order.words.get(word, word)
        return "UNKNOWN", None

    def fits(self, kind: str, status: int, outcome: str) -> bool:
        """Return whether an answer with that status, to an operation of that kind, may have that outcome."""
        if status == 503:
            return outcome in ("UNAVAILABLE", "UNKNOWN", *self._outcomes.get(503, ()))
        if kind != "buy":
            shown = self.order.statuses if kind == "order" and self.order else (200,)
            return outcome in ("SHOWN", "UNKNOWN") if status in shown else outcome == _outcome_of_read(status)
        known = self._outcomes.get(status)
        if known is None:
            return outcome == _outcome_of_unlisted(status)
        return outcome in known or (status in self.kept and outcome == "UNKNOWN")

    @cached_property
    def _outcomes(self) -> dict[int, set[str]]:
        """The outcomes of each status."""
        found: dict[int, set[str]] = {}
        for rule in self.buy.answers:
            found.setdefault(rule.status, set()).add(rule.outcome)
        return found

    def knows(self, status: int) -> bool:
        """Return whether the contract says what that answer to a purchase means."""
        return status in self._outcomes

    def _judge(self, status: int, body: bytes | None) -> str:
        rules = [rule for rule in self.buy.answers if rule.status == status]
        if not rules:
            return _outcome_of_unlisted(status)
        if body is None:
            return rules[0].outcome
        answer = None
        for rule in rules:
            if rule.word is None:
                return rule.outcome
            answer = decode(body) if answer is None else answer
            if write_word(rule.word) in [word_at(place, body, answer) for place in self.buy.words]:
                return rule.outcome
        return "UNKNOWN"


def _is_count(value: Any) -> bool:
    return type(value) is int and abs(value) <= MOST_UNITS


def _outcome_of_unlisted(status: int) -> str:
    return "INVALID" if 400 <= status < 500 else "UNKNOWN"


def _outcome_of_read(status: int) -> str:
    if 400 <= status < 500:
        return "NOT_FOUND" if status == 404 else "INVALID"
    return "UNAVAILABLE" if status == 503 else "UNKNOWN"


def _rules(*rows: tuple[int, Outcome, Iterable[str]]) -> tuple[Rule, ...]:
    return tuple(
        Rule(status=status, outcome=outcome, word=word) for status, outcome, words in rows for word in words
    )


JSON: Final = {"Content-Type": "application/json"}
KEY: Final = {"Idempotency-Key": "{key}"}
FLASHGRID: Final = Contract(
    init=Init(
        path="/purchase/init",
        query={
            "productId": "{product_id}",
            "stock": "{stock}",
            "limit": "{limit}",
            "quantity": "{quantity}",
            "startsAt": "{starts_ms}",
            "endsAt": "{ends_ms}",
        },
        headers={"Authorization": "Bearer {admin_token}", **KEY},
        sale_id="saleId",
    ),
    buy=Buy(
        path="/purchase/buy",
        headers=JSON | KEY,
        body='{"userId":{user_id},"productId":{product_id}}',
        order_id="orderId",
        answers=_rules(
            (200, "ACCEPTED", ["ACCEPTED"]),
            (429, "SOLD_OUT", ["SOLD_OUT"]),
            (403, "NOT_STARTED", ["NOT_STARTED"]),
            (404, "UNKNOWN_PRODUCT", ["UNKNOWN_PRODUCT"]),
            (409, "LIMIT_REACHED", ["LIMIT_REACHED"]),
            (410, "SALE_ENDED", ["SALE_ENDED"]),
            (503, "UNAVAILABLE", ["GATE_UNAVAILABLE", "OVERLOADED"]),
        ),
    ),
    stock=StockRead(
        path="/purchase/stock",
        query={"productId": "{product_id}"},
        remaining="remaining",
        initial="initial",
        sold="sold",
        product_id="productId",
    ),
    order=OrderRead(path="/purchase/orders/{order_id}", status="status", order_id="orderId"),
)
"""The contract of Flashgrid."""
