"""What the last `window_s` seconds held: how many events of each kind, their latest trace contexts, and what was
really used.

In: events with the second they arrived at. Out: the evidence that a plan names, and the realised device-seconds, tokens
and dollars per second that its prediction is held against.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from services.mesh.events import TokensGenerated
from services.optimizer.core.rates import DecayedRate

TRACEPARENTS: Final = 16
_SLOTS: Final = 60


class CountWindow:
    """Counts over the last `window_s` seconds, exact to a sixtieth of it."""

    def __init__(self, window_s: float) -> None:
        self._slot_s = window_s / _SLOTS
        self._slots: deque[tuple[int, int]] = deque()  # slot number, count; oldest first
        self._total = 0

    def add(self, now_s: float, count: int = 1) -> None:
        slot = int(now_s // self._slot_s)
        self._total += count
        if self._slots and self._slots[-1][0] >= slot:
            last, before = self._slots.pop()
            self._slots.append((last, before + count))
        else:
            self._slots.append((slot, count))
        self._expire(slot)

    def total(self, now_s: float) -> int:
        self._expire(int(now_s // self._slot_s))
        return self._total

    def _expire(self, slot: int) -> None:
        while self._slots and self._slots[0][0] <= slot - _SLOTS:
            self._total -= self._slots.popleft()[1]


@dataclass(frozen=True, slots=True)
class Realised:
    """What a model's tokens really took, per second, exponentially weighted over the window."""

    tokens_per_s: float
    usd_per_hour: float


class ModelWindow:
    """The window of one model."""

    def __init__(self, window_s: float, started_s: float) -> None:
        self._window_s = window_s
        self.latency_events = CountWindow(window_s)
        self.token_events = CountWindow(window_s)
        self.request_events = CountWindow(window_s)
        self._traceparents: deque[tuple[float, str]] = deque(maxlen=TRACEPARENTS)
        self._tokens = DecayedRate(window_s, started_s)
        self._usd = DecayedRate(window_s, started_s)

    def traced(self, traceparent: str, now_s: float) -> None:
        """Notes the context of a latency event; an empty one is none."""
        if traceparent:
            self._traceparents.append((now_s, traceparent))

    def traceparents(self, now_s: float) -> tuple[str, ...]:
        """Contexts of the latest latency events in the window, newest first; at most `TRACEPARENTS`."""
        return tuple(
            traceparent for at_s, traceparent in reversed(self._traceparents) if now_s - at_s <= self._window_s
        )

    def generated(self, tokens: int, usd: float, now_s: float) -> None:
        """Notes what a worker made, and what its device-seconds and joules cost."""
        self._tokens.add(tokens, now_s)
        self._usd.add(usd, now_s)

    def realised(self, now_s: float) -> Realised:
        return Realised(self._tokens.per_s(now_s), self._usd.per_s(now_s) * 3600)


def sums_by_model(event: TokensGenerated) -> dict[str, tuple[int, float, float]]:
    """(tokens, device-seconds, joules) of one batch, by model; entries with negative figures are left out."""
    sums: dict[str, tuple[int, float, float]] = {}
    for entry in event.entries:
        if min(entry.count, entry.device_ns, entry.energy_uj) < 0:
            continue
        tokens, device_s, energy_j = sums.get(entry.model, (0, 0.0, 0.0))
        sums[entry.model] = (
            tokens + entry.count,
            device_s + entry.device_ns / 1e9,
            energy_j + entry.energy_uj / 1e6,
        )
    return sums
