"""Who caused how much of a step: shares of its time and energy among its sequences, that add up exactly.

In: the timing model's coefficients and what each sequence did. Out: integers. Pure.

A sequence's work is what the step would have been shorter without it: its own terms of the timing model. Reading the
weights is done once for all, so its time is split evenly among those present. The parts of a step are then in
proportion to the work, however long the step really took.
"""

from collections.abc import Sequence
from typing import Final

from services.mesh.timing import Timing

_UNITS: Final = 1 << 40  # of work, among which a total is shared: finer than any clock
_NO_WORK_S: Final = 1e-12  # less than this is nothing: all are alike


def decode_work_s(timing: Timing, kv_tokens: Sequence[int]) -> list[float]:
    """Own seconds of each decoding sequence.

    Args:
        kv_tokens: (n,) tokens of KV cache that each reads.
    """
    own_s, per_token_s = timing.decode_s_per_sequence, timing.decode_s_per_kv_token
    return [own_s + per_token_s * tokens for tokens in kv_tokens]


def prefill_work_s(timing: Timing, tokens: int, attended_tokens: int) -> float:
    """Own seconds of a chunk of prompt: `tokens` computed, which together attend to `attended_tokens`."""
    return timing.prefill_s_per_token * tokens + timing.prefill_s_per_attended_token * attended_tokens


def work_units(timing: Timing, own_s: Sequence[float]) -> list[int]:
    """Work of each sequence of a step in whole units: its own seconds and its even part of reading the weights.

    Args:
        own_s: (n,) each >= 0, from the functions above, n >= 1.
    """
    even_s = timing.decode_base_s / len(own_s)
    whole_s = sum(own_s) + timing.decode_base_s
    if whole_s < _NO_WORK_S:
        return [1] * len(own_s)
    scale = _UNITS / whole_s
    return [int((each + even_s) * scale) for each in own_s]


def share_out(total: int, units: Sequence[int]) -> list[int]:
    """Parts of `total` in proportion to `units`, by largest remainder: they add up to `total` exactly.

    Args:
        total: >= 0.
        units: (n,) each >= 0, at least one > 0.

    Returns:
        (n,) each the exact part rounded down or up; of equal remainders the first is rounded up.
    """
    assert total >= 0, total
    whole = sum(units)
    assert whole > 0, "nobody to share among"
    parts, remainders = [], []
    for each in units:
        part, remainder = divmod(total * each, whole)
        parts.append(part)
        remainders.append(-remainder)
    left = total - sum(parts)
    if left:
        for index in sorted(range(len(parts)), key=remainders.__getitem__)[:left]:
            parts[index] += 1
    return parts
