"""The router's HTTP server: for streams whose every event is pushed by what brought it, as `fast_grpc.py` is for gRPC.

A general server spends more on a request than everything else that a router does for it: an application's layers, a
request and a response object, a task woken for each part. Here a route's handler gets one `HttpCall` and writes its
answer from templates. Of HTTP it does all that a client may rely on (`http1.py`), and nothing that no route here needs.

In: connections. Out: calls of handlers; `/healthz`, `/readyz` and `/metrics` beside the service's own.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final
from urllib.parse import unquote_to_bytes

from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from services.mesh.departures import Departures
from services.mesh.errors import TokenworksError
from services.mesh.http1 import FIRST_REQUEST_S, Http1Connection
from services.mesh.http_call import TEXT, HttpCall
from services.mesh.lifecycle import Lifecycle
from services.mesh.openai.answers import refusal_of
from services.mesh.telemetry import Telemetry

log = logging.getLogger(__name__)

Handler = Callable[[HttpCall], Awaitable[None]]
Check = Callable[[HttpCall], None]

_BACKLOG: Final = 1024
_SWEEP_EVERY_S: Final = 5.0
_CUT_S: Final = 1.0  # for handlers that were cancelled to end
_METRICS_TYPE: Final = CONTENT_TYPE_LATEST.encode()


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """A path and its handler.

    Attributes:
        path: where it ends in `{name}`, that stands for all that follows; see `rest_of`.
        check: raises what is known to be wrong before the body has come; run again by the handler or not, as it likes.
    """

    method: str
    path: str
    handler: Handler
    check: Check | None = None


class FastHttpServer:
    """One service's HTTP server. `port` is the bound one.

    Attributes:
        max_body_bytes: of a request.
        departures: when what may wait for company is sent.
        draining: every connection ends with the answer under way.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        life: Lifecycle,
        *,
        routes: Sequence[HttpRoute] = (),
        max_body_bytes: int = 4 << 20,
        gather_s: float = 0.0,
    ) -> None:
        """`gather_s`: a stream's parts past the first leave together that come within this time; 0: at once."""
        self.max_body_bytes = max_body_bytes
        self.departures = Departures(gather_s)
        self.draining = False
        self.connections: set[Http1Connection] = set()
        self.port = 0
        self._telemetry = telemetry
        self._life = life
        self._routes = [
            HttpRoute("GET", "/healthz", self._healthz),
            HttpRoute("GET", "/readyz", self._readyz),
            HttpRoute("GET", "/metrics", self._metrics),
            *routes,
        ]
        self._exact: dict[bytes, dict[bytes, HttpRoute]] = {}
        self._beneath: dict[bytes, dict[bytes, HttpRoute]] = {}
        for each in self._routes:
            head, open_end, _ = each.path.partition("{")
            methods = (self._beneath if open_end else self._exact).setdefault(head.encode(), {})
            methods[each.method.encode()] = each
            if each.method == "GET":
                methods[b"HEAD"] = each
        self._listeners: list[asyncio.Server] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._second, self._date = 0, b""

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Binds and serves; the bound port (`port` 0 picks a free one).

        Args:
            shared: other processes may listen on the same port; the kernel deals connections out among them.

        Raises:
            OSError: the address is taken.
        """
        self.port = await self.listen(host, port, shared=shared)
        self._sweeping = asyncio.create_task(self._sweep(), name="slow and silent connections")
        return self.port

    async def listen(self, host: str, port: int, *, shared: bool = False) -> int:
        """Serves on one more address, as `start` does."""
        listener = await asyncio.get_running_loop().create_server(
            lambda: Http1Connection(self), host, port, backlog=_BACKLOG, reuse_port=shared or None
        )
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    def routes(self) -> list[tuple[str, str]]:
        """(method, path) of all that is served."""
        return [(each.method, each.path) for each in self._routes]

    async def stop(self, grace_s: float = 2.0) -> None:
        """Stops accepting, lets what is served finish for `grace_s`, then cancels it."""
        self.draining = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        if running := self._running():
            await asyncio.wait(running, timeout=grace_s)
        for task in self._running():
            task.cancel()
        if left := self._running():
            await asyncio.wait(left, timeout=_CUT_S)
        for connection in list(self.connections):
            connection.abort()

    def hang_up_on_silent(self, now_s: float) -> int:
        """Ends what has taken too long (`http1.py`); how many clients never sent a request."""
        return sum([each.look(now_s) for each in list(self.connections)])

    # What a connection asks of it.

    def date(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
        return self._date

    def check(self, call: HttpCall) -> None:
        found = self._found(call)
        if found is not None and found.check is not None:
            found.check(call)

    async def serve(self, call: HttpCall) -> None:
        route = self._found(call)
        if route is not None:
            await route.handler(call)
        elif allowed := self._methods_of(call.path):
            names = ", ".join(sorted(each.decode() for each in allowed))
            call.answer(405, TEXT, b"405: Method Not Allowed\n", b"Allow: %b\r\n" % names.encode())
        else:
            call.answer(404, TEXT, b"404: Not Found\n")

    def refuse(self, call: HttpCall, error: TokenworksError) -> None:
        call.answer(*refusal_of(error))

    def _found(self, call: HttpCall) -> HttpRoute | None:
        return self._methods_of(call.path).get(call.method)

    def _methods_of(self, path: bytes) -> dict[bytes, HttpRoute]:
        if (exact := self._exact.get(path)) is not None:
            return exact
        beneath = (methods for head, methods in self._beneath.items() if path.startswith(head) and path != head)
        return next(beneath, {})

    def _running(self) -> list[asyncio.Task[None]]:
        return [each.task for each in self.connections if each.task is not None]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            if late := self.hang_up_on_silent(asyncio.get_running_loop().time()):
                log.info("hung up on %d clients that sent no request within %g s", late, FIRST_REQUEST_S)

    async def _healthz(self, call: HttpCall) -> None:
        call.answer(200, TEXT, b"ok\n")

    async def _readyz(self, call: HttpCall) -> None:
        call.answer(200 if self._life.ready else 503, TEXT, f"{self._life.state}\n".encode())

    async def _metrics(self, call: HttpCall) -> None:
        call.answer(200, _METRICS_TYPE, self._telemetry.exposition())


def rest_of(call: HttpCall, route: str) -> str:
    """What stands in a call's path where `route` has its `{name}`."""
    head = route.partition("{")[0]
    return unquote_to_bytes(call.path[len(head) :]).decode("utf-8", "replace")
