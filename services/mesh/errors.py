"""Every error a caller can meet, split by whose fault it is.

    TokenworksError
    ├── CallerError        the request is wrong; sending it again changes nothing
    │   ├── InvalidRequest        InvalidSampling   PromptTooLong   MessageTooLarge
    │   ├── UnknownModel          UnknownSloClass   UnknownRequest  UnknownTenant
    │   ├── Unauthenticated       PlacementRefused
    │   ├── CreditExhausted       DuplicateRequest  ResumeRefused   RunawayStopped  RateLimited
    │   └── Unsupported           ClientTooSlow     DeadlinePassed
    ├── CapacityError      the mesh is full; `retry_after_s` says when to come back
    │   ├── QueueFull             OutboxFull        NoWorker
    │   └── NoWorkerAllowed       DeadlineUnreachable
    ├── PeerError          another process failed us
    │   ├── WorkerLost            EngineFailed      BusUnavailable
    │   └── RequestTimedOut       StreamMoved
    └── OurError           a defect: file it
        └── InvariantBroken

Each has a gRPC status, an HTTP status and an OpenAI error type in one table (`FACES`). `SettingInvalid` stops a process
at its start and never crosses the wire.
"""

from dataclasses import dataclass
from typing import ClassVar, Final


class TokenworksError(Exception):
    """The root. `str(error)` names the thing, the value, and what would do.

    Attributes:
        retry_after_s: seconds after which the same request may succeed; None where waiting does not help.
    """

    retry_after_s: float | None = None

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The name that `google.rpc.ErrorInfo.reason` carries."""
        return type(self).__name__


class CallerError(TokenworksError):
    pass


class InvalidRequest(CallerError):
    pass


class InvalidSampling(InvalidRequest):
    pass


class PromptTooLong(InvalidRequest):
    pass


class MessageTooLarge(InvalidRequest):
    pass


class UnknownModel(CallerError):
    pass


class UnknownSloClass(CallerError):
    pass


class UnknownRequest(CallerError):
    pass


class UnknownTenant(CallerError):
    pass


class Unauthenticated(CallerError):
    pass


class PlacementRefused(CallerError):
    pass


class CreditExhausted(CallerError):
    pass


class RateLimited(CallerError):
    pass


class DuplicateRequest(CallerError):
    pass


class ResumeRefused(CallerError):
    pass


class RunawayStopped(CallerError):
    pass


class Unsupported(CallerError):
    pass


class DeadlinePassed(CallerError):
    pass


class ClientTooSlow(CallerError):
    pass


class CapacityError(TokenworksError):
    retry_after_s = 1.0


class QueueFull(CapacityError):
    pass


class OutboxFull(CapacityError):
    pass


class NoWorker(CapacityError):
    pass


class NoWorkerAllowed(CapacityError):
    retry_after_s = 30.0


class DeadlineUnreachable(CapacityError):
    pass


class PeerError(TokenworksError):
    pass


class WorkerLost(PeerError):
    retry_after_s = 0.5


class EngineFailed(PeerError):
    retry_after_s = 1.0


class BusUnavailable(PeerError):
    retry_after_s = 1.0


class RequestTimedOut(PeerError):
    pass


class StreamMoved(PeerError):
    retry_after_s = 0.1


class OurError(TokenworksError):
    pass


class InvariantBroken(OurError):
    pass


class SettingInvalid(Exception):
    """A setting stops the process: the message names the setting, the value, and what would do."""


@dataclass(frozen=True, slots=True)
class Face:
    """How an error looks from outside.

    Attributes:
        grpc: name of a member of `grpc.StatusCode`.
        http: status.
        openai: OpenAI's error `type`.
    """

    grpc: str
    http: int
    openai: str


FACES: Final[dict[type[TokenworksError], Face]] = {
    TokenworksError: Face("UNKNOWN", 500, "server_error"),
    CallerError: Face("INVALID_ARGUMENT", 400, "invalid_request_error"),
    MessageTooLarge: Face("RESOURCE_EXHAUSTED", 413, "invalid_request_error"),
    UnknownModel: Face("NOT_FOUND", 404, "invalid_request_error"),
    UnknownRequest: Face("NOT_FOUND", 404, "invalid_request_error"),
    UnknownTenant: Face("NOT_FOUND", 404, "invalid_request_error"),
    Unauthenticated: Face("UNAUTHENTICATED", 401, "authentication_error"),
    PlacementRefused: Face("PERMISSION_DENIED", 403, "permission_error"),
    CreditExhausted: Face("RESOURCE_EXHAUSTED", 402, "insufficient_quota"),
    RunawayStopped: Face("RESOURCE_EXHAUSTED", 429, "rate_limit_error"),
    RateLimited: Face("RESOURCE_EXHAUSTED", 429, "rate_limit_error"),
    DuplicateRequest: Face("ALREADY_EXISTS", 409, "invalid_request_error"),
    ResumeRefused: Face("FAILED_PRECONDITION", 409, "invalid_request_error"),
    Unsupported: Face("UNIMPLEMENTED", 400, "invalid_request_error"),
    DeadlinePassed: Face("DEADLINE_EXCEEDED", 504, "server_error"),
    ClientTooSlow: Face("RESOURCE_EXHAUSTED", 408, "invalid_request_error"),
    CapacityError: Face("UNAVAILABLE", 503, "server_error"),
    QueueFull: Face("RESOURCE_EXHAUSTED", 429, "rate_limit_error"),
    DeadlineUnreachable: Face("RESOURCE_EXHAUSTED", 429, "rate_limit_error"),
    PeerError: Face("UNAVAILABLE", 503, "server_error"),
    EngineFailed: Face("INTERNAL", 502, "server_error"),
    RequestTimedOut: Face("DEADLINE_EXCEEDED", 504, "server_error"),
    OurError: Face("INTERNAL", 500, "server_error"),
}


def face(error: TokenworksError) -> Face:
    """The face of the error's class, or of its nearest ancestor in the table."""
    return next(FACES[cls] for cls in type(error).__mro__ if cls in FACES)


def _descendants(cls: type[TokenworksError]) -> list[type[TokenworksError]]:
    return [found for child in cls.__subclasses__() for found in (child, *_descendants(child))]


class _ByReason:
    """Errors by name, so that one which crossed the wire can be raised again."""

    classes: ClassVar[dict[str, type[TokenworksError]]] = {cls.__name__: cls for cls in _descendants(TokenworksError)}


def from_reason(reason: str, message: str, retry_after_s: float | None = None) -> TokenworksError:
    """The error that was called `reason` on the other side; a `PeerError` when this side does not know the name."""
    return _ByReason.classes.get(reason, PeerError)(message, retry_after_s=retry_after_s)
