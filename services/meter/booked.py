"""What the bookkeeper answers: what became of a batch, of a request made again, of one priced again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.mesh.bus import Delivered
from services.mesh.events import BudgetReached, RequestFinished
from services.mesh.sequences import Ranges
from services.mesh.subjects import FINISHED, TOKENS, Channel
from services.meter.core.amounts import Amounts
from services.meter.core.ledger import Entry
from services.meter.core.marks import Source
from services.meter.core.requests import Key, Request
from services.meter.core.runs import End, Refusal
from services.meter.core.usage import UsageKey


@dataclass(frozen=True, slots=True)
class Noted:
    """What the marks say: numbers that each publisher's events lack, tokens in its booked events, highest numbers."""

    gaps: Mapping[Source, Ranges]
    tokens: Mapping[Source, int]
    high_water: Mapping[Source, int]


@dataclass(frozen=True, slots=True)
class Overdue:
    """Credit that may come back: dead holders, and whether there are requests to look at."""

    dead: Sequence[str]
    requests: bool


@dataclass(frozen=True, slots=True)
class Remade:
    """What became of a request that was to be made again from its events.

    Attributes:
        entries: lines that were added to the ledger.
        spent_nusd: what its tenant has spent in all by now.
        postponed: why it was left as it is; empty where it was not.
        again: that may be different the next time.
    """

    entries: Sequence[Entry] = ()
    spent_nusd: int = 0
    postponed: str = ""
    again: bool = False


@dataclass(frozen=True, slots=True)
class Rerated:
    """The lines that new prices made of some requests, and what they come to, nano-dollars by tenant."""

    entries: Sequence[Entry]
    spent: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Settled:
    """One request's last message on a channel was booked.

    Attributes:
        traceparent: the context to book it under.
        amounts: all that is booked for the request so far.
    """

    channel: Channel
    traceparent: str
    request: Request
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Booked:
    """What became of one batch.

    Attributes:
        fresh: messages that were not booked before.
        spent: nano-dollars billed, by tenant.
        missing: events not seen yet of publishers with gaps.
        lost: missing events given up since the process started.
        refused: reports that could not be booked.
        findings: what had to be assumed, for a reader.
        reached: what is to be told of budgets.
        written_off: ends to be told of requests that are not to be billed.
    """

    entries: Sequence[Entry]
    usage: Mapping[UsageKey, Amounts]
    spent: Mapping[str, int]
    fresh: int
    duplicates: int
    settled: Sequence[Settled]
    missing: Mapping[Source, int]
    lost: int
    refused: Sequence[Refusal]
    findings: Sequence[str]
    reached: Sequence[BudgetReached]
    written_off: Sequence[RequestFinished]


def settled(finished: Sequence[Delivered], ends: Sequence[End], requests: Mapping[Key, Request]) -> Iterator[Settled]:
    """The last messages that were booked and that somebody traces.

    Args:
        finished: messages of `RequestFinished`.
        ends: workers' last entries.
        requests: those that were booked with them.
    """
    for message in finished:
        event = message.event
        assert isinstance(event, RequestFinished)
        request = requests.get((event.request_id, event.tenant))
        if request is not None and message.traceparent:
            yield Settled(FINISHED, message.traceparent, request, request.booked)
    for end in ends:
        request, traceparent = requests.get(end.key), end.entries[end.position].traceparent
        if request is not None and traceparent:
            yield Settled(TOKENS, traceparent, request, request.booked)
