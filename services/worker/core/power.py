"""How hard a step works the accelerator, for the watts it draws. Pure.

Computing draws the accelerator's full power; reading memory draws less, because the arithmetic units wait. The factor
is an assumption, in the middle of what is measured of token generation against prompt processing on data-centre GPUs
(Splitwise, POLCA); it is used where no meter is read, and what rests on it says "catalogue".
"""

from typing import Final

from services.mesh.timing import StepLoad, Timing

MEMORY_BOUND_UTILISATION: Final = 0.6


def utilisation(timing: Timing, load: StepLoad) -> float:
    """Utilisation of a step for `Accelerator.power_w`, 0 to 1; 0 for an empty step."""
    step_s = timing.step_s(load)
    if step_s <= 0.0:
        return 0.0
    computing_s = (
        timing.prefill_s_per_token * load.prefill_tokens + timing.prefill_s_per_attended_token * load.attended_tokens
    )
    return min(1.0, (computing_s + MEMORY_BOUND_UTILISATION * max(0.0, step_s - computing_s)) / step_s)
