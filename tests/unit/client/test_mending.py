"""What is done about a call that failed."""

import grpc
import pytest

from tokenworks.errors import CallError
from tokenworks.mending import Asked, Mend, mend

STILL_RUNS = CallError("DuplicateRequest", "goes on in another call", code=grpc.StatusCode.ALREADY_EXISTS)


@pytest.mark.parametrize("asked", [Asked.A_ROUTER, Asked.FOR_A_PLACE])
def test_whoever_goes_on_waits_until_the_call_that_it_left_is_over(asked: Asked) -> None:
    assert mend(STILL_RUNS, asked, begun=True) is Mend.WAIT
    assert mend(STILL_RUNS, asked, begun=False) is Mend.GIVE_UP
