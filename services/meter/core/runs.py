"""What a batch's reports say of each request, folded: all that one place made of it within a minute is one `Run`. Pure.

In: reports as they come. Out: runs, in the order of their first entries; the ends of requests among them; entries that
cannot be booked. The ledger takes a run for what its entries say one by one: it adds up the same quantities, and of
what is compared it keeps the greatest.

This loop is what the meter does per entry; everything behind it is per run, so it costs less the more a batch holds.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from services.mesh.entries import facts, funded
from services.mesh.events import MODELLED, Funding, TokenEntry, TokensGenerated
from services.mesh.partitions import ALL, partition_of
from services.meter.core.amounts import MS_PER_MINUTE, Place
from services.meter.core.requests import Key, Segment

# An entry is a worker's report of at most some seconds of one request: beyond these it is a defect of the worker.
_MAX_DEVICE_NS: Final = 86_400 * 10**9
_MAX_ENERGY_UJ: Final = 10**15


class Run:
    """Entries of one request from one place, added up.

    Attributes:
        at_unix_ms: of the first of their reports.
        start, end: the indexes that came last; those before are in `earlier`.
        measured: the energy was measured, and is no model's.
        funding: what the entries say is held, entry by entry, where they do.
    """

    __slots__ = (
        "_entries",
        "_position",
        "at_unix_ms",
        "cached_prompt_tokens",
        "device_ns",
        "earlier",
        "end",
        "energy_uj",
        "funding",
        "key",
        "last",
        "measured",
        "place",
        "prompt_tokens",
        "start",
    )

    def __init__(self, key: Key, place: Place, event: TokensGenerated, position: int, *, measured: bool) -> None:
        self.key = key
        self.place = place
        self.at_unix_ms = event.at_unix_ms
        self.measured = measured
        self.start = self.end = 0
        self.earlier: list[tuple[int, int]] | None = None
        self.prompt_tokens = self.cached_prompt_tokens = self.device_ns = self.energy_uj = 0
        self.last = False
        self.funding: list[tuple[Funding, ...]] | None = None
        self._entries = event.entries
        self._position = position

    @property
    def minute(self) -> int:
        return self.at_unix_ms // MS_PER_MINUTE

    @property
    def entry(self) -> TokenEntry:
        """The first of its entries, which says whose they are."""
        return self._entries[self._position]

    def jump(self, start: int, end: int) -> None:
        """Goes on elsewhere than where the indexes ended."""
        if self.start < self.end:
            if self.earlier is None:
                self.earlier = []
            self.earlier.append((self.start, self.end))
        self.start, self.end = start, end

    def add_to(self, segment: Segment) -> None:
        """Adds to what is known of the request at this place."""
        for start, end in self.earlier or ():
            segment.generated.add(start, end)
        segment.generated.add(self.start, self.end)
        segment.prompt_tokens = max(segment.prompt_tokens, self.prompt_tokens)
        segment.cached_prompt_tokens = max(segment.cached_prompt_tokens, self.cached_prompt_tokens)
        segment.device_ns += self.device_ns
        segment.energy_uj += self.energy_uj
        if self.measured:
            segment.measured_energy_uj += self.energy_uj
        segment.closed = segment.closed or self.last


class Refusal(NamedTuple):
    """A report that cannot be booked; `who`: the worker or router that made it."""

    who: str
    request_id: str
    reason: str


class End(NamedTuple):
    """A worker's last entry of a request."""

    key: Key
    entries: Sequence[TokenEntry]
    position: int


class Runs:
    """One batch's runs.

    Args:
        funded: whether anybody wants to know what is held for requests.
        partitions: of the tenants that are looked at.
    """

    def __init__(self, *, funded: bool = False, partitions: frozenset[int] = ALL) -> None:
        self._funded = funded
        self._partitions = None if partitions == ALL else partitions
        self._by_report: dict[tuple[Place, bool, int], dict[Key, Run]] = {}
        self.runs: list[Run] = []
        self.ends: list[End] = []
        self.refused: list[Refusal] = []

    def keys(self) -> Iterable[Key]:
        """Their requests, some more than once."""
        return (run.key for run in self.runs)

    def fold(self, event: TokensGenerated) -> int:
        """Takes a report in; the tokens in it, whosesoever."""
        some = self._partitions
        place = Place(event.worker, event.pool, event.accelerator)
        measured = event.energy_source not in ("", MODELLED)
        report = place, measured, event.at_unix_ms // MS_PER_MINUTE
        runs = self._by_report.get(report)
        if runs is None:
            runs = self._by_report[report] = {}
        tokens = position = 0
        for request_id, tenant, start, count, prompt, cached_prompt, device_ns, energy_uj, last in facts(event.entries):
            tokens += count
            position += 1
            if some is not None and partition_of(tenant) not in some:
                continue
            if device_ns > _MAX_DEVICE_NS or energy_uj > _MAX_ENERGY_UJ or not request_id:
                self._refuse(event.worker, request_id, device_ns, energy_uj)
                continue
            key = request_id, tenant
            run = runs.get(key)
            if run is None:
                run = runs[key] = Run(key, place, event, position - 1, measured=measured)
                run.start = run.end = start
                self.runs.append(run)
            if start == run.end:
                run.end = start + count
            elif count:
                run.jump(start, start + count)
            run.device_ns += device_ns
            run.energy_uj += energy_uj
            run.prompt_tokens = max(run.prompt_tokens, prompt)
            run.cached_prompt_tokens = max(run.cached_prompt_tokens, cached_prompt)
            if last:
                run.last = True
                self.ends.append(End(key, event.entries, position - 1))
        if self._funded:
            self._note_funding(event, runs)
        return tokens

    def _note_funding(self, event: TokensGenerated, runs: dict[Key, Run]) -> None:
        for position in funded(event.entries):
            entry = event.entries[position]
            run = runs.get((entry.request_id, entry.tenant))
            if run is not None:
                run.funding = [*(run.funding or ()), entry.funding]

    def _refuse(self, worker: str, request_id: str, device_ns: int, energy_uj: int) -> None:
        if not request_id:
            reason = "no request id"
        elif device_ns > _MAX_DEVICE_NS:
            reason = f"device_ns = {device_ns} is more than a day"
        else:
            reason = f"energy_uj = {energy_uj} is more than {_MAX_ENERGY_UJ}"
        self.refused.append(Refusal(worker, request_id, reason))
