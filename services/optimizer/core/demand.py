"""What is asked for, by workload class: SLO class x prompt bucket x completion bucket x confines, per model.

In: `RequestAdmitted` and `RequestFinished` with the second they arrived at. Out: requests per second and mean tokens of
each class, and whether demand differs markedly from what a plan was made for.

A request's prompt is known when it arrives, its answer only when it ended. So arrivals are counted by (model, SLO
class, prompt bucket, confines) and split by the completion lengths that ended lately with the same model, SLO class and
prompt bucket; before any has ended, by those of the SLO class; before that, one bucket holds what `max_tokens` allows,
at most `_GUESSED_TOKENS`.

The rate is exponentially weighted over `window_s`. Beside it stands one that is twenty times as quick; where the two
differ by more than chance explains (the arrivals of a Poisson process), the quick one is believed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from services.mesh.confines import Confines
from services.mesh.events import Outcome, RequestAdmitted, RequestFinished
from services.optimizer.core.rates import DecayedRate, DecayedSum

PROMPT_EDGES: Final = (0, 256, 512, 1024, 2048, 4096, 8192, 16384)
COMPLETION_EDGES: Final = (0, 32, 128, 512)
_GUESSED_TOKENS: Final = 256
_QUICK: Final = 20  # the quick rate's window is window_s divided by this
_BEYOND_CHANCE: Final = 4.0  # standard deviations
_SMALLEST_PART: Final = 0.002  # of a model's demand: classes below are left out, their demand added to the others
_MOST_CLASSES: Final = 64  # per model
_MOST_CELLS: Final = 65_536  # of all models; what begins beyond is left out until others are silent
_ANSWERS_S: Final = 600.0  # completion lengths are remembered for longer than rates: they move slowly

Group = tuple[str, str]  # model, SLO class: where demand is watched for marked changes


@dataclass(frozen=True, slots=True, order=True)
class ClassKey:
    """Names a workload class across plans; the buckets index `PROMPT_EDGES` and `COMPLETION_EDGES`.

    Attributes:
        within: where its requests may be computed, see `mesh/confines.py`; empty: anywhere.
    """

    model: str
    slo_class: str
    prompt_bucket: int
    completion_bucket: int
    within: str = ""


@dataclass(frozen=True, slots=True)
class ClassDemand:
    """Demand of one workload class; means are of its requests, `cached_fraction` (0 to 1) of their prompt tokens."""

    key: ClassKey
    rps: float
    prompt_tokens: float
    completion_tokens: float
    cached_fraction: float = 0.0


def bucket(edges: Sequence[int], tokens: int) -> int:
    """The index of the bucket [edges[i], edges[i + 1]) that holds `tokens`; the last one has no end."""
    return max(index for index, edge in enumerate(edges) if index == 0 or tokens >= edge)


def bucket_range(edges: Sequence[int], index: int) -> tuple[int, int]:
    """(from, to) of a bucket; to is 0 where there is no end."""
    return edges[index], edges[index + 1] if index + 1 < len(edges) else 0


@dataclass(slots=True)
class _Answers:
    """Completion lengths lately seen, by bucket."""

    counts: list[DecayedSum] = field(default_factory=lambda: [DecayedSum(_ANSWERS_S) for _ in COMPLETION_EDGES])
    tokens: list[DecayedSum] = field(default_factory=lambda: [DecayedSum(_ANSWERS_S) for _ in COMPLETION_EDGES])

    def add(self, completion_tokens: int, now_s: float) -> None:
        index = bucket(COMPLETION_EDGES, completion_tokens)
        self.counts[index].add(1, now_s)
        self.tokens[index].add(completion_tokens, now_s)

    def parts(self, now_s: float) -> list[tuple[int, float, float]]:
        """(bucket, part of the requests, mean tokens); the parts add up to 1; empty before the first answer."""
        counts = [each.at(now_s) for each in self.counts]
        total = sum(counts)
        if total < 1e-9:
            return []
        return [
            (index, count / total, self.tokens[index].at(now_s) / count)
            for index, count in enumerate(counts)
            if count > 1e-3 * total
        ]


@dataclass(slots=True)
class _Cell:
    """Requests of one model, SLO class, prompt bucket and confines."""

    rate: DecayedRate
    prompt_tokens: DecayedSum
    max_tokens: DecayedSum
    arrivals: DecayedSum


@dataclass(slots=True)
class _Served:
    """Requests that ended, of one model, SLO class and prompt bucket."""

    prompt_tokens: DecayedSum
    cached_prompt_tokens: DecayedSum
    answers: _Answers = field(default_factory=_Answers)


@dataclass(slots=True)
class _Level:
    """Arrivals of one group, slow and quick."""

    slow: DecayedRate
    quick: DecayedRate

    def rps(self, now_s: float) -> float:
        slow, quick = self.slow.per_s(now_s), self.quick.per_s(now_s)
        return quick if beyond_chance(slow, quick, self.quick.time_constant_s) else slow


def beyond_chance(before_rps: float, after_rps: float, time_constant_s: float) -> bool:
    """Whether two rates differ by more than Poisson arrivals, weighted over `time_constant_s`, do by chance.

    Source: the variance of an exponentially weighted rate r of Poisson arrivals is r / (2 * time constant).
    """
    deviation = math.sqrt(max(before_rps, after_rps) / (2 * time_constant_s))
    return abs(after_rps - before_rps) > _BEYOND_CHANCE * deviation


class Demand:
    """Counts what arrives and what ended."""

    def __init__(self, window_s: float, slo_classes: Sequence[str], started_s: float) -> None:
        """Events of an SLO class that is not among `slo_classes` are left out: nothing can be promised for them."""
        self._window_s = window_s
        self._quick_s = window_s / _QUICK
        self._slo_classes = frozenset(slo_classes)
        self._started_s = started_s
        self._cells: dict[tuple[str, str, int, str], _Cell] = {}
        self._served: dict[tuple[str, str, int], _Served] = {}
        self._levels: dict[Group, _Level] = {}
        self._group_answers: dict[Group, _Answers] = {}

    def admitted(self, event: RequestAdmitted, now_s: float) -> None:
        if event.slo_class not in self._slo_classes or event.prompt_tokens < 0:
            return
        cell = self._cell(event)
        if cell is None:
            return
        cell.rate.add(1, now_s)
        cell.arrivals.add(1, now_s)
        cell.prompt_tokens.add(event.prompt_tokens, now_s)
        cell.max_tokens.add(max(1, event.max_tokens), now_s)
        level = self._level((event.model, event.slo_class))
        level.slow.add(1, now_s)
        level.quick.add(1, now_s)

    def finished(self, event: RequestFinished, now_s: float) -> None:
        if event.slo_class not in self._slo_classes or event.prompt_tokens < 0:
            return
        completion_tokens = event.delivered_from + event.delivered_count
        if event.outcome == Outcome.ERROR or completion_tokens <= 0:
            return  # says nothing about how long answers are
        key = (event.model, event.slo_class, bucket(PROMPT_EDGES, event.prompt_tokens))
        served = self._served.get(key)
        if served is None:
            if len(self._served) >= _MOST_CELLS:
                return
            served = self._served[key] = _Served(DecayedSum(self._window_s), DecayedSum(self._window_s))
        served.answers.add(completion_tokens, now_s)
        served.prompt_tokens.add(event.prompt_tokens, now_s)
        served.cached_prompt_tokens.add(min(event.cached_prompt_tokens, event.prompt_tokens), now_s)
        self._group_answers.setdefault((event.model, event.slo_class), _Answers()).add(completion_tokens, now_s)

    def classes(self, now_s: float) -> list[ClassDemand]:
        """The classes with demand, by key; what falls below `_SMALLEST_PART` is added to the rest of its group."""
        by_model: dict[str, list[ClassDemand]] = {}
        for (model, slo_class, prompt_bucket, within), cell in self._cells.items():
            key = ClassKey(model, slo_class, prompt_bucket, 0, within)
            by_model.setdefault(model, []).extend(self._split(key, cell, now_s))
        kept: list[ClassDemand] = []
        for classes in by_model.values():
            total_rps = sum(each.rps for each in classes)
            if total_rps * self._window_s < 1e-2:  # what is left of a hundred windows ago
                continue
            largest = sorted(classes, key=lambda each: -each.rps)[:_MOST_CLASSES]
            kept.extend(_rescaled([each for each in largest if each.rps >= _SMALLEST_PART * total_rps], classes))
        return sorted(kept, key=lambda each: each.key)

    def levels(self, now_s: float) -> dict[Group, float]:
        """Requests per second by model and SLO class: what a plan is compared with later."""
        return {group: level.rps(now_s) for group, level in self._levels.items()}

    def changed(self, basis: Mapping[Group, float], marked_change: float, now_s: float) -> bool:
        """Whether a group's rate differs from `basis` by `marked_change` of it or more, and not by chance."""
        for group, level in self._levels.items():
            before, after = basis.get(group, 0.0), level.rps(now_s)
            if abs(after - before) >= marked_change * before and beyond_chance(before, after, self._quick_s):
                return True
        return False

    def forget_silent(self, now_s: float) -> None:
        """Drops cells and groups in which nothing arrived for many windows."""
        for key in [key for key, cell in self._cells.items() if cell.arrivals.at(now_s) < 1e-6]:
            del self._cells[key]
        wanted = {key[:3] for key in self._cells}
        self._served = {key: each for key, each in self._served.items() if key in wanted}
        for group in [group for group, level in self._levels.items() if level.slow.per_s(now_s) < 1e-9]:
            del self._levels[group]
        self._group_answers = {group: each for group, each in self._group_answers.items() if group in self._levels}

    def _cell(self, event: RequestAdmitted) -> _Cell | None:
        key = (event.model, event.slo_class, bucket(PROMPT_EDGES, event.prompt_tokens), _legible(event.within))
        cell = self._cells.get(key)
        if cell is None:
            if len(self._cells) >= _MOST_CELLS:
                return None
            cell = self._cells[key] = _Cell(
                rate=DecayedRate(self._window_s, self._started_s),
                prompt_tokens=DecayedSum(self._window_s),
                max_tokens=DecayedSum(self._window_s),
                arrivals=DecayedSum(self._window_s),
            )
        return cell

    def _level(self, group: Group) -> _Level:
        level = self._levels.get(group)
        if level is None:
            level = self._levels[group] = _Level(
                DecayedRate(self._window_s, self._started_s), DecayedRate(self._quick_s, self._started_s)
            )
        return level

    def _split(self, key: ClassKey, cell: _Cell, now_s: float) -> list[ClassDemand]:
        """The classes of a cell; `key` with any completion bucket."""
        arrivals = cell.arrivals.at(now_s)
        group = key.model, key.slo_class
        level = self._levels.get(group)
        if level is None or arrivals < 1e-9:
            return []
        slow_rps = level.slow.per_s(now_s)
        scale = level.rps(now_s) / slow_rps if slow_rps > 0 else 0.0
        rps = cell.rate.per_s(now_s) * scale
        served = self._served.get((*group, key.prompt_bucket))
        parts = served.answers.parts(now_s) if served is not None else []
        if not parts and group in self._group_answers:
            parts = self._group_answers[group].parts(now_s)
        if not parts:
            guess = min(float(_GUESSED_TOKENS), cell.max_tokens.at(now_s) / arrivals)
            parts = [(bucket(COMPLETION_EDGES, int(guess)), 1.0, guess)]
        prompts = served.prompt_tokens.at(now_s) if served is not None else 0.0
        cached = served.cached_prompt_tokens.at(now_s) / prompts if served is not None and prompts > 0 else 0.0
        return [
            ClassDemand(
                key=replace(key, completion_bucket=completion_bucket),
                rps=rps * part,
                prompt_tokens=cell.prompt_tokens.at(now_s) / arrivals,
                completion_tokens=mean_tokens,
                cached_fraction=cached,
            )
            for completion_bucket, part, mean_tokens in parts
        ]


def _rescaled(kept: list[ClassDemand], classes: list[ClassDemand]) -> list[ClassDemand]:
    """`kept`, with the demand of those of `classes` that were left out spread over their SLO class, else over all."""
    wanted: dict[str, float] = {}
    have: dict[str, float] = {}
    for each in classes:
        wanted[each.key.slo_class] = wanted.get(each.key.slo_class, 0.0) + each.rps
    for each in kept:
        have[each.key.slo_class] = have.get(each.key.slo_class, 0.0) + each.rps
    spread = sum(wanted.values()) / max(1e-12, sum(wanted[slo_class] for slo_class in have))
    return [
        ClassDemand(
            each.key,
            each.rps * wanted[each.key.slo_class] / have[each.key.slo_class] * spread,
            each.prompt_tokens,
            each.completion_tokens,
            each.cached_fraction,
        )
        for each in kept
    ]


def _legible(within: str) -> str:
    """Confines as plans name them; what cannot be read counts as none here: it is routers that keep requests there."""
    try:
        return str(Confines.parse(within))
    except ValueError:
        return ""
