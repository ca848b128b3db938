"""What gRPC servers and channels share: limits, trace context, and errors as `google.rpc.ErrorInfo`.

A service's method raises an error of `mesh/errors.py`; the interceptor turns it into the status of its face, with
`ErrorInfo` (reason = the error's name, domain = "tokenworks") and `RetryInfo` where waiting helps. Anything else that a
method raises is a defect: logged, and answered as `InvariantBroken` without its details.
"""

import inspect
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind, Status, StatusCode, use_span

from services.mesh import conventions as names
from services.mesh.access import is_secret
from services.mesh.errors import (
    InvalidRequest,
    InvariantBroken,
    MessageTooLarge,
    TokenworksError,
    Unauthenticated,
    face,
    from_reason,
)
from services.mesh.telemetry import TRACEPARENT, Telemetry, context_of
from tokenworks.errors import details_of

log = logging.getLogger(__name__)

DOMAIN: Final = "tokenworks"
MESH_SECRET: Final = "x-tokenworks-mesh"  # metadata of calls between services, and of an operator
_LONGEST_WORDS_BYTES: Final = 1500  # of an error; it travels twice, and clients take 8 KiB of headers
_KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


def shortened(words: str, most_bytes: int = _LONGEST_WORDS_BYTES) -> str:
    """The beginning of words that are longer than a header should be: they may quote what a caller sent."""
    if len(words) * 4 <= most_bytes or len(raw := words.encode()) <= most_bytes:
        return words
    return f"{raw[:most_bytes].decode(errors='ignore')}… ({len(words)} characters)"


