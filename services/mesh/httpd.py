"""The HTTP side of every service: `/healthz`, `/readyz`, `/metrics`; router and worker add their own routes.

What is no HTTP is answered with 400 and is nobody's defect: the log has one line for it at DEBUG, no trace. A client
that connects and sends no request within `FIRST_REQUEST_S` is hung up on; between requests aiohttp sees to that.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import HttpVersion11, hdrs, http_exceptions, web
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from services.mesh.lifecycle import Lifecycle
from services.mesh.telemetry import Telemetry

log = logging.getLogger(__name__)

FIRST_REQUEST_S: Final = 30.0
_SWEEP_EVERY_S: Final = 5.0
_ITS_PEERS: Final = (http_exceptions.HttpProcessingError, web.RequestPayloadError, ConnectionError)


class _NotOurs(logging.Filter):
    """Turns what aiohttp logs of a peer's bad bytes into a line at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, _ITS_PEERS):
            return True
        log.debug("a bad request: %s", " ".join(str(error).split()))
        return False


_aiohttp_log = logging.getLogger(f"{__name__}.aiohttp")
_aiohttp_log.addFilter(_NotOurs())


async def _expect(request: web.Request) -> None:
    """Says to go on where a client waits for that. aiohttp's own quotes what is not known, maybe no UTF-8."""
    if request.version != HttpVersion11:
        return
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="Expect: only 100-continue is known")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun


class HttpServer:
    """One service's HTTP server. `port` is the bound one."""

    def __init__(
        self,
        telemetry: Telemetry,
        life: Lifecycle,
        *,
        routes: Sequence[web.RouteDef] = (),
        max_body_bytes: int = 4 << 20,
    ) -> None:
        self._telemetry = telemetry
        self._life = life
        self._spoke: set[Any] = set()  # connections that have sent a request
        self._silent: dict[Any, float] = {}  # and those that have not, since when
        self._sweeping: asyncio.Task[None] | None = None
        app = web.Application(client_max_size=max_body_bytes, middlewares=[self._note_speaking])
        every = [
            web.get("/healthz", self._healthz),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
            *routes,
        ]
        app.add_routes([web.route(r.method, r.path, r.handler, expect_handler=_expect, **r.kwargs) for r in every])
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_aiohttp_log,
            handle_signals=False,
            handler_cancellation=True,  # a client that disconnects stops what was done for it
            shutdown_timeout=2.0,
        )
        self.port = 0

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Binds and serves; the bound port (`port` 0 picks a free one).

        Args:
            shared: other processes may listen on the same port; the kernel deals connections out among them.

        Raises:
            OSError: the address is taken.
        """
        await self._runner.setup()
        await self.listen(host, port, shared=shared)
        self.port = self._runner.addresses[0][1]
        self._sweeping = asyncio.create_task(self._sweep(), name="silent connections")
        return self.port

    async def listen(self, host: str, port: int, *, shared: bool = False) -> None:
        """Serves on one more address, as `start` does."""
        await web.TCPSite(self._runner, host, port, reuse_port=shared or None).start()

    def routes(self) -> list[tuple[str, str]]:
        """(method, path) of all that is served."""
        routes = self._runner.app.router.routes()
        return [(each.method, each.resource.canonical) for each in routes if each.resource is not None]

    async def stop(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self._runner.cleanup()

    def hang_up_on_silent(self, now_s: float) -> int:
        """Closes the connections that have sent no request for `FIRST_REQUEST_S`; how many."""
        server = self._runner.server
        connections = set(server.connections) if server is not None else set()
        self._spoke &= connections
        self._silent = {each: self._silent.get(each, now_s) for each in connections - self._spoke}
        late = [each for each, since_s in self._silent.items() if now_s - since_s >= FIRST_REQUEST_S]
        for each in late:
            each.force_close()
        return len(late)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            if late := self.hang_up_on_silent(asyncio.get_running_loop().time()):
                log.info("hung up on %d clients that sent no request within %g s", late, FIRST_REQUEST_S)

    @web.middleware
    async def _note_speaking(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self._spoke.add(request.protocol)
        return await handler(request)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._life.ready else 503, text=f"{self._life.state}\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._telemetry.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
