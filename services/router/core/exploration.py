"""Trying what nothing is known of lately: a bounded part of the requests goes to workers that would not be picked.

A worker that gets no requests tells nothing: its timing stays a guess, and whether it has recovered stays unknown. So
one that had none of ours for `STALE_AFTER_S` may get one that it is expected to serve at no great loss. What that costs
is bounded twice: by the loss expected of each request, and by a budget that grows by `share` with every request.
"""

from typing import Final

STALE_AFTER_S: Final = 30.0
_LOOK_EVERY: Final = 8  # requests of those that may explore: looking costs as much as half a decision
MOST_LOSS: Final = 0.5  # of what a miss of the request's promise costs


class Exploration:
    """The budget, in requests.

    Args:
        share: of all requests that may explore, 0 to 1.
        burst: >= 0; the most that is saved up, and what a router starts with.
    """

    def __init__(self, share: float = 0.02, burst: float = 8.0) -> None:
        self._share = share
        self._burst = burst
        self._budget = burst
        self._passed = 0

    def due(self) -> bool:
        """Whether the next request is to look for where to explore: within the budget; at first, and now and then."""
        if self._budget < 1.0:
            return False
        self._passed += 1
        return self._passed % _LOOK_EVERY == 0 or self._passed < self._burst

    def placed(self, explored: bool) -> None:
        """Notes a request that went to a worker, and whether that was to explore."""
        self._budget = min(self._burst, self._budget + self._share) - (1.0 if explored else 0.0)
