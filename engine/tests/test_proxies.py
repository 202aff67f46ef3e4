"""Behind nginx and HAProxy of the distribution: what they send and how they check is served."""

import asyncio
import csv
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from string import Template
from typing import Final

import aiohttp
import pytest
from redis.asyncio import Redis

from engine.gate.keys import ShardKeys
from engine.local.ports import free_port
from engine.settings import Settings
from engine.tests.services import skip_or_fail
from engine.tests.test_server import (
    Server,
    buy,
    eventually,
    get,
    http,
    is_confirmed,
    open_sale,
    post,
    serving,
)

__all__ = ["http"]
pytestmark = pytest.mark.slow

NGINX: Final = Template("""
daemon off; pid nginx.pid; error_log error.log;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream shop { server 127.0.0.1:$engine; keepalive 8; }
    server { listen 127.0.0.1:$port; location / { $location } }
}
""")
DEFAULT: Final = "proxy_pass http://127.0.0.1:$engine;"
KEPT: Final = 'proxy_pass http://shop; proxy_http_version 1.1; proxy_set_header Connection "";'
UNBUFFERED: Final = KEPT + "proxy_request_buffering off;"
UPGRADING: Final = (
    # For WebSockets, copied everywhere; https://github.com/iv-org/invidious/issues/604
    "proxy_pass http://shop; proxy_http_version 1.1; proxy_set_header Upgrade $$http_upgrade;"
    'proxy_set_header Connection "upgrade";'
)

HAPROXY: Final = Template("""
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend shop
    bind 127.0.0.1:$port
    stats uri /stats
    default_backend engine
backend engine
    option httpchk $check
    http-reuse always
    server one 127.0.0.1:$engine check inter 100ms fall 2 rise 1
""")


@asynccontextmanager
async def running(name: str, *command: str | Path, cwd: Path) -> AsyncIterator[None]:
    """A program of the distribution."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        skip_or_fail(f"{name} is not installed")
    process = await asyncio.create_subprocess_exec(
        str(program), *command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def port_of(server: Server) -> str:
    return server.url.rpartition(":")[2]


@asynccontextmanager
async def nginx(server: Server, location: str, folder: Path) -> AsyncIterator[Server]:
    """The same server by way of nginx."""
    ports = {"engine": port_of(server), "port": str(free_port())}
    text = NGINX.substitute(ports, location=Template(location).substitute(ports))
    (folder / "nginx.conf").write_text(text)
    async with running("nginx", "-p", folder, "-e", "error.log", "-c", "nginx.conf", cwd=folder):
        url = f"http://127.0.0.1:{ports['port']}"
        yield Server(server.process, url, server.log)


@asynccontextmanager
async def haproxy(server: Server, check: str, folder: Path) -> AsyncIterator[Server]:
    """The same server by way of HAProxy."""
    ports = {"engine": port_of(server), "port": str(free_port())}
    (folder / "haproxy.cfg").write_text(HAPROXY.substitute(ports, check=check))
    async with running("haproxy", "-f", folder / "haproxy.cfg", cwd=folder):
        yield Server(server.process, f"http://127.0.0.1:{ports['port']}", server.log)


async def answers(http: aiohttp.ClientSession, server: Server) -> bool:
    try:
        return (await get(http, f"{server.url}/healthz"))[0] == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("location", [DEFAULT, KEPT, UNBUFFERED, UPGRADING])
async def test_behind_nginx_every_purchase_is_answered(
    settings_without_bus: Settings, http: aiohttp.ClientSession, tmp_path: Path, location: str
) -> None:
    async def write_body() -> AsyncIterator[bytes]:
        yield b'{"userId":7,'
        yield b'"productId":1}'

    headers = {"Content-Type": "application/json"}
    async with serving(settings_without_bus) as server, nginx(server, location, tmp_path) as proxy:
        await open_sale(http, server, 20)
        await eventually(partial(answers, http, proxy))
        sold = [await buy(http, proxy, user) for user in range(1, 20)]
        url = f"{proxy.url}/purchase/buy"
        sold.append(await post(http, url, data=write_body(), headers=headers))
        assert [status for status, _ in sold] == [200] * 20
        assert (await buy(http, proxy))[0] == 429
        await eventually(partial(is_confirmed, http, proxy, sold[-1][1]["orderId"]))


async def test_behind_nginx_nobody_opens_a_sale_without_a_token(
    settings_without_bus: Settings, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """By default it passes on neither the client's address nor the name that the client asked for."""
    async with serving(settings_without_bus) as server, nginx(server, DEFAULT, tmp_path) as proxy:
        await eventually(partial(answers, http, proxy))
        status, problem = await post(http, f"{proxy.url}/purchase/init?productId=1&stock=3")
        assert (status, problem["code"]) == (403, "FORBIDDEN")
        assert "token" in problem["detail"]


async def read_check(http: aiohttp.ClientSession, proxy: Server) -> str:
    """What HAProxy's last check of the engine found: state, and how it was told."""
    try:
        async with http.get(f"{proxy.url}/stats;csv") as response:
            rows = csv.DictReader((await response.text()).removeprefix("# ").splitlines())
            return next(f"{row['status']} {row['check_status']}" for row in rows if row["svname"] == "one")
    except aiohttp.ClientError:
        return ""


@pytest.mark.parametrize(
    "check",
    [
        "",
        "OPTIONS * HTTP/1.1\\r\\nHost:\\ shop",
        "OPTIONS /healthz",
        "OPTIONS /readyz",
        "HEAD /readyz",
        "GET /readyz HTTP/1.1\\r\\nHost:\\ shop",
    ],
)
async def test_haproxy_finds_the_engine_up(
    settings_without_bus: Settings, http: aiohttp.ClientSession, tmp_path: Path, check: str
) -> None:
    """https://github.com/standardnotes/server/issues/1038: its checks use OPTIONS unless told otherwise."""
    async with serving(settings_without_bus) as server, haproxy(server, check, tmp_path) as proxy:
        await open_sale(http, server, 1)

        async def is_up() -> bool:
            return await read_check(http, proxy) == "UP L7OK"

        await eventually(is_up)
        assert [(await buy(http, proxy))[0] for _ in range(2)] == [200, 429]


async def test_haproxy_sends_nobody_to_an_engine_that_cannot_sell(
    settings_without_bus: Settings, http: aiohttp.ClientSession, redis: Redis, tmp_path: Path
) -> None:
    settings = settings_without_bus
    async with (
        serving(settings, "--role", "front-door") as server,
        haproxy(server, "OPTIONS /readyz", tmp_path) as proxy,
    ):

        async def finds(said: str) -> bool:
            return (await read_check(http, proxy)).startswith(said)

        await eventually(partial(finds, "UP L7OK"))
        generation = await redis.hget(ShardKeys(0).fence, "open")
        await redis.hdel(ShardKeys(0).fence, "open")
        await eventually(partial(finds, "DOWN L7STS"))
        await redis.hset(ShardKeys(0).fence, "open", generation)
        await eventually(partial(finds, "UP L7OK"))
