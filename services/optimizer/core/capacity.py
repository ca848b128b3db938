"""What each accelerator can do for each model, learnt from its own steps.

In: `LatencyObserved` with the second it arrived at. Out: per pool and model the `Timing` to plan with, how far recent
predictions were off, and how fast each worker is beside its pool.

The fit. One worker and one model have one `TimingFit`: recursive least squares with forgetting over the six
coefficients of `mesh/timing.py`, started from the catalogue's roofline. A step teaches the terms that made it up: a
decode step (1, sequences, KV tokens); a step with prefill also (1, tokens, attended), or the reading of the weights
where that takes longer than the tokens' arithmetic. Unknowns are factors on a reference timing and residuals are
relative to the prediction, so every feature is a share of the step and lies in 0..1: the system is well conditioned
whatever the device.

    information <- forgetting * information + (1 - forgetting) * prior + weight / noise^2 * x x'
    factors     <- factors + information^-1 x * weight / noise^2 * (step_s / predicted_s - 1)

Putting the prior's information back in for what is forgotten keeps the covariance below the prior's: directions that no
step excites neither wind up nor drift. The prior correlates the factors: a device that is slow in what was seen is
believed slow in what was not, until seen.

Outliers and news. A residual beyond `_OUTLIER` counts with less weight (Huber), so one stalled step moves little. Four
surprising steps in a row on the same side are not an outlier: the device as a whole became slower or faster, and the
reference is scaled by their median at once, keeping the shape that was learnt.

Silence. Work leaves a slow pool, and then nothing shows that it recovered. So what is reported drifts, after some
seconds without a step, to what is usual of the worker; the fit itself stays, and one step of a device that is still
slow brings its figures back.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.mesh.accelerators import Catalogue
from services.mesh.errors import SettingInvalid
from services.mesh.events import LatencyObserved, StepSample
from services.mesh.latest import keep_latest
from services.mesh.timing import StepLoad, Timing

Vector = NDArray[np.float64]

_TERMS: Final = 6  # the order of Timing's fields
_OVERHEAD, _TOKEN, _ATTENDED, _BASE, _SEQUENCE, _KV = range(_TERMS)
_coefficients: Final = attrgetter(*(each.name for each in fields(Timing)))  # `astuple` takes thirty times as long

SHORTEST_STEP_S: Final = 1e-7  # a shorter or a longer one is a broken clock, not a step
LONGEST_STEP_S: Final = 600.0
_MOST_COUNTED: Final = (1 << 30, 1 << 50, 1 << 24, 1 << 40)  # of each count of a load: a step has no more in it
_NOISE: Final = 0.1  # relative standard deviation of a step around the model
_COMMON_SPREAD: Final = 1.0  # prior standard deviation of the device's factor as a whole
_OWN_SPREAD: Final = 0.5  # and of each coefficient beside it
_SMALLEST_FACTOR: Final = 1e-4  # positive, so that logarithms exist and a term can come back
_LARGEST_FACTOR: Final = 1e6
_SMALLEST: Final = 1e-15  # seconds, of a coefficient; far below any device's
_LARGEST: Final = 1e6
_MOST_FITS: Final = 65_536
_MOST_ADOPTED: Final = 4096
_OUTLIER: Final = 0.5  # |relative residual| from which a step counts less
_SURPRISE: Final = math.log(1.6)  # |log(observed / predicted)| that is news when it repeats
_SURPRISES: Final = 4
_KEPT_AFTER_NEWS: Final = 0.25  # part of what was learnt that is still trusted after the device changed
_ERROR_GAIN: Final = 0.05
_LARGEST_ERROR: Final = 10.0
_USUAL_GAIN: Final = 1 / 2000
_USUAL_START: Final = 20
QUIET_S: Final = 5.0  # without a step for this long, the report starts to drift to the usual
_DRIFT_S: Final = 10.0

_PRIOR: Final[Vector] = np.asarray(
    np.linalg.inv(_COMMON_SPREAD**2 * np.ones((_TERMS, _TERMS)) + _OWN_SPREAD**2 * np.identity(_TERMS)), np.float64
)


class TimingFit:
    """The timing of one worker for one model, refitted with each step.

    Attributes:
        observations: steps that were learnt from.
        mean_error: |predicted - observed| / observed of recent steps, before each was learnt from; 0 to 10.
    """

    def __init__(self, start: Timing, forgetting: float) -> None:
        """`forgetting` in (0, 1]: the weight of a step relative to the next one; 1 never forgets."""
        self.observations = 0
        self.mean_error = 0.0
        self._forgetting = forgetting
        self._put_back: Vector = (1 - forgetting) * _PRIOR
        self._reference: Vector = np.clip(np.array(_coefficients(start), dtype=np.float64), 1e-12, _LARGEST)
        self._factors: Vector = np.ones(_TERMS)
        self._information: Vector = _PRIOR.copy()
        self._surprises: list[float] = []
        self._coefficients: Vector = self._reference * self._factors
        self._log_usual: Vector = np.log(self._reference)
        self._observed_s = -math.inf

    def observe(self, load: StepLoad, step_s: float, now_s: float) -> bool:
        """Learns from one step; False when the sample cannot be one (empty, negative, not finite, absurdly long)."""
        if not _plausible(load, step_s):
            return False
        coefficients = self._coefficients
        features = _features(load, coefficients)
        predicted_s = float(features @ coefficients)
        error = min(_LARGEST_ERROR, abs(predicted_s - step_s) / step_s)
        gain = max(_ERROR_GAIN, 1 / (self.observations + 1))
        self.mean_error += gain * (error - self.mean_error)

        change = self._change(math.log(step_s / predicted_s))
        if change is not None:
            self._reference = np.clip(self._reference * change, _SMALLEST, _LARGEST)
            self._information = _PRIOR + _KEPT_AFTER_NEWS * (self._information - _PRIOR)
            predicted_s *= change
        self._learn(features * self._reference / predicted_s, step_s / predicted_s - 1)

        self._coefficients = self._reference * self._factors

        self.observations += 1
        self._observed_s = now_s
        gain = max(_USUAL_GAIN, 1 / (self.observations + _USUAL_START))
        self._log_usual += gain * (np.log(self._coefficients) - self._log_usual)
        return True

    def timing(self, now_s: float) -> Timing:
        """The timing to plan with; all coefficients > 0. After `QUIET_S` without a step it drifts to the usual one."""
        coefficients = self._coefficients
        quiet_s = now_s - self._observed_s - QUIET_S
        if self.observations and quiet_s > 0:
            drift = 1 - math.exp(-quiet_s / _DRIFT_S)
            coefficients = np.exp((1 - drift) * np.log(coefficients) + drift * self._log_usual)
        return Timing(*coefficients.tolist())

    def _learn(self, shares: Vector, residual: float) -> None:
        """One update; `shares` (6,) are each coefficient's part of the prediction per unit of its factor."""
        weight = min(1.0, _OUTLIER / abs(residual)) if residual else 1.0
        weighted = shares * (weight / _NOISE**2)
        self._information = self._forgetting * self._information + self._put_back + weighted[:, np.newaxis] * shares
        step = np.asarray(np.linalg.solve(self._information, weighted), np.float64) * residual
        self._factors = np.minimum(np.maximum(self._factors + step, _SMALLEST_FACTOR), _LARGEST_FACTOR)

    def _change(self, log_ratio: float) -> float | None:
        """The factor by which the device as a whole changed, once enough surprises in a row agree."""
        if abs(log_ratio) < _SURPRISE:
            self._surprises.clear()
            return None
        if self._surprises and (self._surprises[-1] > 0) != (log_ratio > 0):
            self._surprises.clear()
        self._surprises.append(log_ratio)
        if len(self._surprises) < _SURPRISES:
            return None
        middle = sorted(self._surprises)[_SURPRISES // 2]
        self._surprises.clear()
        return math.exp(middle)


def _plausible(load: StepLoad, step_s: float) -> bool:
    counts = (load.prefill_tokens, load.attended_tokens, load.decode_sequences, load.kv_tokens)
    return (
        SHORTEST_STEP_S <= step_s <= LONGEST_STEP_S
        and all(0 <= count <= most for count, most in zip(counts, _MOST_COUNTED, strict=True))
        and load.prefill_tokens + load.decode_sequences > 0
    )


def _features(load: StepLoad, coefficients: Vector) -> Vector:
    """(6,) what each coefficient is multiplied by in `Timing.step_s`, on that side of its max which is the larger."""
    prefill_s = coefficients[_OVERHEAD] + coefficients[_TOKEN] * load.prefill_tokens
    computes = load.prefill_tokens > 0 and prefill_s > coefficients[_BASE]
    return np.array(
        (
            1.0 if computes else 0.0,
            load.prefill_tokens if computes else 0.0,
            load.attended_tokens,
            0.0 if computes else 1.0,
            load.decode_sequences,
            load.kv_tokens,
        ),
        dtype=np.float64,
    )


def typical_request_s(timing: Timing) -> float:
    """Device-seconds of a request of 512 prompt and 128 completion tokens in a batch of 16: one number for a pace."""
    return timing.prefill_s(512) + 128 * timing.decode_s(16, 16 * 576) / 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a pool is for a model.

    Attributes:
        timing: of its typical worker: per coefficient the lower median of those observed.
        speeds: per worker asked for, beside the typical one; 1.0 where nothing is known; at most `FASTEST`.
    """

    timing: Timing
    speeds: tuple[float, ...]
    observations: int
    mean_error: float


FASTEST: Final = 1.5  # a worker is never counted as more than this many of its pool's typical ones


class Capacity:
    """The fits of all workers, and the pace of pools made from them."""

    def __init__(self, catalogue: Catalogue, forgetting: float) -> None:
        self._catalogue = catalogue
        self._forgetting = forgetting
        self._fits: dict[tuple[str, str], TimingFit] = {}  # by worker and model
        self._members: dict[tuple[str, str], dict[str, str]] = {}  # by pool and model: workers with a fit, on what
        # By pool, accelerator and model; what was adopted last comes last.
        self._adopted: dict[tuple[str, str, str], Timing] = {}

    def adopt(self, pool: str, accelerator: str, model: str, timing: Timing) -> None:
        """Starts fits of the pool from `timing`, which was learnt before, instead of from the catalogue."""
        keep_latest(self._adopted, (pool, accelerator, model), timing, _MOST_ADOPTED)

    def observed(self, event: LatencyObserved, now_s: float) -> bool:
        """Learns from the event's steps; True when there was one to learn from. Of more workers and models than
        `_MOST_FITS` nothing is learnt, until others are gone."""
        if not event.steps:
            return False
        fit = self._fits.get((event.worker, event.model))
        if fit is None:
            if len(self._fits) >= _MOST_FITS:
                return False
            fit = TimingFit(self.pace(event.pool, event.accelerator, event.model, (), now_s).timing, self._forgetting)
            self._fits[event.worker, event.model] = fit
            self._members.setdefault((event.pool, event.model), {})[event.worker] = event.accelerator
        learnt = [fit.observe(_load(sample), sample.step_s, now_s) for sample in event.steps]
        return any(learnt)

    def pace(self, pool: str, accelerator: str, model: str, workers: Sequence[str], now_s: float) -> Pace:
        """The pool's pace for the model, from all its workers that were observed, `workers` or not."""
        fits = {worker: self._fits[worker, model] for worker in self._members.get((pool, model), ())}
        observed = {worker: fit.timing(now_s) for worker, fit in fits.items() if fit.observations}
        if not observed:
            return Pace(self._start(pool, accelerator, model), (1.0,) * len(workers), 0, 0.0)
        columns = zip(*(_coefficients(timing) for timing in observed.values()), strict=True)
        # The lower median: of two workers, one of them slowed, the healthy one is typical and the other half a worker.
        typical = Timing(*(sorted(column)[(len(column) - 1) // 2] for column in columns))
        typical_s = typical_request_s(typical)
        speeds = tuple(
            min(FASTEST, typical_s / typical_request_s(observed[worker])) if worker in observed else 1.0
            for worker in workers
        )
        observations = sum(fit.observations for fit in fits.values())
        mean_error = sum(fit.mean_error for fit in fits.values()) / len(fits)
        return Pace(typical, speeds, observations, mean_error)

    def forget_others(self, workers: Collection[str]) -> None:
        """Drops all but these workers: some tell of steps that never say that they are there."""
        for worker in {worker for worker, _ in self._fits} - set(workers):
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """Drops what is known of a worker that is gone; its pool keeps its pace as a start for the next one."""
        for pool_model, workers in list(self._members.items()):
            if worker in workers:
                pool, model = pool_model
                # The usual, not the latest: it may have gone because it had become slow.
                usual = self._fits.pop((worker, model)).timing(math.inf)
                self.adopt(pool, workers.pop(worker), model, usual)
                if not workers:
                    del self._members[pool_model]

    def _start(self, pool: str, accelerator: str, model: str) -> Timing:
        adopted = self._adopted.get((pool, accelerator, model))
        return adopted if adopted is not None else starting_timing(self._catalogue, accelerator, model)


def _load(sample: StepSample) -> StepLoad:
    return StepLoad(sample.prefill_tokens, sample.attended_tokens, sample.decode_sequences, sample.kv_tokens)


def starting_timing(catalogue: Catalogue, accelerator: str, model: str) -> Timing:
    """The roofline of the pair. A device or a model that the catalogue does not know starts as a middling one that it
    does; its first steps correct that."""
    try:
        device = catalogue.accelerator(accelerator)
    except SettingInvalid:
        by_speed = sorted(catalogue.accelerators.values(), key=lambda each: each.bandwidth_bytes_s)
        device = by_speed[len(by_speed) // 2]
    try:
        shape = catalogue.model(model)
    except SettingInvalid:
        by_size = sorted(catalogue.models.values(), key=lambda each: each.parameters)
        shape = by_size[-1]
    return catalogue.timing(device, shape)
