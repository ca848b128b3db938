"""What lateness costs at least on one worker, whatever the request: a bound that a pick can go by.

In: how long a prompt waits there and takes, how long a step takes; the most lenient promise of a band of SLO classes.
Out: dollars that no request of the band with a prompt in one of `BUCKETS` costs less there. Worked out when a worker's
figures change, so that a pick among a thousand workers need not work out how late each of them would be.
"""

from math import inf, tanh
from typing import Final

from services.router.core.promises import Leniency

LOGISTIC: Final = 0.851  # half of 1.702, with which a logistic curve follows the normal one within 0.01
SIGMA: Final = 0.25  # relative error of a predicted latency
SIGMA_S: Final = 0.003  # and its absolute part: scheduling, network
LATENESS: Final = 0.1  # of a miss, per promise that an answer is late
BUCKETS: Final = ((1, 1024), (1024, 4096), (4096, 65_536))  # prompt tokens, from and to
_LONGEST: Final = BUCKETS[-1][1]
_QUEUED_USD: Final = 1e-10  # per second: of rows whose bounds are the same, those that queue least come first
_IN_TIME: Final = 0.45  # of a promise: a latency predicted so short is late with a probability below 0.1 %


def bucket_of(prompt_tokens: int) -> int | None:
    """The bucket that holds for a prompt; None where none does."""
    return next((at for at, (_, last) in enumerate(BUCKETS) if prompt_tokens <= last), None)


def late_probability(predicted_s: float, promise_s: float) -> float:
    """Probability, 0 to 1, that a latency predicted with `SIGMA` passes its promise."""
    return 0.5 + 0.5 * tanh(LOGISTIC * (predicted_s - promise_s) / (SIGMA * predicted_s + SIGMA_S))


def least_risk_usd(promise: Leniency, queue_s: float, token_s: float, tpot_s: float) -> list[float]:
    """
    Args:
        queue_s: no request waits less before its prompt is computed.
        token_s: nor takes its prompt less, per token.
        tpot_s: nor has less between two tokens.

    Returns:
        For each of `BUCKETS`, dollars that lateness costs a request of more than one token at least.
    """
    step_part = tpot_s / promise.tpot_s
    least_part = queue_s / promise.ttft_s
    most_part = (queue_s + token_s * _LONGEST) / (promise.ttft_s + promise.ttft_s_per_prompt_token * _LONGEST)
    if step_part < _IN_TIME and least_part < _IN_TIME and most_part < _IN_TIME:  # nearly always
        return [_QUEUED_USD * queue_s] * len(BUCKETS)
    floors = []
    for tokens in BUCKETS:
        # Both the latency and its promise grow with the prompt; between the ends of a bucket the lateness lies between
        # those at its ends.
        part = late = inf
        for prompt in tokens:
            ttft_s = queue_s + token_s * prompt
            promise_s = promise.ttft_s + promise.ttft_s_per_prompt_token * prompt
            part = min(part, ttft_s / promise_s)
            late = min(late, (ttft_s + SIGMA_S / SIGMA) / (promise_s + SIGMA_S / SIGMA))
        if part < _IN_TIME and step_part < _IN_TIME:
            floors.append(_QUEUED_USD * queue_s)
            continue
        kept = 0.5 - 0.5 * tanh(LOGISTIC / SIGMA * (1.0 - 1.0 / late))
        kept *= 1.0 - late_probability(tpot_s, promise.tpot_s)
        over = max(part, 1.0) - 1.0 + max(step_part, 1.0) - 1.0
        floors.append(promise.miss_usd * (1.0 - kept + LATENESS * over))
    return floors
