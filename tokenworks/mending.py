"""What to do when a call for tokens failed. Pure.

A worker's failure is mended by placing what is missing of the answer elsewhere; a router's by asking another one. What
the caller got wrong is not mended; and what only waiting can mend is waited for.
"""

from enum import Enum, auto
from typing import Final

import grpc

from tokenworks.errors import CallError

_CALLERS_FAULT: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
_ELSEWHERE: Final = frozenset({"PromptTooLong", "UnknownModel"})  # one worker's word, not the mesh's
_STILL_RUNS: Final = "DuplicateRequest"  # the call that was left is not known to be over yet
_BROKEN: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN})


class Asked(Enum):
    """Whose call failed."""

    FOR_A_PLACE = auto()  # Router.Place
    A_WORKER = auto()  # Worker.Generate, directly
    A_ROUTER = auto()  # Router.Generate, relayed


class Mend(Enum):
    GIVE_UP = auto()
    ELSEWHERE = auto()  # place it again, at another worker
    RELAY = auto()  # go on through the router
    WAIT = auto()  # the same again, after a while or at another router


def mend(failure: CallError, asked: Asked, *, begun: bool) -> Mend:
    """How to go on; `begun`: tokens of the answer have arrived."""
    if asked is Asked.A_WORKER:
        if failure.reason == "PlacementRefused":
            return Mend.RELAY
        if failure.code in _CALLERS_FAULT and failure.reason not in _ELSEWHERE:
            return Mend.GIVE_UP
        return Mend.ELSEWHERE
    if begun and failure.reason == _STILL_RUNS:
        return Mend.WAIT
    if asked is Asked.FOR_A_PLACE:
        if failure.code is grpc.StatusCode.UNIMPLEMENTED:
            return Mend.RELAY
        lost = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        return Mend.WAIT if failure.passing or lost else Mend.GIVE_UP
    if begun:
        return Mend.WAIT if failure.code in _BROKEN else Mend.GIVE_UP
    return Mend.WAIT if failure.passing else Mend.GIVE_UP
