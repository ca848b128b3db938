"""What ended an engine core, in words; that it ends with its worker is shown with a real one in tests/engines."""

import multiprocessing
import os
import signal

import pytest

from services.worker.engine_child import WORKER_VARIABLE, cause_of_death, end_with_worker


def _exit(status: int) -> None:
    os._exit(status)


def _killed(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("end", "with_", "says"),
    [
        (_killed, signal.SIGKILL, "SIGKILL (out of memory?)"),
        (_killed, signal.SIGTERM, "SIGTERM"),
        (_exit, 3, "status 3"),
    ],
    ids=["killed", "ended", "exited"],
)
def test_cause_of_death_names_the_signal_or_the_status(end: object, with_: int, says: str) -> None:
    core = multiprocessing.get_context("spawn").Process(target=end, args=(int(with_),))  # type: ignore[arg-type]
    core.start()
    core.join(30)
    assert says in cause_of_death([core])
    core.close()


def test_process_that_nobody_spawned_watches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKER_VARIABLE, str(os.getpid()))
    end_with_worker()
