"""What a worker was sent lately, fading: prompt tokens by rank of priority, and the device-seconds that it takes.

In: placements with their time. Out: how much of the worker's time prompts occupy that go before others, and how much of
its time is promised in all. A worker to which a second and more of work was sent per second falls behind: the first it
shows is a queue, when it is too late. So what is promised of it raises what its time costs before (`scores`).
"""

from math import exp
from typing import Final

from services.mesh.priorities import RANKS, rank_of, yields

_PROMPTS_FADE_S: Final = 5.0
_WORK_FADES_S: Final = 10.0  # longer: answers take that long, and a plan follows in about that time


class Arrivals:
    """Of one worker; times do not decrease from one call to the next."""

    __slots__ = ("_at_s", "_device_s", "_tokens", "_yielding_s")

    def __init__(self) -> None:
        self._tokens = [0.0] * RANKS
        self._device_s = 0.0
        self._yielding_s = 0.0
        self._at_s = 0.0

    def add(self, priority: int, prompt_tokens: int, device_s: float, now_s: float) -> None:
        """A request came: prompt tokens to compute, and the device-seconds that it takes in all."""
        passed_s = now_s - self._at_s
        if passed_s > 0:
            kept = exp(-passed_s / _PROMPTS_FADE_S)
            self._tokens = [tokens * kept for tokens in self._tokens]
            kept = exp(-passed_s / _WORK_FADES_S)
            self._device_s *= kept
            self._yielding_s *= kept
            self._at_s = now_s
        self._tokens[rank_of(priority)] += prompt_tokens
        self._device_s += device_s
        if yields(priority):
            self._yielding_s += device_s

    def figures(self, now_s: float) -> tuple[float, ...]:
        """Prompt tokens per second that came lately: for each rank those of more urgent ones, then all; the device-
        seconds per second that were promised; and of these those of requests that yield to others."""
        if not self._device_s:
            return _NOTHING
        passed_s = now_s - self._at_s
        kept = exp(-passed_s / _PROMPTS_FADE_S) / _PROMPTS_FADE_S if passed_s > 0 else 1 / _PROMPTS_FADE_S
        first, second, third, last = self._tokens
        first *= kept
        second = first + second * kept
        third = second + third * kept
        left = exp(-passed_s / _WORK_FADES_S) / _WORK_FADES_S if passed_s > 0 else 1 / _WORK_FADES_S
        return 0.0, first, second, third, third + last * kept, self._device_s * left, self._yielding_s * left


_NOTHING: Final = (0.0,) * (RANKS + 3)
