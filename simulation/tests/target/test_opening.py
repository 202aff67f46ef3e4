"""The simulation opens its sales as an operator should: under a key, and again while the engine can't."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from asyncpg.transaction import Transaction

from engine.errors import GateUnavailable
from engine.gate.gate import Gate
from engine.local.ports import free_port
from engine.settings import Settings
from engine.tests.http.test_front_door import serve
from engine.tests.http.test_opening import count_sales
from simulation.errors import EngineError
from simulation.model.contract import Request
from simulation.scenario.schema import SaleOffer
from simulation.target import opening
from simulation.target.opening import connect, open_sales, send


async def test_a_sale_is_asked_for_until_it_is_open_and_is_one(
    settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, commit = Gate.check, Transaction.commit
    failures = ["gate", "gate", "answer", "answer"]

    async def check_later(self: Gate, *arguments: Any) -> None:
        await check(self, *arguments)
        if failures and failures[0] == "gate":
            raise GateUnavailable(failures.pop(0))

    async def commit_unheard(self: Transaction) -> None:
        await commit(self)
        if failures:
            raise ConnectionResetError(failures.pop(0))

    monkeypatch.setattr(Gate, "check", check_later)
    monkeypatch.setattr(Transaction, "commit", commit_unheard)
    monkeypatch.setattr(opening, "_AGAIN_S", 0.0)
    async for client in serve(settings_without_bus):
        url = str(client.session._base_url)
        [sale] = await open_sales((url,), [SaleOffer(product_id=1, stock=3)], None)
        assert not failures
        assert (await client.stock())["saleId"] == sale.sale_id
    assert await count_sales(settings_without_bus) == 1


async def test_a_sale_is_opened_at_another_front_door_where_one_is_gone(
    settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_AGAIN_S", 0.0)
    async for client in serve(settings_without_bus):
        urls = (f"http://127.0.0.1:{free_port()}", str(client.session._base_url))
        [sale] = await open_sales(urls, [SaleOffer(product_id=1, stock=3)], None)
        assert (await client.stock())["saleId"] == sale.sale_id
    with pytest.raises(EngineError, match="can't be reached"):
        await open_sales(urls[:1], [SaleOffer(product_id=1, stock=3)], None)


async def test_a_request_has_the_headers_of_the_contract_and_its_answer_is_taken_as_it_is() -> None:
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(
            status=303, headers={"Location": "/elsewhere", "Set-Cookie": "session=of-another"}
        )

    app = web.Application()
    app.router.add_route("*", "/{any}", answer)
    async with TestServer(app, host="localhost") as server, connect() as session:
        url = str(server.make_url("")).rstrip("/")
        asked = Request(path="/buy", method="POST", headers={"Cookie": "session=mine"})
        found = [(await send(session, url, asked)).status for _ in range(2)]
    assert found == [303, 303]
    assert [set(headers) for headers in seen] == [{"Host", "Cookie", "Content-Length"}] * 2
    assert {headers["Cookie"] for headers in seen} == {"session=mine"}
