"""A TCP proxy before a service: a test can cut and freeze its connections, and send new ones elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class Proxy:
    """Forwards to one service; `url` is the service's URL by way of the proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = f"{parts.hostname}:{parts.port}"
        self._target = (parts.hostname, parts.port)
        self._url = url
        self._port = 0
        self.connects = 0
        """Connections that clients have made."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return self._url.replace(self._place, f"127.0.0.1:{self._port}")

    def point_to(self, port: int) -> None:
        """Send new connections to another port, as a changed name does; let those that there are be."""
        self._target = ("127.0.0.1", port)

    def cut(self) -> None:
        """Reset every connection; new ones may be made."""
        for writer in list(self._writers):
            writer.transport.abort()

    def freeze(self) -> None:
        """Let every connection be, and carry nothing over it."""
        for writer in self._writers:
            transport = writer.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await server.wait_closed()
            await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connects += 1
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, their_writer}
        await asyncio.gather(self._pump(reader, their_writer), self._pump(their_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)
