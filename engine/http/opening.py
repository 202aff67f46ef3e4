"""Opening a sale: first in the ledger, then at the gate.

Once the ledger has the sale, it opens: what this process can't finish, the keeper does (reconciliation.py).
"""

from asyncio import get_running_loop, timeout
from contextlib import suppress

from engine.errors import GateUnavailable, InputError, LedgerUnavailable, OutcomeUnknown
from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger
from engine.model.sale import Sale, SaleTerms


async def open_sale(gate: Gate, ledger: Ledger, terms: SaleTerms, key: str | None, within_s: float) -> Sale:
    """Open a sale; return the one that was opened under this key before.

    Raises GateUnavailable or LedgerUnavailable if this surely opened nothing, OutcomeUnknown if the sale may
    open by itself, InputError if the key came with other terms.
    """
    now_s = get_running_loop().time
    until_s = now_s() + within_s
    # Most failures of the gate end here, where nothing is written yet.
    await gate.check(terms.product_id, within_s)
    sale = await ledger.open_sale(terms, key, until_s - now_s())
    if sale.terms != terms:
        raise InputError("Idempotency-Key", "a sale with other terms was opened under this key", 422)
    if not sale.offered:
        try:
            await gate.open_sale(sale, until_s - now_s())
        except GateUnavailable as error:
            raise OutcomeUnknown(str(error)) from error
        # The sale is open. If this fails, the keeper notes it.
        with suppress(LedgerUnavailable, TimeoutError):
            async with timeout(until_s - now_s()):
                await ledger.note_offered(sale.sale_id)
    return sale
