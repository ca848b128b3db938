"""What a call to a mesh can end in, by the name the mesh gave it.

The mesh answers with a gRPC status whose details carry `google.rpc.ErrorInfo` (the error's name) and, where waiting
helps, `RetryInfo`. `error_of` turns that into one exception with both.
"""

from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS: Final = "grpc-status-details-bin"
_UNNAMED: Final = {
    grpc.StatusCode.UNAVAILABLE: "Unreachable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "RequestTimedOut",
    grpc.StatusCode.CANCELLED: "Cancelled",
    grpc.StatusCode.UNIMPLEMENTED: "Unsupported",
}


class CallError(Exception):
    """A call failed.

    Attributes:
        reason: the error's name, e.g. "UnknownModel"; "Unreachable" when no router answered.
        message: what is wrong, with the value, and what would do.
        retry_after_s: seconds after which the same call may succeed; None where waiting does not help.
        code: the gRPC status.
    """

    def __init__(self, reason: str, message: str, *, code: grpc.StatusCode, retry_after_s: float | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def passing(self) -> bool:
        """True where the same call may succeed later: the mesh is full, or a part of it was away."""
        return self.retry_after_s is not None or self.code is grpc.StatusCode.UNAVAILABLE


class GenerateError(CallError):
    """A stream of tokens failed.

    Attributes:
        request_id, trace_id: of the stream.
        next_index: index of the first token that did not arrive; 0 when none did.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        code: grpc.StatusCode,
        retry_after_s: float | None = None,
        request_id: str = "",
        trace_id: str = "",
        next_index: int = 0,
    ) -> None:
        super().__init__(reason, message, code=code, retry_after_s=retry_after_s)
        self.request_id = request_id
        self.trace_id = trace_id
        self.next_index = next_index


def error_of(failure: grpc.aio.AioRpcError) -> CallError:
    """The name, message and delay in a failed call's status; a name for the status itself when the mesh gave none."""
    code = failure.code()
    reason, retry_after_s = details_of(failure)
    reason = reason or _UNNAMED.get(code, code.name)
    return CallError(reason, failure.details() or code.name, code=code, retry_after_s=retry_after_s)


def details_of(failure: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """What the status's details say: the error's name, empty when there is none, and the seconds to wait."""
    reason, retry_after_s = "", None
    metadata: Any = failure.trailing_metadata() or ()  # pairs at run time, whatever the stubs say
    for key, value in metadata:
        if key != _DETAILS:
            continue
        status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return reason, retry_after_s
