"""Pages as a browser shows them."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
PHONE = "--window-size=390,844"
START_S = 60


def find_browser() -> str:
    """Return the path of Chromium or a browser of its kind. Without one skip the test, or fail it in CI."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no Chromium")
        pytest.skip("no Chromium")
    return browser


def open_page(page: Path, scratch: Path) -> str:
    """Return the document that headless Chromium makes of the page, in the width of a phone.

    Fail if the page tries to load anything, or if its console shows an error.
    """
    browser = find_browser()
    # The log tells what the page tries to load against the policy.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    meta = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">'
    text = page.read_text().replace("<head>", meta, 1)
    guarded = scratch / f"guarded-{page.name}"
    guarded.write_text(text)
    options = [*OPTIONS, "--enable-logging=stderr", f"--user-data-dir={scratch / 'profile'}", PHONE]
    done = subprocess.run(
        [browser, *options, "--dump-dom", guarded.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    assert "Content Security Policy" not in done.stderr
    assert ":CONSOLE" not in done.stderr
    return done.stdout


class Tab:
    """A page in a running browser, by the DevTools protocol (chromedevtools.github.io/devtools-protocol)."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        """Exceptions of the page, and errors in its console."""
        self.urls: list[str] = []
        """The addresses that were requested, in order."""
        self._socket = socket
        self._answers: list[asyncio.Future[dict[str, Any]]] = []

    async def open(self, url: str) -> None:
        """Go to the page at `url`."""
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of the JavaScript expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def await_true(self, expression: str, timeout_s: float = 60.0) -> None:
        """Wait until the expression is true in the page."""
        async with asyncio.timeout(timeout_s):
            while not await self.evaluate(expression):  # noqa: ASYNC110 - the page has no event for it
                await asyncio.sleep(0.05)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its answer."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        await self._socket.send_json({"id": len(self._answers), "method": method, "params": parameters})
        return await answer

    async def listen(self) -> None:
        """Read what the browser sends, until cancelled."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers[said["id"] - 1].set_result(said.get("result", said.get("error")))
            elif said["method"] == "Network.requestWillBeSent":
                self.urls.append(said["params"]["request"]["url"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] == "error":
                self.errors.append(str(said["params"]["args"]))


@asynccontextmanager
async def open_tab(scratch: Path) -> AsyncIterator[Tab]:
    """Run headless Chromium during the block, with an empty page in the width of a phone.

    Its profile is in `scratch`.
    """
    profile = scratch / "profile"
    options = [*OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    process = await asyncio.create_subprocess_exec(
        find_browser(),
        *options,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    listening = None
    try:
        async with aiohttp.ClientSession() as session:
            async with asyncio.timeout(START_S):
                socket = await session.ws_connect(await _find_page(process, session), max_msg_size=0)
            tab = Tab(socket)
            listening = asyncio.create_task(tab.listen())
            for domain in ("Page", "Network", "Runtime", "Log"):
                await tab.call(f"{domain}.enable")
            # Chromium's own windows can't be as narrow as a phone.
            phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
            await tab.call("Emulation.setDeviceMetricsOverride", **phone)
            yield tab
    finally:
        if listening:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        process.terminate()
        await process.communicate()


async def _find_page(process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> str:
    """Return the address of the socket to the page of a browser that starts."""
    assert process.stderr
    said = b""
    while b"DevTools listening on ws://" not in said:
        said = await process.stderr.readline()
        assert said, "the browser ended"
    place = said.decode().split("ws://")[1].split("/")[0]
    async with session.get(f"http://{place}/json/list") as answer:
        [page] = [target for target in await answer.json() if target["type"] == "page"]
    return str(page["webSocketDebuggerUrl"])
