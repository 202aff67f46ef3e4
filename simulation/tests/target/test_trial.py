"""A purchase before the load tells what a description reads otherwise than it was done."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from engine.settings import Settings
from simulation.errors import EngineError
from simulation.scenario.schema import SaleOffer
from simulation.target.foreign.engine import find_engine
from simulation.target.opening import open_sales
from simulation.target.witness import trial
from simulation.target.witness.trial import Trial
from simulation.tests.target.test_foreign import describe, plain_engine
from simulation.tests.target.test_misfits import DESCRIPTION, ticket_engine

COUNT = "(SELECT count(*) FROM units_sold WHERE item = items.item)"
NOW = "(extract(epoch FROM now()) * 1000000)::bigint"
ORDERS, SALES, LEFT = "item AS product_id FROM units_sold", "amount AS stock", "AS remaining"
REMAINING = f"amount - {COUNT} {LEFT}"
CUT = """[sql.remaining]
sql = \"\"\"
SELECT item AS product_id, amount - (SELECT count(*) FROM units_sold WHERE item = items.item) AS remaining
FROM items WHERE item = ANY ($1::bigint[])
\"\"\""""
WRONG = [
    ({ORDERS: f"'PAID' AS status, {ORDERS}"}, "sql.orders: status is 'PAID', none of PENDING, CONFIRMED"),
    ({ORDERS: f"{NOW} / 1000 AS accepted_us, {ORDERS}"}, "sql.orders: accepted_us is "),
    ({ORDERS: f"{NOW} + 3600000000 AS settled_us, {ORDERS}"}, "sql.orders: settled_us is "),
    (
        {ORDERS: f"now() AS settled_us, {ORDERS}"},
        "sql.orders: settled_us must be a whole number, is timest",
    ),
    ({"buyer AS user_id": "buyer::text AS user_id"}, "sql.orders: user_id must be a whole number, is text"),
    ({"buyer AS user_id": "buyer AS userid"}, "sql.orders: must give user_id"),
    ({ORDERS: f"1 AS status_, {ORDERS}"}, "sql.orders: there is no column status_ (did you mean 'status'?)"),
    (
        {SALES: f"2 * {SALES}"},
        "sql.sales: stock is 6 before any purchase, of a sale of 3 units; it",
    ),
    ({SALES: f"{SALES}, amount AS sold"}, "sql.sales: sold is 3 before any purchase"),
    ({REMAINING: f"{COUNT} {LEFT}"}, "sql.remaining: remaining is 0 before any purchase"),
    ({REMAINING: f"NULL::bigint {LEFT}"}, "sql.remaining: product 7 is NULL, and must be a whole number"),
    ({REMAINING: f"'few' {LEFT}"}, "sql.remaining.sql: remaining must be a whole number, is text"),
    (
        {REMAINING: f"amount / 2.0 {LEFT}"},
        "sql.remaining: product 7 is Decimal('2.500",
    ),
    (
        {"FROM items WHERE item = ANY ($1::bigint[])\n": "FROM items WHERE false\n"},
        "sql.remaining: does not show",
    ),
    *(
        ({CUT: f'[sql.remaining]\nredis = "{key}"'}, said)
        for key, said in (
            ("nosuch:{product_id}", "which was opened just now: there is no key nosuch:7"),
            ("text:{product_id}", "sql.remaining: text:7 is 'few', and must be a whole number"),
            ("list:{product_id}", "what the engine holds can't be read: ResponseError: WRONGTYPE"),
        )
    ),
]
DOUBTED = [
    ({"buyer AS user_id": "buyer + 1 AS user_id"}, "sql.orders: user_id is 2 for a purchase just now with 1"),
    ({ORDERS: f"2 AS quantity, {ORDERS}"}, "sql.orders: quantity is 2 for a purchase just now with 1"),
    ({SALES: f"{SALES}, 0 AS sold"}, "sql.sales: sold is 0 after a purchase of one"),
    ({f"{COUNT} {LEFT}": f"0 {LEFT}"}, "sql.remaining: remaining is 3 after a purchase of one"),
]
"""The engine may be at fault as well."""
FITTING = [
    {},
    {ORDERS: f"{NOW} AS accepted_us, {NOW}::numeric AS settled_us, 'CONFIRMED' AS status, {ORDERS}"},
    {SALES: f"{SALES}, {COUNT} AS sold"},
    {COUNT: "coalesce((SELECT sum(1) FROM units_sold WHERE item = items.item), 0)"},
]


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines of these tests have written everything when they answer."""
    monkeypatch.setattr(trial, "WAIT_S", 0.0)
    monkeypatch.setattr(trial, "PATIENCE_S", 0.0)


async def try_out(file: str, witness: Any, settings: Settings, url: str) -> Trial | None:
    """Do what a run does before its load."""
    engine = find_engine(file, witness, (settings.redis_url, None, settings.postgres_url))
    reader = engine.make_witness(url, None, 1)
    tried = await engine.try_out(url, None, reader, print)
    sales = await open_sales((url,), [SaleOffer(product_id=7, stock=5)], None, contract=engine.contract)
    await reader.check(sales)
    return tried


async def test_a_statement_that_reads_something_else_is_told(
    settings: Settings, redis: Redis, tmp_path: Path
) -> None:
    await redis.set("text:7", "few")
    await redis.lpush("list:7", "few")
    async with plain_engine(str(settings.postgres_url)) as port:
        for changes in FITTING:
            tried = await try_out(describe(tmp_path, changes), "sql", settings, f"http://127.0.0.1:{port}")
            assert tried
            assert tried.fitting >= {"requests", "buy", "orders"}
        for changes, said in DOUBTED:
            tried = await try_out(describe(tmp_path, changes), "sql", settings, f"http://127.0.0.1:{port}")
            assert tried
            assert said in (tried.wrong or "")
            assert tried.fitting == {"requests", "buy"}
        for changes, said in WRONG:
            with pytest.raises(EngineError) as error:
                await try_out(describe(tmp_path, changes), "sql", settings, f"http://127.0.0.1:{port}")
            assert said in str(error.value)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "witness", "said"),
    [
        (
            {'"header:X-Units-Left"': '"header:X-Units-Sold"'},
            "http",
            "stock: remaining is 0 before any purchase",
        ),
        ({'sold = "header:X-Units-Sold"': 'sold = "header:X-Units-Left"'}, "http", "stock: sold is 3 before"),
        (
            {'words = { sold = "CONFIRMED", ': "words = { "},
            "http",
            "order.status is 'sold', none of PENDING, CONFIRMED, FAILED, REJECTED: does order.words lack",
        ),
    ],
)
async def test_an_answer_that_says_something_else_is_told(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    witness: str,
    said: str,
) -> None:
    # This engine writes behind its answer.
    monkeypatch.setattr(trial, "WAIT_S", 30.0)
    text = DESCRIPTION
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "shop.toml"
    file.write_text(text)
    async with ticket_engine(str(settings.postgres_url)) as url:
        with pytest.raises(EngineError) as error:
            await try_out(str(file), witness, settings, url)
    assert said in str(error.value)


async def test_a_purchase_that_is_refused_is_told(settings: Settings, tmp_path: Path, capsys: Any) -> None:
    file = describe(tmp_path, {"user-{user_id}": "user"})
    async with plain_engine(str(settings.postgres_url)) as port:
        assert await try_out(file, "sql", settings, f"http://127.0.0.1:{port}") is None
    assert "whether the description fits: it is INVALID by the answer 401" in capsys.readouterr().out
