"""Repairs from the log: requests that do not agree are read again from the streams and made anew, by entries that
correct; what a worker died too early to report is put into the log by the meter, on the deliverer's word; and so is the
end of a request that all who knew it died with.

In: requests, and what the books said of them. Out: corrected books, or why they are left as they are. A request is made
again only when the streams hold everything of it, when all of that is booked or given up, and when nothing of it was
booked while they were read; otherwise what was read might be less than what is in the books.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from services.mesh.bus import Bus, Delivered
from services.mesh.clock import Clock
from services.mesh.ends import undelivered_end
from services.mesh.events import TokenEntry, TokensGenerated
from services.mesh.subjects import Channel
from services.meter.booked import Remade
from services.meter.bookkeeper import Bookkeeper
from services.meter.catch_up import READS
from services.meter.core.amounts import MS_PER_MINUTE
from services.meter.core.conservation import Audited, unreported
from services.meter.core.ledger import keys_of
from services.meter.core.requests import Key, Request
from services.meter.thread import WorkThreads

log = logging.getLogger(__name__)

MOST_AT_ONCE: Final = 256  # requests in one reading of the streams
_SKEW_MINUTES: Final = 10  # clocks of publishers may differ by this much


@dataclass(slots=True)
class _Read:
    """What the streams hold of some requests; `from_minute`: nothing older than this is sure to be there."""

    messages: dict[Key, list[Delivered]] = field(default_factory=dict)
    from_minute: int = 0


class Repairs:
    """Repairs the books of one meter. Lives in the event loop."""

    def __init__(self, bus: Bus, bookkeeper: Bookkeeper, writing: WorkThreads, clock: Clock) -> None:
        self._bus = bus
        self._bookkeeper = bookkeeper
        self._writing = writing
        self._clock = clock

    async def remake(self, requests: Mapping[Key, Audited]) -> dict[Key, Remade]:
        """Makes the requests again from the streams.

        Args:
            requests: at most `MOST_AT_ONCE`, as the books have them.

        Raises:
            BusUnavailable: the streams could not be read to their end.
        """
        read = _Read({key: [] for key in requests})
        for _, channels in READS:
            await self._read(channels, read)
        remade: dict[Key, Remade] = {}
        for key, audited in requests.items():
            if _first_minute(audited) < read.from_minute:
                remade[key] = Remade(postponed="the streams have let go of its first events")
                continue
            messages = read.messages[key]
            remade[key] = await self._writing.run(
                partial(self._bookkeeper.remake, key, messages, audited, self._clock.unix_ms())
            )
            if remade[key].entries:
                log.warning("request %s was made again from %d events", key[0], len(messages))
        return remade

    def testify(self, request: Request) -> int:
        """Puts into the log, as made where the deliverer says, the delivered tokens that no worker reports; how many.

        Raises:
            OutboxFull: later.
        """
        runs = unreported(request)
        if not runs or request.finish is None:
            return 0
        request_id, tenant = request.key
        place = request.finish.place
        self._bus.publish(
            TokensGenerated(
                worker=place.worker,
                pool=place.pool,
                accelerator=place.accelerator,
                entries=tuple(
                    TokenEntry(
                        request_id=request_id,
                        tenant=tenant,
                        workload=request.workload,
                        model=request.model,
                        slo_class=request.slo_class,
                        from_index=start,
                        count=end - start,
                        prompt_tokens=0,
                        cached_prompt_tokens=0,
                        device_ns=0,
                        energy_uj=0,
                        last=True,
                    )
                    for start, end, _ in runs
                ),
                at_unix_ms=request.finish.at_unix_ms,
            )
        )
        return sum(end - start for start, end, _ in runs)

    def end(self, request: Request) -> int:
        """Puts the end of a request into the log that nobody tells; the tokens that are known to be delivered. What
        its workers made beyond these is the house's, until somebody tells more after all.

        Raises:
            OutboxFull: later.
        """
        had_tokens = request.known_delivered_tokens
        router = request.admission.router if request.admission is not None else ""
        end = undelivered_end(request, self._clock.unix_ms(), router=router, had_tokens=had_tokens)
        # Its home, whichever is read first when the books are made again: the end, or what was made.
        home = min(request.segments.values(), key=lambda each: (each.generated.first, each.place)).place
        self._bus.publish(replace(end, worker=home.worker, pool=home.pool, accelerator=home.accelerator))
        return had_tokens

    async def _read(self, channels: Sequence[Channel], read: _Read) -> None:
        first = True

        async def note(messages: Sequence[Delivered]) -> None:
            nonlocal first
            for message in messages:
                if first and message.stream_sequence > 1:
                    oldest_minute = getattr(message.event, "at_unix_ms", 0) // MS_PER_MINUTE + _SKEW_MINUTES
                    read.from_minute = max(read.from_minute, oldest_minute)
                first = False
                for key in keys_of([message.event]) & read.messages.keys():
                    read.messages[key].append(message)

        await self._bus.replay(channels, note)


def _first_minute(audited: Audited) -> int:
    """The first minute that the books know anything of a request from."""
    request = audited.request
    minutes = [minute for dated in audited.entered.values() for minute in dated]
    if request is not None:
        minutes += [minute for each in request.segments.values() for minute in (each.minute, *each.earlier) if minute]
        if request.admission is not None:
            minutes.append(request.admission.at_unix_ms // MS_PER_MINUTE)
        if request.finish is not None:
            minutes.append(request.finish.admitted_unix_ms // MS_PER_MINUTE)
    return min(minutes, default=0)
