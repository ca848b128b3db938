"""The gRPC server of every service, with health and reflection; made for streams that clients read token by token.

grpcio's hands every message to a thread and wakes a task when it has left; per token that is most of what a relay
costs. Here a method may instead `push` bytes from wherever they arose, without awaiting: they leave in one write per
connection and turn of the loop. Why none of ours is grpcio's: docs/decisions/0019.

In: connections (HTTP/2 without TLS, by prior knowledge). Out: calls of method handlers, with a `ServerCall` as context.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import grpc
import ngh2
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from services.mesh.departures import Departures
from services.mesh.errors import InvalidRequest, QueueFull
from services.mesh.grpc_call import Method, ServerCall
from services.mesh.grpc_wire import CONTENT_TYPE, MalformedMessage, OversizedMessage, trailers_only
from services.mesh.http2 import Headers, Http2Connection
from services.mesh.lifecycle import Lifecycle
from services.mesh.rpc import Guard, health_of, too_large
from services.mesh.telemetry import Telemetry

log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
_HELD_FACTOR: Final = 16  # incomplete requests of one connection, in units of the largest request
_MALFORMED: Final = (
    "a header of the call is none that HTTP/2 allows: names in lower case, values without a blank at either end; is"
    " there one behind the key in authorization?"
)
_CUT_S: Final = 1.0  # for calls that were cancelled to end


class FastGrpcServer:
    """One service's gRPC server with health and reflection.

    Usage: `add` the servicers, `start`, and register `drain` with the lifecycle. `port` is the bound one.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        life: Lifecycle,
        *,
        max_message_bytes: int,
        untraced_methods: Sequence[str] = (),
        gather_s: float = 0.0,
    ) -> None:
        """`gather_s`: a stream's messages past the first leave together that come within this time; 0: at once."""
        self.departures = Departures(gather_s)
        self.max_message_bytes = max_message_bytes
        self.methods: dict[bytes, Method] = {}
        self.connections: set[_ServerConnection] = set()
        self.draining = False
        self.port = 0
        self._guard = Guard(telemetry, max_message_bytes, frozenset(untraced_methods))
        self._health = HealthServicer()
        self._names: list[str] = []
        self._listeners: list[asyncio.Server] = []
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self)
        life.on_ready_changed(self._set_health)

    def add(self, register: Callable[[Any, Any], None], servicer: object, service_name: str) -> None:
        """`register` is the generated `add_…Servicer_to_server`; `service_name` like `tokenworks.v1.Router`."""
        register(servicer, self)
        self._names.append(service_name)

    def add_generic(self, service_name: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]) -> None:
        """A service by method handlers; a method that streams may `push` on its context."""
        self.add_registered_method_handlers(service_name, handlers)
        self._names.append(service_name)

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """What generated code calls to put a service here."""
        for name, handler in handlers.items():
            path = f"/{service_name}/{name}"
            self.methods[path.encode()] = Method(path, self._guard.around(path, handler))

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code calls this as well; `add_registered_method_handlers` has the same methods."""

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Binds and serves; the bound port (`port` 0 picks a free one).

        Args:
            shared: other processes may listen on the same port; the kernel deals connections out among them.

        Raises:
            OSError: the address is taken or not ours; the message says which setting to change.
        """
        names = [*self._names, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME]
        add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        add(ReflectionServicer(names), self)
        await self._set_health(False)
        self.port = await self.listen(host, port, shared=shared)
        return self.port

    async def listen(self, host: str, port: int, *, shared: bool = False) -> int:
        """Serves on one more address, as `start` does."""
        try:
            listener = await asyncio.get_running_loop().create_server(
                lambda: _ServerConnection(self), host, port, backlog=_BACKLOG, reuse_port=shared or None
            )
        except OSError as error:
            raise OSError(f"gRPC cannot listen on {host}:{port}: {error}; free the port or set another") from error
        self._listeners.append(listener)
        bound: int = listener.sockets[0].getsockname()[1]
        return bound

    async def drain(self, grace_s: float) -> None:
        """Stops accepting, lets running calls finish for `grace_s`, then cancels them."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.say_goodbye()
        running = self._running()
        if running and grace_s > 0:
            await asyncio.wait(running, timeout=grace_s)
        for connection in list(self.connections):
            connection.cut()
        if left := self._running():
            await asyncio.wait(left, timeout=_CUT_S)
        for connection in list(self.connections):
            connection.close()

    def _running(self) -> list[asyncio.Task[None]]:
        return [task for connection in self.connections for task in connection.tasks()]

    async def _set_health(self, ready: bool) -> None:
        for name in ("", *self._names):
            await self._health.set(name, health_of(ready))


class _ServerConnection(Http2Connection):
    """One client's connection and the calls on it."""

    def __init__(self, server: FastGrpcServer) -> None:
        super().__init__(ngh2.Role.SERVER, server.departures)
        self._server = server
        self._calls: dict[int, ServerCall] = {}
        self._peer = ""
        self._held_bytes = 0

    def tasks(self) -> list[asyncio.Task[None]]:
        """Of the calls that run."""
        return [call.task for call in self._calls.values() if call.task is not None and not call.task.done()]

    def cut(self) -> None:
        """Cancels the calls that run."""
        for call in list(self._calls.values()):
            call.cut(grpc.StatusCode.UNAVAILABLE, "the server has stopped")

    def say_goodbye(self) -> None:
        """No new calls on this connection; those that run go on."""
        if not self.lost:
            self.h2.send_goaway()
            self.flush_soon()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._peer = f"ipv4:{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix:"
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.connections.add(self)
        super().connection_made(transport)

    def on_request(self, stream: int, headers: Headers, ended: bool) -> None:
        fields = dict(reversed(headers))
        if not fields.get(b"content-type", b"").startswith(CONTENT_TYPE):
            with suppress(ngh2.NGH2Error):
                self.h2.send_response(stream, [(b":status", b"415")], end_stream=True)
                self.reset_when_sent(stream)
            return
        call = ServerCall(self, stream, headers, fields, limit_bytes=self._server.max_message_bytes, peer=self._peer)
        self._calls[stream] = call
        path = fields.get(b":path", b"")
        method = self._server.methods.get(path)
        if self._server.draining:
            call.refuse(grpc.StatusCode.UNAVAILABLE, "this server drains; call another one")
        elif method is None:
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, f"there is no method {path.decode('latin-1')!r} here")
        else:
            try:
                call.begin(method)
            except MalformedMessage as error:
                call.refuse_for(InvalidRequest(str(error)))
        if ended:
            call.request_ended()

    def on_data(self, stream: int, data: bytes, ended: bool) -> None:
        call = self._calls.get(stream)
        if call is None:
            return
        held = call.held_bytes
        try:
            call.request_data(data)
        except OversizedMessage as error:
            call.refuse_for(too_large(error.size, self._server.max_message_bytes))
        except MalformedMessage as error:
            call.refuse_for(InvalidRequest(str(error)))
        self._held_bytes += call.held_bytes - held
        if ended:
            call.request_ended()
        elif self._held_bytes > self._server.max_message_bytes * _HELD_FACTOR:
            call.refuse_for(QueueFull("this connection has too many requests half sent; send them one by one"))

    def on_trailers(self, stream: int, headers: Headers) -> None:
        if (call := self._calls.get(stream)) is not None:
            call.request_ended()

    def on_stream_closed(self, stream: int) -> None:
        if (call := self._calls.pop(stream, None)) is not None:
            self._held_bytes -= call.held_bytes
            call.peer_left()

    def answer_of_malformed(self, stream: int) -> bytes:
        # libnghttp2 resets a request whose headers break HTTP/2's rules and tells nothing of it. A bare reset is an
        # internal error to gRPC's clients: a status in front of it says whose fault it is.
        return b"" if stream in self._calls else trailers_only(stream, grpc.StatusCode.INVALID_ARGUMENT, _MALFORMED)

    def on_lost(self, why: str) -> None:
        self._server.connections.discard(self)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.peer_left()
