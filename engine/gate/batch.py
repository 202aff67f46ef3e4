"""A batch of purchases: how the script that reserves reads it, and what its answer says to each of them."""

from collections.abc import Sequence
from typing import Final

from engine.metrics import PURCHASES
from engine.model.order_id import PLACES
from engine.model.purchase import Outcome, Purchase

_OUTCOME_OF: Final = {
    "A": Outcome.ACCEPTED,
    "R": Outcome.ACCEPTED,
    "S": Outcome.SOLD_OUT,
    "L": Outcome.LIMIT_REACHED,
    "U": Outcome.UNKNOWN_PRODUCT,
    "N": Outcome.NOT_STARTED,
    "E": Outcome.SALE_ENDED,
    "?": Outcome.OUTCOME_UNKNOWN,
}
"""The script's result codes, and the lane's own for what was accepted and has too few copies."""
_COUNTERS: Final = {outcome: PURCHASES.labels(outcome) for outcome in Outcome}
_ORDER_ID_LENGTH: Final = 36

Groups = dict[bytes, list[Purchase]]
"""The purchases of a batch by product id."""


def pack(groups: Groups) -> bytes:
    """Return the purchases as the script reads them."""
    lines = []
    for product_id, purchases in groups.items():
        user, _, key, _ = purchases[0]
        if key is None and len(purchases) == 1:
            lines.append(b"%b 1 %b" % (product_id, user))
            continue
        users = b",".join([user for user, _, _, _ in purchases])
        lines.append(b"%b %d %b%b" % (product_id, len(purchases), users, _pack_keys(purchases)))
    return b"\n".join(lines)


def _pack_keys(purchases: Sequence[Purchase]) -> bytes:
    keys = [key for _, _, key, _ in purchases]
    if keys.count(None) == len(keys):
        return b""
    return "".join([" ." if key is None else f" ={key}" for key in keys]).encode("ascii")


def reply_all(purchases: Sequence[Purchase], outcome: Outcome) -> None:
    """Tell all purchases the same outcome."""
    # Counted first: a client that has its answer may look at the metrics, or kill this process, at once.
    _COUNTERS[outcome].inc(len(purchases))
    for _, _, _, reply in purchases:
        reply(outcome, None)


def give_replies(stem: str, purchases: Sequence[Purchase], codes: str) -> None:
    """Tell each purchase its outcome; `codes` is the script's answer for them in this order."""
    count = len(purchases)
    first = codes[0]
    if first not in "AR" and codes.count(first) == count:
        # The most frequent answer to a crowd.
        reply_all(purchases, _OUTCOME_OF[first])
        return
    for code in set(codes[:count]):
        _COUNTERS[_OUTCOME_OF[code]].inc(codes.count(code, 0, count))
    places = iter(PLACES)
    repeated = codes[count:]
    read = 0
    for (_, _, _, reply), code in zip(purchases, codes, strict=False):
        if code == "A":
            reply(Outcome.ACCEPTED, stem + next(places))
        elif code == "R":
            reply(Outcome.ACCEPTED, repeated[read : read + _ORDER_ID_LENGTH])
            read += _ORDER_ID_LENGTH
        else:
            reply(_OUTCOME_OF[code], None)
