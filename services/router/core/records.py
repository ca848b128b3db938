"""Why recent requests went where they went: what `Router.Explain` answers from. Bounded, the oldest out first."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from services.mesh.answer_lengths import Lengths
from services.router.core.request import Asked
from services.router.core.shortlist import Shortlist

RUNNING = "running"
_TO_THE_END = frozenset({"stop", "length", "budget"})


@dataclass(slots=True)
class DecisionRecord:
    """The placement of one request; the latest, where it broke off and its client asked again.

    Attributes:
        plan: `model:version` in force; empty when none had arrived.
        decision_us: how long the decision took.
        lengths: of answers like its, when it was placed.
        waited_s: at the router, for capacity.
        outcome: "running", then why the stream ended.
        delivered: tokens that reached the client, as far as is known.
        asks: how often its client asked for it.
    """

    asked: Asked
    prompt_tokens: int
    completion_tokens: int
    picked_worker: str
    plan: str
    plan_age_s: float
    shortlist: Shortlist
    trace_id: str
    decided_unix_ms: int
    decision_us: float
    lengths: Lengths | None = None
    waited_s: float = 0.0
    outcome: str = RUNNING
    delivered: int = 0
    asks: int = 1


class DecisionRecords:
    """The latest `capacity` records by request id."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._records: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._answered: deque[str] = deque(maxlen=capacity)  # here, and the other routers don't know yet
        self._elsewhere: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: DecisionRecord) -> None:
        earlier = self._records.pop(record.asked.request_id, None)
        if earlier is not None and earlier.asked.tenant == record.asked.tenant:
            record.asks, record.delivered = earlier.asks + 1, earlier.delivered
        self._records[record.asked.request_id] = record
        while len(self._records) > self._capacity:
            self._records.popitem(last=False)

    def of(self, request_id: str, tenant: str) -> DecisionRecord | None:
        """The tenant's record of a request; None for another tenant's, as if there were none."""
        record = self._records.get(request_id)
        return record if record is not None and record.asked.tenant == tenant else None

    def ended(self, record: DecisionRecord) -> None:
        """The record's request has ended: `outcome` and `delivered` are set."""
        if record.outcome in _TO_THE_END and record.delivered:
            self._answered.append(record.asked.request_id)

    def take_answered(self, most: int) -> tuple[str, ...]:
        """Requests that were answered here to their end and not taken yet, the earliest first."""
        return tuple(self._answered.popleft() for _ in range(min(most, len(self._answered))))

    def answered_elsewhere(self, request_ids: Iterable[str]) -> None:
        """Another router has answered these to their end."""
        self._elsewhere.update(dict.fromkeys(request_ids))
        while len(self._elsewhere) > self._capacity:
            self._elsewhere.popitem(last=False)

    def was_answered(self, request_id: str) -> bool:
        """The request ended after tokens of it had reached its client; at another router, with all of them."""
        if request_id in self._elsewhere:
            return True
        record = self._records.get(request_id)
        return record is not None and record.outcome != RUNNING and record.delivered > 0
