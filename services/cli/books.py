"""The meter's side of a run of traffic: what it booked between two moments, for the run's own workloads.

In: the meter, asked before and after. Out: `Books`. After the run it is asked again until it has booked all that the
clients received, or the deadline passes: booking follows delivery by a moment.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection
from typing import Final

from services.cli.peers import Peers
from services.cli.report import Booked, Books
from tokenworks.v1 import metering_pb2 as metering

_POLL_S: Final = 0.1
_GROUPS: Final = (("accelerator",), ("tenant", "workload"), ("slo_class",))
_Rows = dict[tuple[str, ...], Booked]


class Bookkeeper:
    """Usage since `begin`, by (workload, and what the report groups by)."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._before: dict[tuple[str, ...], _Rows] = {}

    async def begin(self) -> None:
        """Remembers what was booked before the run. Raises CallError: the meter does not answer."""
        for fields in ((), *_GROUPS):
            self._before[fields], _ = await self._ask(fields, ())

    async def settle(
        self, workloads: Collection[str], completion_tokens: int, finished: int, deadline_s: float
    ) -> Books:
        """What the run came to.

        Args:
            workloads: of the run; others' usage is left out.
            completion_tokens, finished: what the clients received; the meter is waited for until it has as much.
            deadline_s: >= 0; afterwards the books are given as they stand.
        """
        started_s = time.monotonic()
        while True:
            rows, lag_events = await self._since((), workloads)
            total = rows.get((), Booked())
            # The deliverer's witness may be booked before the maker's: both are waited for.
            both = total.finished_requests >= finished and total.generated_tokens >= total.delivered_tokens
            level = lag_events == 0 and both
            waited_s = time.monotonic() - started_s
            if (level and total.delivered_tokens == completion_tokens) or waited_s >= deadline_s:
                break
            await asyncio.sleep(_POLL_S)
        groups = [(await self._since(fields, workloads))[0] for fields in _GROUPS]
        by_accelerator, by_tenant_workload, by_slo_class = groups
        return Books(
            total=total,
            by_accelerator={accelerator: row for (accelerator,), row in by_accelerator.items()},
            by_tenant_workload={(tenant, workload): row for (tenant, workload), row in by_tenant_workload.items()},
            by_slo_class={slo_class: row for (slo_class,), row in by_slo_class.items()},
            lag_events=lag_events,
            waited_s=waited_s,
        )

    async def _since(self, fields: tuple[str, ...], workloads: Collection[str]) -> tuple[_Rows, int]:
        now, lag_events = await self._ask(fields, workloads)
        before = self._before[fields]
        merged: dict[tuple[str, ...], Booked] = defaultdict(Booked)
        for key, row in now.items():
            merged[key[1:]] += row - before.get(key, Booked())
        return dict(merged), lag_events

    async def _ask(self, fields: tuple[str, ...], workloads: Collection[str]) -> tuple[_Rows, int]:
        """Rows by (workload, *fields), and how many events the meter has not booked yet."""
        filters = [metering.UsageFilter(field="workload", values=sorted(workloads))] if workloads else []
        group_by = list(dict.fromkeys(("workload", *fields)))
        answer = await self._peers.usage(metering.GetUsageRequest(group_by=group_by, filters=filters))
        rows = {(row.key.workload, *(getattr(row.key, field) for field in fields)): booked(row) for row in answer.rows}
        return rows, answer.lag_events


def booked(row: metering.UsageRow) -> Booked:
    return Booked(**{name: getattr(row, name) for name in Booked.__slots__})
