"""A line of the ledger with what its request is told by, as it leaves the books; and the same as a CloudEvent. Pure.

Source: CloudEvents 1.0.2, https://github.com/cloudevents/spec, "JSON Event Format".
"""

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from services.mesh.money import NUSD_PER_USD
from services.meter.core.amounts import Amounts
from services.meter.core.usage import UsageKey

EVENT_TYPE: Final = "tokenworks.usage.booked"
SOURCE: Final = "/tokenworks/meter"
CONTENT_TYPE: Final = "application/cloudevents+json"
BATCH_CONTENT_TYPE: Final = "application/cloudevents-batch+json"


class BookedLine(NamedTuple):
    """A line of the ledger; `line` grows with each."""

    line: int
    booked_unix_ms: int
    request_id: str
    key: UsageKey
    amounts: Amounts

    @property
    def billed(self) -> bool:
        """Whether it has anything that a tenant is billed for, or is given back."""
        amounts = self.amounts
        return bool(amounts.prompt_tokens or amounts.delivered_tokens or amounts.price_nusd or amounts.requests)


def event_id(books: str, line: int) -> str:
    """The id of a line's event, the same whenever it is told of; `books` names the set of books."""
    return f"{books}:{line}"


def cloud_event(books: str, booked: BookedLine) -> dict[str, Any]:
    """A line as a CloudEvent, for the JSON format; of a correction the numbers are negative."""
    key, amounts = booked.key, booked.amounts
    return {
        "specversion": "1.0",
        "id": event_id(books, booked.line),
        "source": SOURCE,
        "type": EVENT_TYPE,
        "subject": key.tenant,
        "time": datetime.fromtimestamp(key.minute * 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "datacontenttype": "application/json",
        "data": {
            "request_id": booked.request_id,
            "tenant": key.tenant,
            "workload": key.workload,
            "model": key.model,
            "slo_class": key.slo_class,
            "accelerator": key.accelerator,
            "worker": key.worker,
            "pool": key.pool,
            "input_tokens": amounts.prompt_tokens - amounts.cached_prompt_tokens,
            "cached_input_tokens": amounts.cached_prompt_tokens,
            "output_tokens": amounts.delivered_tokens,
            "total_tokens": amounts.prompt_tokens + amounts.delivered_tokens,
            "price_nusd": amounts.price_nusd,
            "price_usd": _usd(amounts.price_nusd),
            "requests": amounts.requests,
        },
    }


def _usd(nusd: int) -> str:
    """Dollars with nine decimals, like 0.000005375."""
    whole, rest = divmod(abs(nusd), NUSD_PER_USD)
    return f"{'-' if nusd < 0 else ''}{whole}.{rest:09d}"
