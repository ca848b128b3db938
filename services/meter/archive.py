"""Copies the streams of tokens and requests into Parquet files, hour by hour: `meter.raw_events_dir`.

In: the streams themselves, which hold a week; nothing passes by here on its way to the books. Out: files that
`tokenworks rebuild --raw` makes the books from. Each full hour brings one more file of each stream, from where the last
one ends to where the stream is; what was not written, in a crash or while nobody ran, the next one has.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.errors import BusUnavailable
from services.mesh.subjects import Channel
from services.meter.catch_up import READS
from services.meter.core.presence import MS_PER_HOUR
from services.meter.store.raw_events import RawEvents

log = logging.getLogger(__name__)

_BATCH: Final = 2048
_RETRY_S: Final = 60.0


class Archive:
    """Archives until cancelled. Lives in the event loop; writes in a thread of its own."""

    def __init__(self, files: RawEvents, bus: Bus, clock: Clock) -> None:
        self._files = files
        self._bus = bus
        self._clock = clock

    async def run(self) -> None:
        """A pass at each full hour; one that fails is tried again soon."""
        passed = True
        while True:
            left_s = (MS_PER_HOUR - self._clock.unix_ms() % MS_PER_HOUR) / 1000
            await asyncio.sleep(left_s if passed else min(left_s, _RETRY_S))
            passed = await self._passed()

    async def archive(self) -> int:
        """One pass: how many events were written.

        Raises:
            BusUnavailable, OSError: what is not whole is not there, and the next pass has it.
        """
        return sum([await self._archive(channels) for _, channels in READS])

    async def _passed(self) -> bool:
        try:
            await self.archive()
        except BusUnavailable as error:
            log.info("events are archived later: %s", error)
            return False
        except Exception:
            log.exception("events could not be archived; tried again in %g s", _RETRY_S)
            return False
        return True

    async def _archive(self, channels: Sequence[Channel]) -> int:
        stream = channels[0].stream
        assert stream is not None, channels
        last = await asyncio.to_thread(self._files.last, stream)
        ended = time.gmtime(self._clock.unix_ms() / 1000 - 1)  # the hour that is over, at a full one
        writer = await asyncio.to_thread(self._files.open, stream, last, time.strftime("%Y-%m-%dT%H", ended))
        first = True

        async def write(messages: Sequence[Delivered]) -> None:
            nonlocal first
            if first and last and messages[0].stream_sequence > last + 1:
                lost = messages[0].stream_sequence - last - 1
                log.error("%d messages of %s are in no file: the stream has let go of them already", lost, stream)
            first = False
            await asyncio.to_thread(writer.write, messages)

        try:
            count = await self._bus.replay(channels, write, batch=_BATCH, after_sequence=last)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.drop))
            raise
        path = await asyncio.to_thread(writer.close)
        if path is not None:
            log.info("%d events of %s are in %s", count, stream, path)
        return count
