"""What `tokenworks doctor` says of the books: whether what was generated, delivered and billed agrees.

In: the running meter's audit. Out: `Check`s: one for the books as a whole, and one for each thing that does not agree
and was not repaired. What follows from a process that died is a note: it is told, and there is nothing to put right.
"""

from datetime import UTC, datetime
from typing import Final

from services.cli.access import Access
from services.cli.checks import Check, Severity
from services.cli.peers import Peers
from tokenworks.errors import CallError
from tokenworks.v1 import metering_pb2 as metering

_EXPLAINED: Final = frozenset({"unreported", "unfinished", "worker"})  # by a process that died
_MOST_SHOWN: Final = 20


async def check_books(access: Access) -> list[Check]:
    """Asks the meter; nothing when none runs, which another check says."""
    try:
        async with Peers(access) as peers:
            audit = await peers.audit()
    except CallError as error:
        if error.reason == "Unreachable":
            return []
        return [
            Check("books", Severity.WRONG, f"the meter does not say: {error}", "read its log in the data directory")
        ]
    return checks_of(audit)


def checks_of(audit: metering.AuditResponse) -> list[Check]:
    """The audit's answer as checks."""
    if not audit.rounds:
        return [Check("books", Severity.NOTE, "not looked through yet", "ask again in a moment")]
    waste = audit.generated_tokens - audit.delivered_tokens
    said = (
        f"{audit.generated_tokens:,} tokens generated = {audit.delivered_tokens:,} delivered and billed"
        f" + {waste:,} waste; {audit.requests_checked:,} looks at requests in {audit.rounds:,} rounds"
    )
    if audit.repaired:
        last = audit.repaired[-1]
        said += f"; {len(audit.repaired)} repaired, last {last.subject}: {last.what}: {last.done}"
    if audit.lag_events or audit.missing_events:
        said += f"; {audit.lag_events:,} events wait, {audit.missing_events:,} are asked for again"
    checks = [Check("books", Severity.OK, said)]
    if audit.detail_from_unix_ms:
        day = datetime.fromtimestamp(audit.detail_from_unix_ms / 1000, UTC).date()
        checks.append(
            Check(
                "books: detail",
                Severity.OK,
                f"dropped before {day}: {audit.dropped_requests:,} requests, {audit.dropped_lines:,} lines of the"
                f" ledger, billed ${audit.dropped_price_nusd / 1e9:,.2f}; every sum has them",
            )
        )
    if audit.months:
        checks.append(
            Check(
                "books: months",
                Severity.OK,
                f"detail is kept apart by {len(audit.months)} months, {audit.months[0]} to {audit.months[-1]}; one that"
                " is over goes as a whole",
            )
        )
    for each in audit.standing[:_MOST_SHOWN]:
        severity = Severity.NOTE if each.kind in _EXPLAINED else Severity.WRONG
        checks.append(Check(f"books: {each.kind}", severity, f"{each.subject}: {each.what}", each.done))
    if (more := len(audit.standing) - _MOST_SHOWN) > 0:
        checks.append(Check("books", Severity.NOTE, f"{more} more like these", "the meter's log has every one"))
    return checks
