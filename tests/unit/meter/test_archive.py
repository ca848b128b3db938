"""Raw events in Parquet are exactly those of the streams, and the books made from them are the live ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.mesh.bus import Delivered
from services.mesh.clock import SystemClock
from services.mesh.errors import BusUnavailable, InvariantBroken
from services.mesh.events import TokensGenerated
from services.mesh.memory_bus import MemoryBroker, MemoryBus
from services.mesh.price_book import PriceBook
from services.mesh.subjects import ADMITTED, FINISHED, TOKENS
from services.meter.archive import Archive
from services.meter.core.costs import RateCard
from services.meter.rebuild import rebuild
from services.meter.store.compare import differences
from services.meter.store.database import Database
from services.meter.store.raw_events import RawEvents
from tests.unit.meter.facts import admitted, entry, finished, tokens

CARD = RateCard({"nvidia-h100-sxm": 2_690_000_000}, 80_000_000)
STREAMS = (("TW_REQUESTS", (ADMITTED, FINISHED)), ("TW_TOKENS", (TOKENS,)))


class World:
    """Streams in memory, and who publishes to them."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self._workers, self._routers = self.broker.bus("worker", "worker-0"), self.broker.bus("router", "router-0")
        self.files = RawEvents(folder / "raw")
        self.bus = self.broker.bus("meter", "meter-0")
        self.archive = Archive(self.files, self.bus, SystemClock())

    def live(self, request_id: str) -> None:
        for event in (
            admitted(request_id),
            tokens(entry(request_id, 0, 10)),
            tokens(entry(request_id, 10, 5, last=True)),
            finished(request_id, 15),
        ):
            (self._workers if isinstance(event, TokensGenerated) else self._routers).publish(event)

    async def held(self, stream: int) -> list[Delivered]:
        """What a stream holds."""
        found: list[Delivered] = []

        async def note(messages: Sequence[Delivered]) -> None:
            found.extend(messages)

        await self.bus.replay(STREAMS[stream][1], note)
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _comparable(messages: Sequence[Delivered]) -> list[tuple[object, ...]]:
    return [(each.id, each.event, each.subject, each.traceparent, each.stream_sequence) for each in messages]


async def test_files_hold_exactly_what_the_streams_do(world: World) -> None:
    assert await world.archive.archive() == 0
    for number in range(3):
        world.live(f"r-{number}")
        assert await world.archive.archive() == 4
    assert await world.archive.archive() == 0  # nothing new: no file
    for index, (stream, _) in enumerate(STREAMS):
        files = world.files.files(stream)
        assert [(each.first, each.last) for each in files] == [(1, 2), (3, 4), (5, 6)]
        read = [each for some in world.files.read(stream) for each in some]
        assert _comparable(read) == _comparable(await world.held(index))
    assert not list(world.files.folder.glob(".*"))


async def test_a_pass_that_fails_leaves_no_file_and_the_next_has_it_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.live("r-0")
    replay = MemoryBus.replay

    async def breaks(*given: Any, **named: Any) -> int:
        await replay(*given, **named)
        raise BusUnavailable("the connection was lost")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryBus, "replay", breaks)
        with pytest.raises(BusUnavailable):
            await world.archive.archive()
    assert not list(world.files.folder.iterdir())
    assert await world.archive.archive() == 4


async def test_what_a_crash_left_half_written_is_made_anew(world: World) -> None:
    world.live("r-0")
    writer = world.files.open("TW_TOKENS", 0, "2026-11-24T16")
    writer.write(await world.held(1))
    del writer  # never closed: a file without its end, beside
    assert world.files.last("TW_TOKENS") == 0
    assert await world.archive.archive() == 4
    assert world.files.last("TW_TOKENS") == 2


async def test_a_file_that_is_gone_is_noticed(world: World) -> None:
    for number in range(3):
        world.live(f"r-{number}")
        await world.archive.archive()
    world.files.files("TW_TOKENS")[1].path.unlink()
    with pytest.raises(InvariantBroken, match="up to 2 and then from 5"):
        list(world.files.read("TW_TOKENS"))


async def test_books_are_made_from_files_and_what_the_streams_hold_behind_them(world: World, tmp_path: Path) -> None:
    for number in range(2):
        world.live(f"r-{number}")
        await world.archive.archive()
    world.live("r-2")  # in no file yet
    whole, again = (Database(f"sqlite:///{tmp_path}/{name}.db") for name in ("whole", "again"))
    try:
        await rebuild(world.bus, whole, PriceBook(), CARD, SystemClock())
        done = await rebuild(world.bus, again, PriceBook(), CARD, SystemClock(), raw=world.files)
        # Each once: the streams are read from where the files end.
        assert (done.events, done.booked, done.lost) == (12, 12, 0)
        assert differences(whole, again, since_unix_ms=0) == []
    finally:
        whole.close()
        again.close()
