"""Whether an engine hangs: requests run in it, and no step ends, look after look. Pure."""

from typing import Final

LOOKS: Final = 8  # without a step, after which an engine hangs
# As long as routers leave the streams that they relay at a simulated engine that stands still, and how much longer at a
# real one, which may take seconds for one chunk of a prompt on a busy host.
STILL_S: Final = 3.0
REAL_ENGINE_PATIENCE: Final = 5.0


class Stillness:
    """Looks at an engine at even intervals.

    It counts looks, not seconds: where this process itself was held up (stopped, starved of processor time), the clock
    has moved on and the engine could not, but no look was missed.
    """

    def __init__(self) -> None:
        self._steps = -1
        self._still = 0

    def hangs(self, running: int, steps: int) -> bool:
        """Whether this is the `LOOKS`-th look in a row that finds requests running and not one step more.

        Args:
            running: requests in the engine now.
            steps: ended so far.
        """
        if running == 0 or steps != self._steps:
            self._steps, self._still = steps, 0
        else:
            self._still += 1
        return self._still >= LOOKS