def status_of(error: TokenworksError) -> grpc.Status:
    """The gRPC status of an error, with its details."""
    shape = face(error)
    assert shape.grpc != "OK", f"{error.reason} has the face of success"
    details = [any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.retry_after_s is not None:
        retry = any_pb2.Any()
        delay = duration_pb2.Duration(nanos=0)
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        details.append(retry)
    return rpc_status.to_status(
        status_pb2.Status(code=code_pb2.Code.Value(shape.grpc), message=shortened(str(error)), details=details)
    )


_UNNAMED: Final = {grpc.StatusCode.DEADLINE_EXCEEDED: "RequestTimedOut", grpc.StatusCode.UNAVAILABLE: "WorkerLost"}


def error_of(failure: grpc.RpcError) -> TokenworksError:
    """The error that a peer's `ErrorInfo` names; a `PeerError` with the status when there is none."""
    if not isinstance(failure, grpc.aio.AioRpcError):
        return from_reason("", str(failure))
    reason, retry_after_s = details_of(failure)
    code = failure.code()
    return from_reason(reason or _UNNAMED.get(code, ""), failure.details() or code.name, retry_after_s)


def metadata_value(context: Any, key: str) -> str:
    """The first value of a metadata key that is not binary; empty when it was not sent.

    Args:
        context: of a call on one of our servers, a `ServerCall`.
    """
    found: str = context.first_value(key)
    return found


def require_mesh_secret(context: Any, secrets: Sequence[str]) -> None:
    """Lets pass who knows one of the mesh's secrets (`Settings.secrets`); everybody when there is none.

    Raises:
        Unauthenticated: the call's `x-tokenworks-mesh` is missing or another.
    """
    shown = metadata_value(context, MESH_SECRET).encode()
    if secrets and not is_secret(shown, secrets):
        raise Unauthenticated(f"send this mesh's secret as {MESH_SECRET}; it is mesh.secret in its settings")


def too_large(size_bytes: int, limit_bytes: int) -> MessageTooLarge:
    """The error of a request over the limit."""
    return MessageTooLarge(
        f"the request has {size_bytes} bytes, the limit is {limit_bytes}; send less, or raise mesh.max_message_bytes"
    )


def health_of(ready: bool) -> "health_pb2.HealthCheckResponse.ServingStatus":
    """Readiness as the health service says it."""
    return health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING


class Guard:
    """Errors to statuses, sizes, spans and durations, around every method."""

    def __init__(self, telemetry: Telemetry, max_message_bytes: int, quiet: frozenset[str]) -> None:
        self._telemetry = telemetry
        self._max_message_bytes = max_message_bytes
        self._quiet = quiet
        self._durations = telemetry.histograms.create(
            names.RPC_SERVER_DURATION,
            "s",
            "How long calls took",
            names.DURATION_BUCKETS_S,
            (names.RPC_METHOD, names.RPC_STATUS),
        )

    def around(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> "grpc.RpcMethodHandler[Any, Any]":
        """The handler of `method` (like `/tokenworks.v1.Router/Place`) with all that around it. It takes bytes: what
        cannot be parsed is the caller's error."""
        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        behaviours = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        behaviour = behaviours[2 * handler.request_streaming + handler.response_streaming]
        guarded = (self._stream if handler.response_streaming else self._unary)(
            method,
            behaviour,
            self._reader(method, handler),
            traced=method not in self._quiet and not method.startswith("/grpc."),
        )
        found: grpc.RpcMethodHandler[Any, Any] = make(guarded, None, handler.response_serializer)
        return found

    def _reader(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> Callable[[Any], Any]:
        """What makes a call's bytes, or its stream of them, what its method takes."""
        parse, limit_bytes = handler.request_deserializer, self._max_message_bytes

        def one(data: bytes) -> Any:
            if len(data) > limit_bytes:
                raise too_large(len(data), limit_bytes)
            if parse is None:
                return data
            try:
                return parse(data)
            except DecodeError as error:
                raise InvalidRequest(f"{len(data)} bytes are no request of {method}: {error}") from error

        async def each(stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in stream:
                yield one(data)

        return each if handler.request_streaming else one

    def _unary(self, method: str, behaviour: Any, read: Callable[[Any], Any], *, traced: bool) -> Any:
        named = method.lstrip("/")

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Call(self, named, context, traced) as call_state:
                try:
                    return await behaviour(read(request), context)
                except Exception as error:
                    await self._abort(error, context, call_state)

        return call

    def _stream(self, method: str, behaviour: Any, read: Callable[[Any], Any], *, traced: bool) -> Any:
        # Writing here rather than yielding: a call that ends early then unwinds in its own task, so that its span and
        # the method's `finally` end with it; a generator left suspended would wait for the garbage collector.
        writes_itself = inspect.iscoroutinefunction(behaviour)
        named = method.lstrip("/")

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            with _Call(self, named, context, traced) as call_state:
                try:
                    if writes_itself:
                        await behaviour(read(request), context)
                        return
                    async with aclosing(behaviour(read(request), context)) as responses:
                        async for response in responses:
                            await context.write(response)
                except Exception as error:
                    await self._abort(error, context, call_state)

        return call

    async def _abort(self, error: Exception, context: grpc.aio.ServicerContext[Any, Any], call: "_Call") -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if not isinstance(error, TokenworksError):
            log.exception("a defect in %s", call.method, exc_info=error)
            error = InvariantBroken("an internal error; the service's log has the details")
        status = status_of(error)
        call.failed(error)
        context.set_trailing_metadata(status.trailing_metadata)
        await context.abort(status.code, status.details, status.trailing_metadata)


class _Call:
    """The span and the duration of one call."""

    def __init__(self, guard: Guard, method: str, context: grpc.aio.ServicerContext[Any, Any], traced: bool) -> None:
        self.method = method
        self._guard = guard
        self._code = "OK"
        self._started_s = time.perf_counter()
        self._use: Any = None
        parent = metadata_value(context, TRACEPARENT) if traced else ""
        # Without a parent, a span that nobody records would pass nothing on.
        if traced and (parent or guard._telemetry.exporting):
            self.span = guard._telemetry.tracer.start_span(
                self.method,
                context_of(parent),
                SpanKind.SERVER,
                {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: self.method},
            )
            self._use = use_span(self.span, end_on_exit=True, record_exception=False, set_status_on_exception=False)

    def failed(self, error: TokenworksError) -> None:
        self._code = face(error).grpc
        if self._use is not None:
            self.span.set_attributes({names.RPC_STATUS: self._code, names.ERROR_TYPE: error.reason})
            self.span.set_status(Status(StatusCode.ERROR, str(error)))

    def __enter__(self) -> "_Call":
        if self._use is not None:
            self._use.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: Any) -> None:
        if kind is not None and self._code == "OK":
            self._code = "CANCELLED"
        self._guard._durations.record(time.perf_counter() - self._started_s, self.method, self._code)
        if self._use is not None:
            self._use.__exit__(None, None, None)


def _several(addresses: str) -> str:
    """gRPC takes several addresses as numbers only."""
    hosts = [each.strip().rpartition(":") for each in addresses.split(",")]
    return "ipv4:" + ",".join(f"{socket.gethostbyname(host)}:{port}" for host, _, port in hosts)


def open_channel(address: str, *, max_message_bytes: int = 64 << 20) -> grpc.aio.Channel:
    """A channel to `host:port`; it connects at the first call, and reconnects within 2 s.

    Args:
        address: several by commas: the first that answers is asked, another once that one is gone.
    """
    return grpc.aio.insecure_channel(
        _several(address) if "," in address else address,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.use_local_subchannel_pool", 1),
            *_KEEPALIVE,
        ],
    )
