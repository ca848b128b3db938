"""Stop strings: an answer ends before the first of them, and never shows the beginning of one that might come. Pure."""

from collections.abc import Sequence


class StopMatcher:
    """Text in as it is made, text out as it may be shown.

    `stopped` is True from the moment a stop string was complete; the text before it has been given out, and nothing
    more is.
    """

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops`: none empty; without one, all text is shown."""
        assert all(stops), stops
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that is safe to show by now; what may begin a stop string is held back."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        ends = [found for stop in self._stops if (found := seen.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return seen[: min(ends)]
        held = max((_overlap(seen, stop) for stop in self._stops), default=0)
        self._held = seen[len(seen) - held :]
        return seen[: len(seen) - held]

    def flush(self) -> str:
        """What was held back, when the answer ends for another reason."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`, short of all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
