"""A vendor's library that blocks holds up nobody."""

import asyncio
import threading

import pytest

from services.worker.hardware.library_thread import LibraryThread


async def test_calls_run_in_order_in_one_thread_and_give_what_they_return_or_raise() -> None:
    thread, seen = LibraryThread("test"), list[str]()

    def call(name: str) -> str:
        seen.append(threading.current_thread().name)
        if name == "bad":
            raise ValueError("it fails")
        return name

    answers = await asyncio.gather(
        *(thread.run(lambda name=name: call(name)) for name in ("a", "bad", "b")),
        return_exceptions=True,
    )
    assert [str(each) for each in answers] == ["a", "it fails", "b"]
    assert set(seen) == {"test"}
    thread.stop()


async def test_a_call_that_never_returns_is_left_to_itself_and_keeps_no_process_from_ending() -> None:
    thread, hanging, go_on = LibraryThread("test"), threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        go_on.wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await thread.run(hang)
    assert hanging.is_set()
    (stuck,) = (each for each in threading.enumerate() if each.name == "test")
    assert stuck.daemon
    thread.stop()
    go_on.set()
    await asyncio.to_thread(stuck.join, 10.0)
    assert not stuck.is_alive()
