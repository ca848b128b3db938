"""Links: one TCP address stands before another and passes on what comes, until it is cut, severed or late.

In: where to listen, and whose address that stands for. Out: connections that carry bytes both ways. While a link is cut
nothing passes and connections stand, as over a network that lost a cable: what is sent waits in the sockets' buffers.
Severed, its connections are reset and new ones refused, as by a host that is gone.
"""

import asyncio
import contextlib

_CHUNK = 1 << 16


class Link:
    """Make it, `open` it, `close` it; after `mend` it carries again.

    Args:
        target: host and port that it stands for.

    Attributes:
        host, port: that it listens on; the port from the first `open` on.
    """

    def __init__(self, host: str, target: tuple[str, int]) -> None:
        self.port = 0
        self.host = host
        self._target = target
        self._server: asyncio.Server | None = None
        self._passing = asyncio.Event()
        self._passing.set()
        self._late_s = 0.0
        self._carriers: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listens. Raises OSError: the address cannot be had."""
        self._server = await asyncio.start_server(self._take, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stops listening and resets what is open."""
        self._stop_listening()
        carriers = list(self._carriers)
        for each in carriers:
            each.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)

    def cut(self) -> None:
        """Nothing passes from now on."""
        self._passing.clear()

    async def sever(self) -> None:
        """Connections are reset, and new ones are refused from now on."""
        await self.close()

    def delay(self, late_s: float) -> None:
        """What comes is passed on `late_s` later."""
        self._late_s = late_s

    async def mend(self) -> None:
        """Carries again as at the start."""
        self._late_s = 0.0
        self._passing.set()
        if self._server is None:
            await self.open()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrier = asyncio.create_task(self._carry(reader, writer), name=f"link {self.port}")
        self._carriers.add(carrier)
        carrier.add_done_callback(self._carriers.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer.transport.abort]
        try:
            await self._passing.wait()  # a host that cannot be reached takes no connection
            there_reader, there_writer = await asyncio.open_connection(*self._target)
            ends.append(there_writer.transport.abort)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, there_writer))
                both.create_task(self._pass(there_reader, writer))
        except* OSError:
            pass  # one side is gone: the other is reset
        finally:
            for end in ends:
                end()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            if self._late_s:
                await asyncio.sleep(self._late_s)
            await self._passing.wait()
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError, NotImplementedError):
            writer.write_eof()
