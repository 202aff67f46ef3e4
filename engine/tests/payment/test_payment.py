from engine.model.sale import Sale
from engine.payment.simulated import SimulatedGateway
from engine.tests.orders import make_terms, reserve

SALE = Sale(sale_id=1, terms=make_terms(stock=1))


async def test_a_seed_declines_the_same_orders_in_every_process_and_batch() -> None:
    batch = reserve(SALE, 200, size=9)
    first = await SimulatedGateway(decline_rate=0.3, seed=5).charge(batch)
    again = await SimulatedGateway(decline_rate=0.3, seed=5).charge(batch[::-1])
    assert first == again
    assert first != await SimulatedGateway(decline_rate=0.3, seed=6).charge(batch)


async def test_declines_are_about_as_many_as_asked_for() -> None:
    batch = reserve(SALE, 2_000, size=30)
    for rate, least, most in ((0.0, 0, 0), (0.25, 400, 600), (1.0, 2_000, 2_000)):
        declines = await SimulatedGateway(decline_rate=rate).charge(batch)
        assert least <= len(declines) <= most
