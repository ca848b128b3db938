"""The HTTP side of every service: `/healthz`, `/readyz`, `/metrics`; the router adds its own routes."""

from collections.abc import Sequence

from aiohttp import web
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.mesh.lifecycle import Lifecycle
from services.mesh.telemetry import Telemetry


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
        app = web.Application(client_max_size=max_body_bytes)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                *routes,
            ]
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
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
        return self.port

    async def listen(self, host: str, port: int, *, shared: bool = False) -> None:
        """Serves on one more address, as `start` does."""
        await web.TCPSite(self._runner, host, port, reuse_port=shared or None).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._life.ready:
            return web.Response(text="ready\n")
        state = "draining" if self._life.draining else self._life.held_because or "starting"
        return web.Response(status=503, text=f"{state}\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._telemetry.registry)  # type: ignore[no-untyped-call]
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})
