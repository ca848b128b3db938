"""The FaultControl service: exists only where the settings say `worker.faults`.

In: what a caller wants broken. Out: what is in force.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final

import grpc

from services.mesh.errors import InvalidRequest, Unsupported
from services.mesh.rpc import require_mesh_secret
from services.worker.engine_life import EngineLife
from services.worker.faults import Fault, Faultable, FaultKind
from tokenworks.v1 import inference_pb2 as pb
from tokenworks.v1 import inference_pb2_grpc as pb_grpc

_KINDS: Final = {
    pb.InjectFaultRequest.KIND_NONE: FaultKind.NONE,
    pb.InjectFaultRequest.KIND_SLOW: FaultKind.SLOW,
    pb.InjectFaultRequest.KIND_HANG: FaultKind.HANG,
    pb.InjectFaultRequest.KIND_CRASH: FaultKind.CRASH,
    pb.InjectFaultRequest.KIND_ENGINE_DIES: FaultKind.ENGINE_DIES,
}


class FaultControl(pb_grpc.FaultControlServicer):
    """Breaks on request the engine that the worker has at the moment; the next one is whole."""

    def __init__(self, engine: EngineLife, secrets: Sequence[str]) -> None:
        """`secrets`: of the mesh; none lets everyone break the engine."""
        self._engine = engine
        self._secrets = secrets

    async def InjectFault(
        self, request: pb.InjectFaultRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.InjectFaultResponse:
        """Breaks the engine, or mends it.

        Raises:
            Unauthenticated: the mesh's secret is missing.
            InvalidRequest: no kind, or a factor that is not > 0.
            Unsupported: the engine cannot be broken.
        """
        require_mesh_secret(context, self._secrets)
        kind = _KINDS.get(request.kind)
        if kind is None:
            raise InvalidRequest(f"kind {request.kind} is no fault; use one of: {', '.join(FaultKind)}")
        if kind is FaultKind.SLOW and not (isfinite(request.factor) and request.factor > 0):
            raise InvalidRequest(f"factor {request.factor} must be a number > 0, times as long that a step takes")
        engine = self._engine.engine
        if not isinstance(engine, Faultable):
            raise Unsupported(f"{type(engine).__name__} cannot be broken on purpose; the simulated engine can")
        return pb.InjectFaultResponse(state=engine.inject(Fault(kind, request.factor or 1.0)))
