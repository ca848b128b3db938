"""Figures from runs: cost per request and per token by least squares, percentiles, and the spread of repetitions."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a load: what was asked and delivered, and what it cost.

    Attributes:
        cpu_us: CPU time, user and system, of the process under test, microseconds.
    """

    requests: int
    tokens: int
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds; `cpu = us_per_request * requests + us_per_token * tokens`."""

    us_per_request: float
    us_per_token: float

    def of(self, tokens: int) -> float:
        """Microseconds of a request with so many tokens."""
        return self.us_per_request + self.us_per_token * tokens


def fit_cost(runs: Sequence[Run]) -> Cost:
    """Least squares over runs with different tokens per request; each run is weighted as one request of it.

    Raises:
        ValueError: fewer than two different numbers of tokens per request, or a run without requests.
    """
    if any(run.requests < 1 for run in runs):
        raise ValueError("a run without requests says nothing about their cost")
    per_request = [run.tokens / run.requests for run in runs]
    if len({round(tokens, 6) for tokens in per_request}) < 2:
        raise ValueError(f"runs of {sorted(set(per_request))} tokens per request can't tell requests from tokens")
    design = np.array([(1.0, tokens) for tokens in per_request])
    costs = np.array([run.cpu_us / run.requests for run in runs])
    (request, token), *_ = np.linalg.lstsq(design, costs, rcond=None)
    return Cost(float(request), float(token))


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured several times."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError: no value."""
    if not values:
        raise ValueError("the spread of no value is undefined")
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between the nearest two, as numpy's; None of nothing."""
    return float(np.percentile(np.asarray(values), percent)) if len(values) else None
