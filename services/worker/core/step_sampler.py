"""Which engine steps are told of: enough to refit a timing model from, few enough to cost nothing. Pure.

Steps that compute prompt and steps that only decode teach different coefficients, so each kind has its own turn: at
most one of each per `_INTERVAL_S`, 20 samples a second together.
"""

from typing import Final

from services.mesh.timing import StepLoad

_INTERVAL_S: Final = 0.1


class StepSampler:
    """The samples of one model on one worker."""

    def __init__(self) -> None:
        self._due_s = {True: 0.0, False: 0.0}

    def wants(self, load: StepLoad, now_s: float) -> bool:
        """Whether to tell of a step that ended at `now_s` (seconds, never going back); if so, it counts as told."""
        kind = load.prefill_tokens > 0
        if now_s < self._due_s[kind]:
            return False
        self._due_s[kind] = now_s + _INTERVAL_S
        return True
