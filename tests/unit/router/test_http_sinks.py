"""What goes out to many HTTP clients goes out together, in order, and never later than it may."""

import asyncio

from services.router.http_sinks import Burst


class Pipe(asyncio.Transport):
    """Notes what is written, and in which order among all pipes."""

    def __init__(self, written: "list[tuple[Pipe, bytes]]") -> None:
        super().__init__()
        self._written = written
        self.wrote = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._written.append((self, bytes(data)))
        self.wrote.set()


async def test_what_comes_in_one_turn_is_written_at_its_end_one_write_for_each_client() -> None:
    written: list[tuple[Pipe, bytes]] = []
    first, second, burst = Pipe(written), Pipe(written), Burst()
    for data in (b"a", b"b"):
        burst.write(first, data)
        burst.write(second, data.upper())
    assert written == []
    await asyncio.sleep(0)
    assert written == [(first, b"ab"), (second, b"AB")]


async def test_what_is_gathered_longer_goes_out_at_once_when_somebody_writes_past_it() -> None:
    written: list[tuple[Pipe, bytes]] = []
    pipe, burst = Pipe(written), Burst(gather_s=60.0)
    burst.write(pipe, b"a")
    await asyncio.sleep(0)
    burst.write(pipe, b"b")
    assert written == []
    burst.flush()
    pipe.write(b"end")
    assert written == [(pipe, b"ab"), (pipe, b"end")]


async def test_a_gathering_ends_by_itself() -> None:
    written: list[tuple[Pipe, bytes]] = []
    pipe, burst = Pipe(written), Burst(gather_s=0.001)
    burst.write(pipe, b"a")
    async with asyncio.timeout(10.0):
        await pipe.wrote.wait()
    burst.flush()
    assert written == [(pipe, b"a")]


async def test_one_clients_end_writes_what_waits_for_it_and_leaves_the_others_together() -> None:
    written: list[tuple[Pipe, bytes]] = []
    ending, other, burst = Pipe(written), Pipe(written), Burst(gather_s=60.0)
    for data in (b"a", b"b"):
        burst.write(ending, data)
        burst.write(other, data)
    burst.write_out(ending)
    burst.write_out(ending)
    assert written == [(ending, b"ab")]
    burst.flush()
    assert written == [(ending, b"ab"), (other, b"ab")]
