"""Requests that wait at the router for capacity: bounded queues by tenant and class, and whose turn it is. Pure.

In: requests that can't go yet, and those that went. Out: whose turn it is, who is turned away, and how long one that
comes now would wait.

The next one is of the tenant with the lowest counter (`fairness`); within a tenant by SLO class, then by whose promise
ends first. Where the first one can't go, others are looked at: what
is too long or too urgent for the room there is must not keep it empty. When a bound is passed, whoever comes takes the
place of the last one of the tenant that has most waiting by its weight.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import exp
from typing import Final, Generic, TypeVar

from services.router.core.fairness import Fairness
from services.router.core.request import Promise

T = TypeVar("T")

_RATE_FADES_S: Final = 2.0
_WANTED_S: Final = 0.1  # of longer, too little would be left for those who can wait
_IDLE_AFTER_S: Final = 60.0
_TOLD_AFTER_S: Final = 0.5
_REFUSED_LATELY_S: Final = 2.0
_LEAST_RPS: Final = 0.1  # requests go too seldom to expect anything

_Key = tuple[float, int, float, int]


@dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """One request that waits.

    Attributes:
        since_s, until_s: when it came, and when waiting has no use any more.
        patient: it is of a class that can wait.
        item: the caller's.
        number: in order of arrival.
    """

    tenant: str
    promise: Promise
    since_s: float
    until_s: float
    patient: bool
    item: T
    number: int = 0
    left: bool = False


class WaitingRoom(Generic[T]):
    """The requests for one model.

    Args:
        capacity: the most that wait, >= 1.
        tenant_capacity: the most of one tenant, >= 1.
    """

    def __init__(self, fairness: Fairness, capacity: int, tenant_capacity: int) -> None:
        self._wanted_s: dict[str, float] = {}  # pools that urgent requests waited for, and when they did last
        self._fairness = fairness
        self._capacity = capacity
        self._tenant_capacity = tenant_capacity
        self._tenants: dict[str, dict[str, list[Waiting[T]]]] = {}  # their queues by class
        self._counts: dict[str, int] = {}
        self._urgent: Counter[str] = Counter()  # of those, who can't wait
        self._count = 0
        self._arrivals = 0
        self._waited_since_s = 0.0  # somebody has
        self._went = 0.0  # requests, fading
        self._went_s = 0.0
        # By tenant and class the least patience refused, and when; the latest last.
        self._refused: dict[tuple[str, str], tuple[float, float]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def urgent(self) -> int:
        """How many wait that can't wait for long."""
        return self._urgent.total()

    def waiting(self) -> Iterator[Waiting[T]]:
        """Everybody, in no order."""
        for queues in self._tenants.values():
            for queue in queues.values():
                yield from queue

    def enter(self, waiting: Waiting[T]) -> Waiting[T] | None:
        """Lets it wait; who is turned away for that, itself perhaps, or None."""
        self._arrivals += 1
        waiting.number = self._arrivals
        tenant = waiting.tenant
        queues = self._tenants.get(tenant)
        if queues is None:
            queues = self._tenants[tenant] = {}
            self._counts[tenant] = 0
            self._fairness.begin(tenant, waiting.since_s)
        insort(queues.setdefault(waiting.promise.name, []), waiting, key=_rank)
        if not self._count:
            self._waited_since_s = waiting.since_s
        self._count += 1
        self._counts[tenant] += 1
        self._urgent[tenant] += not waiting.patient
        if self._counts[tenant] > self._tenant_capacity:
            longest = tenant
        elif self._count > self._capacity:
            longest = max(self._counts, key=lambda each: self._counts[each] / self._fairness.weight(each))
        else:
            return None
        last = max(self._tenants[longest].values(), key=lambda queue: queue[0].promise.priority)[-1]
        self.leave(last)
        return last

    def leave(self, waiting: Waiting[T]) -> None:
        """It waits no more, for whatever reason. Again changes nothing."""
        if waiting.left:
            return
        waiting.left = True
        tenant, name = waiting.tenant, waiting.promise.name
        queues = self._tenants[tenant]
        queue = queues[name]
        queue.remove(waiting)
        if not queue:
            del queues[name]
        self._count -= 1
        self._counts[tenant] -= 1
        self._urgent[tenant] -= not waiting.patient
        if not queues:
            del self._tenants[tenant], self._counts[tenant], self._urgent[tenant]
            self._fairness.cease(tenant)

    def turns(self) -> Iterator[Waiting[T]]:
        """Whose turn it is, one after the other: of each tenant and class the first.

        Where the one that came last has left the room before the next is asked for, the next one of its queue gets a
        turn too, in its order.
        """
        heap = [(self._key(queue[0]), queue) for queues in self._tenants.values() for queue in queues.values()]
        heapify(heap)
        while heap:
            key, queue = heap[0]
            if not queue:
                heappop(heap)
                continue
            current = self._key(queue[0])
            if current != key:  # its tenant was served meanwhile
                heapreplace(heap, (current, queue))
                continue
            first = queue[0]
            yield first
            if queue and queue[0] is not first:
                heapreplace(heap, (self._key(queue[0]), queue))
            else:
                heappop(heap)

    def waits_for(self, pool: str, now_s: float) -> None:
        """An urgent request does."""
        self._wanted_s[pool] = now_s

    def wants(self, pool: str, now_s: float) -> bool:
        """Whether an urgent request waited for the pool lately: of those that wait, not all are looked at each time."""
        return now_s - self._wanted_s.get(pool, float("-inf")) < _WANTED_S

    def idle(self, now_s: float) -> bool:
        """Nobody waits, and nobody went lately."""
        return not self._count and now_s - self._went_s > _IDLE_AFTER_S

    def went(self, now_s: float) -> None:
        """A request for the model was placed, whether it waited or not."""
        self._went = self._went * exp(-max(0.0, now_s - self._went_s) / _RATE_FADES_S) + 1.0
        self._went_s = now_s

    def wait_s(self, tenant: str, promise: Promise, patient: bool, now_s: float) -> float:
        """How long a request that comes now is expected to wait: those ahead of it over the rate at which requests go.

        Ahead are its tenant's own, and as many of the others' as go meanwhile by their weights. 0 where hardly any went
        lately, so that nothing can be expected.
        """
        rate_rps = self._went / _RATE_FADES_S * exp(-max(0.0, now_s - self._went_s) / _RATE_FADES_S)
        # What went while nobody waited says nothing of what can.
        if not self._count or now_s - self._waited_since_s < _TOLD_AFTER_S or rate_rps < _LEAST_RPS:
            return 0.0
        fairness, counts = self._fairness, self._counts if patient else self._urgent
        own = self._tenants.get(tenant, {}).values()
        ahead = sum(len(queue) for queue in own if queue[0].promise.priority <= promise.priority)
        turns = (1 + ahead) / fairness.weight(tenant)
        others = sum(min(count, turns * fairness.weight(name)) for name, count in counts.items() if name != tenant)
        return (1 + ahead + others) / rate_rps

    def refused(self, tenant: str, promise: Promise, patience_s: float, now_s: float) -> None:
        """A request that came was not let in: it would have had to wait for too much of its patience, and nobody less
        patient was refused lately."""
        refused = self._refused
        refused.pop((tenant, promise.name), None)
        refused[tenant, promise.name] = patience_s, now_s
        while now_s - refused[oldest := next(iter(refused))][1] > _REFUSED_LATELY_S or len(refused) > self._capacity:
            del refused[oldest]

    def least_refused_s(self, tenant: str, promise: Promise, patience_s: float, now_s: float) -> float:
        """`patience_s`, or where that is less, that of the least patient of its tenant and class that was refused
        lately."""
        least_s, at_s = self._refused.get((tenant, promise.name), (patience_s, now_s))
        return min(patience_s, least_s) if now_s - at_s <= _REFUSED_LATELY_S else patience_s

    def _key(self, head: Waiting[T]) -> _Key:
        counter = self._fairness.counter(head.tenant)
        return counter, head.promise.priority, head.until_s, head.number


def _rank(waiting: Waiting[T]) -> tuple[float, int]:
    return waiting.until_s, waiting.number
