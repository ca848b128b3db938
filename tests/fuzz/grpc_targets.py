"""Every method of every gRPC service that a mesh serves, found by asking its servers.

In: a mesh. Out: a target for each method. What may come of a mutated call: its answer, or an error of the project's
tree with its `ErrorInfo`; never INTERNAL or UNKNOWN, and never silence. A stream that has nothing to say yet is left.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.mesh.errors import OurError, from_reason
from services.mesh.placement import METADATA_KEY
from services.mesh.rpc import MESH_SECRET
from tests.fuzz.grpc_caller import Ended, GrpcCaller
from tests.fuzz.http2_bytes import connection_bytes
from tests.fuzz.mutations import mutated_message
from tests.fuzz.samples import TRACEPARENT
from tests.fuzz.target import Wrong
from tests.fuzz.world import Service, World
from tokenworks.errors import details_of
from tokenworks.v1 import inference_pb2

_DEADLINE_S: Final = 15.0
_SILENCE_S: Final = 0.15  # a stream that says nothing for so long has nothing to say
_MOST_ANSWERS: Final = 3
_MOST_REQUESTS: Final = 6  # of a call whose requests are a stream
_RAW_PART: Final = 0.04  # of the messages: changed below gRPC, on a connection of their own
_GRPCIO_PART: Final = 0.02  # of the calls: by grpcio's client, the others by one of ours
_SHORT_PART: Final = 0.03  # of the calls: with next to no time
_RAW_WAIT_S: Final = 0.05
_MOST_HEADER_BYTES: Final = 60_000  # what is longer ends its connection, and every call on it
# What grpcio's client says of a stream that its server has ended, with a status, before all was written.
_WRITTEN_TO_LATE: Final = "Internal error from Core"
_OURS: Final = "tokenworks."
_ALWAYS: Final = frozenset({grpc.StatusCode.CANCELLED})
_STANDARD: Final = frozenset({  # what gRPC's own services answer, without ErrorInfo
    grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip
# What breaks an engine on purpose does so in whoever's process it is: such calls come without the mesh's secret.
_BREAKING: Final = frozenset({
    inference_pb2.InjectFaultRequest.KIND_SLOW, inference_pb2.InjectFaultRequest.KIND_HANG,
    inference_pb2.InjectFaultRequest.KIND_CRASH, inference_pb2.InjectFaultRequest.KIND_ENGINE_DIES,
})  # fmt: skip


async def grpc_targets(world: World) -> "list[GrpcTarget]":
    """One for each method that any service of the mesh serves."""
    pool, found = descriptor_pool.Default(), []
    for service in world.services.values():
        for name in await _served(service):
            methods = pool.FindServiceByName(name).methods
            found += [GrpcTarget(world, service, method) for method in methods]
    return found


async def _served(service: Service) -> list[str]:
    async def ask() -> AsyncIterator[Any]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    call = reflection_pb2_grpc.ServerReflectionStub(service.channel).ServerReflectionInfo(ask(), timeout=_DEADLINE_S)
    return sorted([each.name async for answer in call for each in answer.list_services_response.service])


class GrpcTarget:
    """One method at one service."""

    at_once = 256

    def __init__(self, world: World, service: Service, method: MethodDescriptor) -> None:
        owner = method.containing_service.full_name
        self.name = f"grpc {service.name} {owner.rpartition('.')[2]}/{method.name}"
        self._path = f"/{owner}/{method.name}"
        self._world = world
        self._service = service
        self._method = method
        self._ours = owner.startswith(_OURS)
        self._request: type[Message] = message_factory.GetMessageClass(method.input_type)
        self._response: type[Message] = message_factory.GetMessageClass(method.output_type)
        self._caller: GrpcCaller | None = None
        self._opening = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None

    async def one(self, rng: Random, number: int) -> str:
        if rng.random() < _RAW_PART:
            return await self._raw(rng)
        count = rng.randint(0, _MOST_REQUESTS) if self._method.client_streaming else 1
        bodies = [mutated_message(self._request, rng) for _ in range(count)]
        metadata = self._metadata(bodies, rng)
        short = rng.random() < _SHORT_PART
        deadline_s = rng.choice((0.0001, 0.001, 0.01)) if short else _DEADLINE_S
        if rng.random() < _GRPCIO_PART:
            return await self._by_grpcio(bodies, metadata, deadline_s, short=short)
        caller = await self._open()
        ended = await caller.call(
            self._path,
            metadata,
            bodies,
            timeout_s=deadline_s,
            most_answers=_MOST_ANSWERS if self._method.server_streaming else 2,  # one more than there may be
            silence_s=_SILENCE_S if self._method.server_streaming else _DEADLINE_S + 5.0,
        )
        for answer in ended.answers:
            self._response.FromString(answer)
        if ended.code is None:
            if not self._method.server_streaming:
                raise Wrong(f"{len(ended.answers)} answers, and no end")
            return "left early" if ended.answers else "left waiting"
        if ended.code is grpc.StatusCode.OK:
            if not (self._method.server_streaming or len(ended.answers) == 1):
                raise Wrong(f"OK with {len(ended.answers)} answers")
            return "OK"
        return self._judge(ended, short=short)

    async def rest(self) -> None:
        if self._caller is not None:
            self._caller.close()
            self._caller = None
        # A call that broke while it was written to stays with its channel: what it was sent is read by nobody.
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None

    async def _open(self) -> GrpcCaller:
        async with self._opening:
            if self._caller is None or self._caller.lost:
                self._caller = await GrpcCaller.connect(self._service.grpc_port)
            return self._caller

    async def _by_grpcio(
        self, bodies: Sequence[bytes], metadata: list[tuple[str, str | bytes]], deadline_s: float, *, short: bool
    ) -> str:
        """The same call as grpcio's client makes it."""
        call = self._callable()(
            _each(bodies) if self._method.client_streaming else bodies[0], metadata=metadata, timeout=deadline_s
        )
        try:
            return await self._outcome(call)
        except grpc.aio.AioRpcError as error:
            if error.details() == _WRITTEN_TO_LATE:
                return "ended while it was written to"
            reason, _ = details_of(error)
            return self._judge(Ended(error.code(), error.details() or "", reason, []), short=short)
        finally:
            call.cancel()

    def _callable(self) -> Any:
        if self._channel is None:
            self._channel = self._service.open_channel()
        makers = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }
        return makers[self._method.client_streaming, self._method.server_streaming](self._path)

    async def _outcome(self, call: Any) -> str:
        if not self._method.server_streaming:
            self._response.FromString(await call)
            return "OK"
        for _ in range(_MOST_ANSWERS):
            try:
                answer = await asyncio.wait_for(call.read(), _SILENCE_S)
            except TimeoutError:
                return "left waiting"
            except asyncio.CancelledError:
                return "cancelled"
            if answer is grpc.aio.EOF:
                if await call.code() is not grpc.StatusCode.OK:
                    raise Wrong("a stream ended without a status")
                return "OK"
            self._response.FromString(answer)
        return "left early"

    def _judge(self, ended: Ended, *, short: bool) -> str:
        code, reason, details = ended.code, ended.reason, ended.details
        assert code is not None
        if code in _ALWAYS or (short and code is grpc.StatusCode.DEADLINE_EXCEEDED):
            return code.name
        if not self._ours and code in _STANDARD:
            return code.name
        if not reason:
            raise Wrong(f"{code.name} without ErrorInfo: {details!r}")
        known = from_reason(reason, "")
        if type(known).__name__ != reason or isinstance(known, OurError):
            raise Wrong(f"{code.name}, {reason}: {details!r}")
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            raise Wrong(f"{code.name}, {reason}: {details!r}")
        if not details:
            raise Wrong(f"{reason} says nothing")
        return reason

    def _metadata(self, bodies: Sequence[bytes], rng: Random) -> list[tuple[str, str | bytes]]:
        metadata: list[tuple[str, str | bytes]] = []
        if rng.random() > 0.05 and not self._breaks(bodies):
            metadata.append((MESH_SECRET, self._world.operator[0][1]))
        if rng.random() > 0.05:
            metadata.append(("authorization", f"Bearer {self._world.key}"))
        if self._path.endswith("Worker/Generate") and rng.random() > 0.05:
            placement = self._placement(bodies, rng)
            if len(placement) < _MOST_HEADER_BYTES:
                metadata.append((METADATA_KEY, placement))
        if rng.random() < 0.1:
            metadata.append(("traceparent", rng.choice((TRACEPARENT, "00-00-00-00", "x" * 300, ""))))
        if rng.random() < 0.1:
            metadata.append((rng.choice(("x-odd", "x-tokenworks-asked-by", "x-tokenworks-router")), _odd_value(rng)))
        if rng.random() < 0.05:
            metadata.append(("x-odd-bin", rng.randbytes(rng.randrange(200))))
        if rng.random() < 0.02:
            metadata += [(f"x-many-{each}", "v") for each in range(100)]
        return metadata

    def _placement(self, bodies: Sequence[bytes], rng: Random) -> str:
        try:
            named = inference_pb2.GenerateRequest.FromString(bodies[0]).request_id
        except DecodeError:
            named = ""
        token = self._world.placement(rng, named)
        if rng.random() < 0.1:
            place = rng.randrange(len(token))
            token = token[:place] + rng.choice(("", ".", "A", "==")) + token[place + 1 :]
        return token

    def _breaks(self, bodies: Sequence[bytes]) -> bool:
        if self._request is not inference_pb2.InjectFaultRequest:
            return False
        try:
            return any(inference_pb2.InjectFaultRequest.FromString(body).kind in _BREAKING for body in bodies)
        except DecodeError:
            return False

    async def _raw(self, rng: Random) -> str:
        """Bytes that are no call as any client makes it, on a connection of their own."""
        body = mutated_message(self._request, rng)
        said = connection_bytes(self._path, body, self._metadata([body], rng), rng)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._service.grpc_port)
        try:
            writer.write(said)
            async with asyncio.timeout(_RAW_WAIT_S):
                while await reader.read(65_536):
                    pass
            return "hung up on"
        except (TimeoutError, ConnectionError):
            return "raw bytes"
        finally:
            writer.transport.abort()


async def _each(bodies: Sequence[bytes]) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def _odd_value(rng: Random) -> str:
    # HTTP/2 has no spaces at a value's ends.
    return "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.choice((0, 1, 40, 2000)))).strip()
