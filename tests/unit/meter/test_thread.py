import asyncio
import threading

import pytest

from services.mesh.errors import QueueFull
from services.meter.thread import WorkThreads


async def test_jobs_of_one_thread_run_in_order_and_their_number_is_bounded() -> None:
    threads, gate, ran = WorkThreads("test", threads=1, max_waiting=1), threading.Event(), list[int]()
    first = asyncio.create_task(threads.run(lambda: (gate.wait(10), ran.append(1))))
    second = asyncio.create_task(threads.run(lambda: ran.append(2)))
    await asyncio.sleep(0)  # lets both tasks hand in their jobs
    with pytest.raises(QueueFull, match="test thread"):
        await threads.run(lambda: ran.append(3))
    gate.set()
    await asyncio.gather(first, second)
    await threads.run(lambda: ran.append(4))
    assert ran == [1, 2, 4]
    await threads.stop()


async def test_a_job_whose_caller_was_cancelled_is_finished() -> None:
    threads, started, gate, ran = WorkThreads("test", 1, 1), threading.Event(), threading.Event(), list[int]()

    def job() -> None:
        started.set()
        gate.wait(10)
        ran.append(1)

    caller = asyncio.create_task(threads.run(job))
    await asyncio.to_thread(started.wait, 10)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    await threads.stop()
    assert ran == [1]


async def test_the_error_of_a_job_reaches_its_caller() -> None:
    threads = WorkThreads("test", 1, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    await threads.stop()
