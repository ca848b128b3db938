"""Time as an argument: a service gets a Clock at its wiring place; a core gets plain seconds from its caller."""

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic_s(self) -> float:
        """Seconds from an arbitrary start; never goes back."""
        ...

    def unix_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00Z; may jump."""
        ...


class SystemClock:
    def monotonic_s(self) -> float:
        return time.monotonic()

    def unix_ms(self) -> int:
        return time.time_ns() // 1_000_000


class FakeClock:
    """Moves only when told to; starts at second 0 of monotonic time and at `unix_ms`."""

    def __init__(self, unix_ms: int = 1_700_000_000_000) -> None:
        self._started_unix_ms = unix_ms
        self._now_s = 0.0

    def monotonic_s(self) -> float:
        return self._now_s

    def unix_ms(self) -> int:
        return self._started_unix_ms + int(self._now_s * 1000)

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, f"time does not go back: {seconds}"
        self._now_s += seconds
