"""How the server stops: readiness turns first, whoever is connected is answered, and nothing is left."""

import asyncio
import os
import signal
import socket
from collections import Counter
from functools import partial

import aiohttp
import pytest

from engine.http.listener import turn_away
from engine.settings import Settings
from engine.tests.test_server import Server, buy, eventually, get, open_sale, serving

pytestmark = pytest.mark.slow


async def has_turned(http: aiohttp.ClientSession, server: Server) -> bool:
    status, body = await get(http, f"{server.url}/readyz")
    return (status, body.get("code")) == (503, "STOPPING")


async def test_readiness_turns_before_the_port_closes(settings_without_bus: Settings) -> None:
    async with (
        serving(settings_without_bus, "--workers", "2", LAME_DUCK_MS="6000") as server,
        aiohttp.ClientSession() as http,
    ):
        await open_sale(http, server, 10)
        server.process.send_signal(signal.SIGTERM)
        await eventually(partial(has_turned, http, server), within_s=5)
        for _ in range(2):  # on a new connection each, as every answer closes its own
            async with http.post(
                f"{server.url}/purchase/buy", json={"userId": 1, "productId": 1}
            ) as response:
                assert (response.status, response.headers["Connection"]) == (200, "close")
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
        with pytest.raises(aiohttp.ClientConnectorError):
            await buy(http, server)


async def test_a_stop_answers_or_refuses_each_connection_and_resets_none(
    settings_without_bus: Settings,
) -> None:
    ends: Counter[str] = Counter()
    async with serving(settings_without_bus, "--workers", "2") as server:
        host, _, port = server.url.removeprefix("http://").partition(":")

        async def ask() -> None:
            while not ends["refused"]:
                try:
                    reader, writer = await asyncio.open_connection(host, int(port))
                except ConnectionRefusedError:
                    ends["refused"] += 1
                    return
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                try:
                    answer = await reader.read()
                except ConnectionResetError:
                    answer = b"reset"
                writer.close()
                ends[answer[:12].decode() or "nothing"] += 1

        clients = [asyncio.create_task(ask()) for _ in range(16)]
        await eventually(lambda: ends["HTTP/1.1 200"] > 500)
        assert await server.stop() == 0
        await asyncio.gather(*clients)
    assert set(ends) == {"HTTP/1.1 200", "refused"}, ends


async def test_a_port_that_is_about_to_close_begins_no_connection_and_ends_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as late:
        listener.setblocking(False)
        late.setblocking(False)
        place = listener.getsockname()
        with socket.create_connection(place) as early:
            await turn_away([listener])
            connecting = asyncio.ensure_future(asyncio.get_running_loop().sock_connect(late, place))
            done, _ = await asyncio.wait({connecting}, timeout=0.3)
            assert not done
            accepted, _ = listener.accept()
            early.sendall(b"whole")
            with accepted:
                accepted.settimeout(10)
                assert accepted.recv(5) == b"whole"
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.wait_for(connecting, 30)


async def test_a_signal_to_the_whole_process_group_stops_it_in_order(settings_without_bus: Settings) -> None:
    async with (
        serving(settings_without_bus, "--workers", "2") as server,
        aiohttp.ClientSession() as http,
    ):
        await open_sale(http, server, 10)
        stages = server.children("front-door") + server.children("fulfilment")
        assert {os.getpgid(stage.pid) for stage in stages} == {server.process.pid}
        assert (await buy(http, server))[0] == 200
        os.killpg(server.process.pid, signal.SIGTERM)
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
        assert not any("is started again" in line for line in server.log)
        assert not any(stage.is_running() for stage in stages)


async def test_a_stop_lets_clients_use_up_their_connections(settings_without_bus: Settings) -> None:
    async with serving(settings_without_bus) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        connections = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for reader, writer in connections:
            writer.write(request)
            assert b" 200 " in await reader.readuntil(b"}")
        server.process.send_signal(signal.SIGTERM)
        for reader, writer in connections:
            # The pace of a client that is not idle, and not in a hurry.
            await asyncio.sleep(0.2)
            writer.write(request)
            assert b" 200 " in await reader.read()
            writer.close()
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
